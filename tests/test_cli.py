"""The `deepen` command on a fake ensemble: options, output, errors."""

import io
import json
from dataclasses import asdict

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from deepen_core.config import PRESETS, SamplingParams
from deepen_core.demo import Question
from deepen_core.errors import ChatTemplateError, ConfigurationError, ContextWindowError
from deepen_core.results import Chunk, EnsembleInfo, Generation, MemberInfo, TokenLogprob, Usage
from deepen_integrations.cli import chat as chat_module
from deepen_integrations.cli.commands import commands
from deepen_integrations.cli.demo import Answers, Comparison
from deepen_integrations.cli.session import read_prompt
from deepen_integrations.cli.tables import print_answers, size


def member(name: str, **changes) -> MemberInfo:
    values = {
        "name": name,
        "architecture": "GPT2LMHeadModel",
        "parameters": 1234567,
        "vocabulary_size": 512,
        "context_window": 256,
        "weight": 0.5,
        "device": "cpu",
        "dtype": "float32",
        "stop_tokens": ["</s>"],
        "has_chat_template": True,
        "temperature": 41.5,
        "self_mass": 0.9,
        "effective_support": 1.52,
        "rows_built": 12_345,
        "bytes_per_token": 3.25,
        "space_bytes": 2048,
    }
    return MemberInfo(**{**values, **changes})


class FakeEnsemble:
    """Says `pieces` and remembers what it was asked."""

    def __init__(self, pieces=(" Blue", " sky."), warnings=()):
        self.pieces = list(pieces)
        self.warnings = list(warnings)
        self.asked = []
        self.options = {}
        members = [member("general"), member("specialist")]
        self.info = EnsembleInfo(members, "general", "deepen", 1500, 256, 4096, list(warnings), ["It cannot fly."])

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    def generate(self, prompt, **options):
        self.asked.append(prompt)
        self.options = options
        logprobs = [TokenLogprob(7, b"\xf0\x9f", -0.5, ((7, b"\xf0\x9f", -0.5),))]
        text = "".join(piece for piece in self.pieces if isinstance(piece, str))
        return Generation(text, [7, 8], "length", Usage(3, 2), logprobs, warnings=self.warnings)

    def stream(self, prompt, **options):
        generation = self.generate(prompt, **options)
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield Chunk(piece, [7])
        yield Chunk("", [], "length", generation)


@pytest.fixture
def fake(monkeypatch):
    """The ensemble that every command gets; `opened` holds the options it was opened with."""
    ensemble = FakeEnsemble()
    ensemble.opened = {}

    def open_fake(load, *, chat=False):
        options = asdict(load)
        ensemble.opened = {"members": options.pop("member"), "chat": chat, **options}
        return ensemble

    monkeypatch.setattr("deepen_integrations.cli.commands.open_ensemble", open_fake)
    return ensemble


def run(*arguments: str, input: str | None = None):  # noqa: A002 (CliRunner's name)
    return CliRunner().invoke(commands, list(arguments), input=input)


# deepen generate


def test_generate_streams_only_the_text_to_stdout(fake):
    fake.warnings = ["max_new_tokens was clamped\nto 3."]
    result = run("generate", "The colour is")
    assert result.exit_code == 0, result.output
    assert result.stdout == " Blue sky.\n"
    assert result.stderr == "Note: max_new_tokens was clamped to 3.\n"
    assert fake.asked == ["The colour is"]


@pytest.mark.parametrize("arguments", [["generate"], ["generate", "-"]])
def test_generate_reads_a_piped_prompt_without_its_last_newline(fake, arguments):
    result = run(*arguments, input="two\nlines\n\n")
    assert result.exit_code == 0, result.output
    assert fake.asked == ["two\nlines\n"]


def test_a_terminal_without_a_prompt_says_what_to_do(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    with pytest.raises(typer.BadParameter, match="Give a text to continue"):
        read_prompt(None)


def test_generate_passes_every_option_on(fake):
    result = run(
        *["generate", "text", "-m", "a", "--member", "b", "--main", "b", "--weights", "0.7,0.3"],
        *["--fusion", "deepen-paper", "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "5"],
        *["--temperature", "0.5", "--top-k", "9", "--top-p", "0.9", "--min-p", "0.1", "--seed", "4"],
        *["--repetition-penalty", "1.1", "--stop", r"\n\n", "--stop", "END", "--timeout", "2.5"],
    )
    assert result.exit_code == 0, result.output
    assert fake.opened == {
        "members": ["a", "b"],
        "chat": False,
        "demo": False,
        "main": "b",
        "weights": "0.7,0.3",
        "fusion": "deepen-paper",
        "device": "cpu",
        "dtype": "float32",
    }
    assert fake.options == {
        "max_new_tokens": 5,
        "temperature": 0.5,
        "top_k": 9,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "seed": 4,
        "stop": ["\n\n", "END"],
        "timeout": 2.5,
    }


def test_options_that_are_not_given_are_left_to_the_engine(fake):
    run("generate", "text")
    assert fake.options == {}
    assert fake.opened["main"] == "0"
    assert fake.opened["weights"] is None


def test_weights_that_are_no_numbers_are_a_usage_error():
    result = run("generate", "text", "--weights", "0.5,x")
    assert result.exit_code == 2
    assert "'0.5,x' is not a list of numbers" in result.stderr


def test_generate_prints_the_whole_result_as_json(fake):
    result = run("generate", "text", "--json", "--logprobs", "1")
    record = json.loads(result.stdout)
    assert record["text"] == " Blue sky."
    assert record["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}
    assert record["logprobs"][0]["token"] == r"\xf0\x9f"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "1.5"], "top_p"),
        (["--stop", ""], "empty stop string"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
    ],
)
def test_wrong_sampling_is_told_before_anything_is_loaded(fake, arguments, part):
    result = run("generate", "text", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert part in result.stderr
    assert fake.opened == {}


def test_an_engine_error_is_one_line_without_a_traceback(fake):
    fake.pieces = [" Bl", ContextWindowError("Too long:\n  300 tokens.")]
    result = run("generate", "text")
    assert result.exit_code == 1
    assert result.stdout == " Bl\n"
    assert result.stderr == "Error: Too long: 300 tokens.\n"


def test_debug_shows_the_traceback(fake):
    fake.pieces = [ContextWindowError("Too long.")]
    result = run("generate", "text", "--debug")
    assert isinstance(result.exception, ContextWindowError)


def test_ctrl_c_ends_with_the_usual_code(fake):
    fake.pieces = [" Bl", KeyboardInterrupt()]
    result = run("generate", "text")
    assert result.exit_code == 130
    assert result.stdout == " Bl\n"


def test_variables_of_chat_templates(fake):
    with_options = ["--no-enable-thinking", "--template-option", "effort=low", "--template-option", 'n={"a": 1}']
    run("chat", *with_options, input="hi\n/quit\n")
    kwargs = {"effort": "low", "n": {"a": 1}}
    assert fake.options["chat_template_kwargs"] == kwargs
    assert fake.options["enable_thinking"] is False
    wrong = run("chat", "--template-option", "effort")
    assert wrong.exit_code == 2
    assert "NAME=VALUE" in " ".join(wrong.stderr.replace("│", " ").split())


def test_help_tells_the_engines_defaults():
    text = run("generate", "--help").stdout
    for name, field in SamplingParams.model_fields.items():
        option = "--" + name.replace("_", "-")
        if option in text and field.default not in (None, ()):
            assert f"({field.default})" in text, name


@pytest.mark.parametrize("command", ["generate", "chat", "info", "demo"])
def test_help_names_every_fusion(command):
    text = " ".join(run(command, "--help").stdout.replace("│", " ").split())
    assert f"are fused: {', '.join(PRESETS)}." in text


def test_commands_offer_only_the_options_that_they_use(fake):
    assert run("chat", "--logprobs", "1").exit_code == 2
    assert fake.opened == {}


@pytest.mark.parametrize("command", ["generate", "chat", "info", "demo"])
def test_every_command_shows_examples(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"deepen {command}" in result.stdout.partition("Examples:")[2]


# Opening the ensemble


def test_members_and_demo_contradict_each_other():
    result = run("info", "--demo", "-m", "a")
    assert result.exit_code == 2
    assert "leave out --demo or --member" in result.stderr


def test_members_are_loaded_with_the_options(monkeypatch):
    seen = {}

    def load(models, **options):
        seen.update(models=models, **options)
        raise ConfigurationError("No such weights.")

    monkeypatch.setattr("deepen_core.Ensemble.load", load)
    result = run("info", "-m", "a", "-m", "b", "--main", "1", "--weights", "1,2")
    assert result.exit_code == 1
    assert result.stderr == "Error: No such weights.\n"
    assert seen["models"] == ["a", "b"]
    assert (seen["main"], seen["weights"]) == (1, [1.0, 2.0])
    assert "dtype" not in seen


# deepen chat


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


# deepen info and the tables


def test_info_shows_members_side_by_side(fake):
    result = run("info")
    for part in (
        "general (main)",
        "specialist",
        "1,234,567",
        "41.5",
        "0.900",
        "1.5 anchors",
        "12,345",
        "3.25",
        "1,500 tokens",
        "4 KiB",
    ):
        assert part in result.stdout
    assert "Compatibility: no warnings." in result.stdout
    assert "What fusion cannot do with these members:\n- It cannot fly." in result.stdout


def test_info_shows_warnings(fake):
    fake.info = FakeEnsemble(warnings=["tokens differ [much] in length"]).info
    assert "Warning: tokens differ [much] in length" in run("info").stdout


WITHOUT_SPACES = {
    "temperature": None,
    "self_mass": None,
    "effective_support": None,
    "rows_built": 0,
    "space_bytes": 0,
}
SPACE_ROWS = ("temperature", "self-mass", "effective support", "rows built", "relative space")


def of_strategy(fusion: str, anchors: int | None, *members: MemberInfo) -> EnsembleInfo:
    return EnsembleInfo(list(members), "general", fusion, anchors, 256, 0)


def test_info_leaves_out_what_a_strategy_does_not_have(fake):
    fake.info = of_strategy("union", None, member("general", **WITHOUT_SPACES), member("special", **WITHOUT_SPACES))
    result = run("info")
    assert result.exit_code == 0, result.output
    assert "union" in result.stdout
    assert not [row for row in (*SPACE_ROWS, "anchors", "None") if row in result.stdout]


def test_info_marks_what_one_member_does_not_have(fake):
    fake.info = of_strategy("product", 1500, member("general"), member("special", **WITHOUT_SPACES))
    lines = run("info").stdout.splitlines()
    for row in SPACE_ROWS:
        (line,) = [line for line in lines if row in line]
        assert line.split("│")[3].strip() == "-"
    assert any("1,500 tokens" in line for line in lines)


@pytest.mark.parametrize("fusion", PRESETS)
def test_every_fusion_is_described(needs_demo, fusion):
    result = run("info", "--demo", "--fusion", fusion)
    assert result.exit_code == 0, result.output
    assert "None" not in result.output
    assert fusion in result.stdout


def test_info_as_json(fake):
    assert json.loads(run("info", "--json").stdout)["members"][1]["name"] == "specialist"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "0.999 KiB"), (1536, "1.5 KiB"), (3 << 30, "3 GiB")])
def test_sizes_for_people(count, text):
    assert size(count) == text


# deepen demo


def test_the_table_of_answers_marks_right_and_wrong():
    asked = [Question("p", "Where [does] Ada live?", "Oslo", "both", "city")]
    answers = [Answers("atlas", ["Rome"], [False]), Answers("together", ["Oslo"], [True])]
    console = Console(file=io.StringIO(), width=100)
    print_answers(console, Comparison(asked, answers))
    text = console.file.getvalue()
    for part in ("Where [does] Ada live?", "✗ Rome", "✓ Oslo", "Right: atlas 0 of 1, together 1 of 1."):
        assert part in text
