"""The `deepen` command on a fake ensemble: options, output, errors."""

import io
import json

import pytest
import typer
from cli_parts import run

from deepen_core.config import PRESETS, SamplingParams
from deepen_core.errors import ConfigurationError, ContextWindowError
from deepen_integrations.cli.session import read_prompt

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
    with pytest.raises(typer.BadParameter, match="Give a text, or pipe one in"):
        read_prompt(None)


def test_generate_passes_every_option_on(fake):
    result = run(
        *["generate", "text", "-m", "a", "--member", "b", "--main", "b", "--weights", "0.7,0.3"],
        *["--fusion", "deepen-paper", "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "5"],
        *["--temperature", "0.5", "--top-k", "9", "--top-p", "0.9", "--min-p", "0.1", "--seed", "4"],
        *["--repetition-penalty", "1.1", "--stop", r"\n\n", "--stop", "END", "--timeout", "2.5"],
        *["--penalty-window", "64", "--max-context-window", "512", "--gate", "0.9"],
        *["--prompt", "b=Question: {prompt}", "--languages", "a=eng_Latn:fra_Latn", "--server", "b=http://h"],
    )
    assert result.exit_code == 0, result.output
    assert fake.opened == {
        "members": ["a", "b"],
        "chat": False,
        "demo": False,
        "ensemble": None,
        "main": "b",
        "weights": "0.7,0.3",
        "fusion": "deepen-paper",
        "gate": 0.9,
        "prompt": ["b=Question: {prompt}"],
        "languages": ["a=eng_Latn:fra_Latn"],
        "server": ["b=http://h"],
        "device": "cpu",
        "dtype": "float32",
        "max_context_window": 512,
    }
    assert fake.options == {
        "penalty_window": 64,
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
    assert {name: value for name, value in fake.opened.items() if value} == {}


def test_weights_that_are_no_numbers_are_a_usage_error():
    result = run("generate", "text", "--weights", "0.5,x")
    assert result.exit_code == 2
    assert "'0.5,x' is not a list of numbers" in result.stderr
    result = run("generate", "text", "--weights", "perplexity:0.5,x")
    assert result.exit_code == 2
    assert "one number per member after the colon" in " ".join(result.stderr.replace("│", " ").split())


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
    assert "leave out --member or --demo" in " ".join(result.stderr.replace("│", " ").split())


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
