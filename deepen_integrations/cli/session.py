"""What every command does around its work: check options, and report errors in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import typer

from deepen_integrations.cli.console import notice
from deepen_integrations.cli.program import output_failed
from deepen_integrations.cli.terminal_input import read_input, standard_input

if TYPE_CHECKING:
    from deepen_core.voting import By
    from deepen_core.voting.sampling import Among
    from deepen_integrations.cli.options import SamplingOptions, VoteOptions


@contextmanager
def clear_errors(debug: bool) -> Iterator[None]:
    """Exits with one red line for an error of the engine or of a file, and with a short notice for Ctrl-C.

    Args:
        debug: Raise the error, with its traceback.

    Raises:
        typer.Exit: With code 1 for an error, 130 for Ctrl-C, 141 if who reads the output is gone.
    """
    from deepen_core.errors import DeepenError  # noqa: PLC0415 (slow)

    try:
        yield
    except DeepenError as error:
        if debug:
            raise
        notice(f"Error: {error}", style="bold red")
        raise typer.Exit(1) from error
    except OSError as problem:
        if debug:
            raise
        raise typer.Exit(output_failed(problem)) from problem
    except KeyboardInterrupt:
        notice("Interrupted.")
        raise typer.Exit(130) from None


def read_prompt(argument: str | None) -> str:
    """Returns the prompt of the command line; for `-` or no prompt, the standard input without its last newline.

    Raises:
        typer.BadParameter: If there is no prompt and the standard input is a terminal, or the prompt is empty.
        PromptError: If the standard input is closed, or is not text.
    """
    ask = "Give a text, or pipe one in."
    if argument not in (None, "-"):
        text = str(argument)
    elif argument is None and standard_input().isatty():
        raise typer.BadParameter(ask, param_hint="TEXT")
    else:
        text = read_input()
    if not text:
        raise typer.BadParameter(f"It is empty. {ask}", param_hint="TEXT")
    return text


def checked_sampling(options: SamplingOptions) -> dict[str, Any]:
    """Returns the sampling options that were given, after checking them.

    Raises:
        SamplingError: For a value outside its range.
    """
    from deepen_core.config import resolve_sampling  # noqa: PLC0415 (slow)

    given = {name: value for name, value in asdict(options).items() if value is not None}
    if "stop" in given:
        given["stop"] = [unescaped(text) for text in given["stop"]]
    if "template_option" in given:
        given["chat_template_kwargs"] = dict(map(_variable, given.pop("template_option")))
    if "reasoning" in given:
        given["reasoning"] = on_or_off(given["reasoning"])
    resolve_sampling(None, given)
    return given


def unescaped(text: str) -> str:
    """Returns a text with the newlines and tabs for which it has escapes, because both are hard to type in a shell."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def on_or_off(text: str) -> bool | str:
    """Returns the value of `reasoning` that a text stands for: "on", "off", or an effort."""
    return {"on": True, "off": False}.get(text, text)


def json_or_text(text: str) -> Any:
    """Returns the value that a text is as JSON, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def checked_vote(options: VoteOptions, sampling: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the arguments of `Ensemble.vote` that options ask for, after checking them; None for no vote.

    Args:
        options: The options of the vote.
        sampling: The sampling options that were given.

    Raises:
        SamplingError: For a value that cannot be.
        typer.BadParameter: For options of a vote without `--votes`.
    """
    given = {"by": options.vote_by, "among": options.vote_among, "extract": options.extract}
    if options.votes is None:
        if options != type(options)():
            raise typer.BadParameter("It is for --votes N: give the number of answers.", param_hint="--vote-by")
        return None
    from deepen_core.config import resolve_sampling  # noqa: PLC0415 (slow)
    from deepen_core.voting import Ballot  # noqa: PLC0415
    from deepen_core.voting.sampling import Poll  # noqa: PLC0415

    Ballot(cast("By", options.vote_by), options.extract)
    Poll.checked(options.votes, cast("Among", options.vote_among), resolve_sampling(None, sampling))
    return {"n": options.votes, **given}


def _variable(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(
            f"{text!r} is not NAME=VALUE, such as reasoning_effort=low.", param_hint="--template-option"
        )
    return name, json_or_text(value)
