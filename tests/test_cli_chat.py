"""`deepen chat` on a fake ensemble."""

from cli_parts import run

from deepen_core.errors import ChatTemplateError, ConfigurationError, ContextWindowError
from deepen_integrations.cli import terminal_input


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
    assert "general (main)" in result.stderr
    assert result.stdout == ""


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
    keys = iter([KeyboardInterrupt(), "hi", None])

    def type_(_):
        key = next(keys)
        if isinstance(key, BaseException):
            raise key
        return key

    monkeypatch.setattr(terminal_input, "_read_line", type_)
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


def test_one_question_is_answered_and_nothing_else_is_printed(fake):
    result = run("chat", "hi", "--system", "Be brief.")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Blue sky.\n", "")
    assert fake.asked == [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]]
    assert fake.opened["chat"]
    assert run("chat", "-", input="two\nlines\n").exit_code == 0
    assert fake.asked[1] == [{"role": "user", "content": "two\nlines"}]


def test_one_question_that_fails_ends_with_an_error(fake):
    fake.pieces = [ContextWindowError("Too long.")]
    result = run("chat", "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: Too long.\n")
    fake.pieces = [" Bl", KeyboardInterrupt()]
    assert run("chat", "hi").exit_code == 130


def test_only_answers_go_to_the_standard_output(fake):
    fake.warnings = ["cut"]
    result = chat("/help", "hi", "/info", "/stats", "/set", "/what", "again", "/clear")
    assert result.stdout == "Blue sky.\nBlue sky.\n"
    assert "2 tokens in 1.00 s" in result.stderr


def test_white_space_before_an_answer_is_left_out(fake):
    fake.pieces = ["\n", "  ", " Blue", " sky."]
    assert chat("hi").stdout == "Blue sky.\n"


def test_options_are_set_for_the_next_answers(fake):
    arguments = ["--seed", "3"]
    chat("/set temperature 0.7", "/set num_predict 9", r"/set stop \n\n", "/set seed", "hi", arguments=arguments)
    assert fake.options == {"temperature": 0.7, "max_new_tokens": 9, "stop": "\n\n"}
    chat("/set parameter max-tokens 5", "/set reasoning off", "/set top_k null", "hi")
    assert fake.options == {"max_new_tokens": 5, "reasoning": False}


def test_wrong_options_are_told_and_change_nothing(fake):
    result = chat("/set temprature 1", "/set temperature -1", "/set temperature 0.5", "/set", "hi")
    assert "Unknown option 'temprature': did you mean 'temperature'?" in result.stderr
    assert "Option 'temperature' is -1" in result.stderr
    assert "temperature is 0.5." in result.stderr
    assert fake.options == {"temperature": 0.5}


def test_the_instruction_may_change(fake):
    chat("hi", "/system Be rude.", "and?", "/system", "so?", arguments=["--system", "Be brief."])
    assert [asked[0]["content"] for asked in fake.asked] == ["Be brief.", "Be rude.", "hi"]
    assert [len(asked) for asked in fake.asked] == [2, 4, 5]


def test_an_answer_is_regenerated_in_place_of_the_last_one(fake):
    result = chat("/regenerate", "hi", "/regenerate", "and?", arguments=["--temperature", "0.7"])
    assert "There is no answer yet." in result.stderr
    assert fake.asked[0] == fake.asked[1] == [{"role": "user", "content": "hi"}]
    assert [message["content"] for message in fake.asked[2]] == ["hi", "Blue sky.", "and?"]
    assert "same answer" not in result.stderr
    assert "gives the same answer again" in chat("hi", "/regenerate").stderr


def test_an_answer_stays_if_its_replacement_fails(fake, monkeypatch):
    spoken = fake.stream

    def fail_second(prompt, **options):
        fake.pieces = [ContextWindowError("Too long.")] if len(fake.asked) == 1 else [" Red"]
        return spoken(prompt, **options)

    monkeypatch.setattr(fake, "stream", fail_second)
    chat("hi", "/regenerate", "and?")
    assert [message["content"] for message in fake.asked[2]] == ["hi", "Red", "and?"]


def test_several_lines_between_quotes_are_one_question(fake):
    chat('"""first', "  /second", 'third"""', '"""one line"""', "plain")
    assert [asked[-1]["content"] for asked in fake.asked] == ["first\n  /second\nthird", "one line", "plain"]
    assert chat('"""never ended').exit_code == 0
    assert len(fake.asked) == 3
