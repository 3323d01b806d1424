"""`deepen chat` on a fake ensemble."""

from cli_parts import run

from deepen_core.errors import ChatTemplateError, ConfigurationError, ContextWindowError
from deepen_integrations.cli import chat as chat_module


def chat(*lines: str, arguments=()):
    return run("chat", *arguments, input="".join(f"{line}\n" for line in lines))


def test_chat_keeps_the_conversation(fake):
    result = chat("hi", "and?", arguments=["--system", "Be brief."])
    assert result.exit_code == 0, result.output
    assert "Blue sky.\n" in result.stdout
    assert fake.asked[1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Blue sky."},
        {"role": "user", "content": "and?"},
    ]


def test_chat_reset_forgets_all_but_the_instruction(fake):
    chat("hi", "/reset", "again", arguments=["--system", "Be brief."])
    assert fake.asked[1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "again"},
    ]


def test_chat_quit_ends_and_unknown_commands_are_told(fake):
    result = chat("/what", "/quit", "hi")
    assert result.exit_code == 0
    assert "/what is not a command" in result.stderr
    assert fake.asked == []


def test_chat_info_describes_the_ensemble(fake):
    result = chat("/info")
    assert "general (main)" in result.stdout


def test_ctrl_c_interrupts_the_answer_and_keeps_the_chat(fake):
    fake.pieces = [" Blue", KeyboardInterrupt()]
    result = chat("hi", "more")
    assert result.exit_code == 0
    assert "[interrupted]" in result.stderr
    assert fake.asked[1][1] == {"role": "assistant", "content": "Blue"}


def test_an_answer_that_had_not_begun_when_interrupted_leaves_no_trace(fake):
    fake.pieces = [KeyboardInterrupt()]
    chat("hi", "more")
    assert fake.asked[1] == [{"role": "user", "content": "more"}]


def test_ctrl_c_at_the_prompt_tells_how_to_leave(fake, monkeypatch):
    keys = iter([KeyboardInterrupt(), "hi", EOFError()])

    def type_(_):
        key = next(keys)
        if isinstance(key, BaseException):
            raise key
        return key

    monkeypatch.setattr(chat_module, "input", type_, raising=False)
    result = chat()
    assert result.exit_code == 0
    assert "/quit or Ctrl-D ends the conversation." in result.stderr
    assert len(fake.asked) == 1


def test_an_error_in_a_chat_drops_the_question_and_goes_on(fake):
    fake.pieces = [ContextWindowError("Too long.")]
    result = chat("long", "short")
    assert result.exit_code == 0
    assert "Error: Too long." in result.stderr
    assert fake.asked[1] == [{"role": "user", "content": "short"}]


def test_only_a_chat_needs_templates(fake):
    chat("hi")
    assert fake.opened["chat"]
    run("generate", "hi")
    assert not fake.opened["chat"]


def test_a_member_without_a_template_ends_a_chat_before_it(monkeypatch):
    def load(models, *, chat, **options):
        raise ChatTemplateError("b has none.") if chat else ConfigurationError("not a chat")

    monkeypatch.setattr("deepen_core.Ensemble.load", load)
    result = chat("hi", arguments=["-m", "a", "-m", "b"])
    assert result.exit_code == 1
    assert result.stderr == "Error: b has none. `deepen generate` continues plain text.\n"
