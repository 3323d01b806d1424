"""What every command does around its work: check options, open the ensemble, report errors in one line."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import typer
from rich.console import Console
from rich.text import Text

from deepen_core.config.weights import POLICIES
from deepen_core.demo import MEMBERS as DEMO_MEMBERS

if TYPE_CHECKING:
    from deepen_core import Ensemble, MemberConfig
    from deepen_core.voting import By
    from deepen_core.voting.sampling import Among
    from deepen_integrations.cli.options import EnsembleOptions, SamplingOptions, VoteOptions


def notice(message: str, style: str = "yellow") -> None:
    """Prints a message to the error stream as one line, without interpreting markup in it."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text(" ".join(message.split()), style=style))


@contextmanager
def clear_errors(debug: bool) -> Iterator[None]:
    """Exits with one red line for an error of the engine, and with a short notice for Ctrl-C.

    Args:
        debug: Raise the error, with its traceback.

    Raises:
        typer.Exit: With code 1 for an error, 130 for Ctrl-C.
    """
    from deepen_core.errors import DeepenError  # noqa: PLC0415 (slow)

    try:
        yield
    except DeepenError as error:
        if debug:
            raise
        notice(f"Error: {error}", style="bold red")
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        notice("Interrupted.")
        raise typer.Exit(130) from None


def read_prompt(argument: str | None) -> str:
    """Returns the prompt of the command line; for `-` or no prompt, the standard input without its last newline.

    Raises:
        typer.BadParameter: If there is no prompt and the standard input is a terminal.
    """
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise typer.BadParameter("Give a text to continue, or pipe one in.", param_hint="TEXT")
    return sys.stdin.read().removesuffix("\n")


def checked_sampling(options: SamplingOptions) -> dict[str, Any]:
    """Returns the sampling options that were given, after checking them.

    Raises:
        SamplingError: For a value outside its range.
    """
    from deepen_core.config import resolve_sampling  # noqa: PLC0415 (slow)

    given = _given(options)
    if "stop" in given:
        # A newline is hard to type in a shell.
        given["stop"] = [text.replace("\\n", "\n").replace("\\t", "\t") for text in given["stop"]]
    if "template_option" in given:
        given["chat_template_kwargs"] = dict(map(_variable, given.pop("template_option")))
    if "reasoning" in given:
        given["reasoning"] = {"on": True, "off": False}.get(given["reasoning"], given["reasoning"])
    resolve_sampling(None, given)
    return given


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
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def open_ensemble(options: EnsembleOptions, *, chat: bool = False, demo: Sequence[str] = DEMO_MEMBERS) -> Ensemble:
    """Loads the members, or the embedded demo ensemble if there are none.

    Args:
        options: The options that were given.
        chat: Whether every prompt will be a conversation.
        demo: The members of the embedded demo ensemble.

    Raises:
        typer.BadParameter: If options contradict each other.
        ChatTemplateError: With `chat`, if a member that takes part has no chat template.
        DeepenError: If the ensemble cannot be loaded.
    """
    if options.member and options.demo:
        raise typer.BadParameter("--demo brings its own members: leave out --demo or --member.")
    from deepen_core import Ensemble  # noqa: PLC0415 (slow)
    from deepen_core.errors import ChatTemplateError  # noqa: PLC0415

    given = _given(options)
    del given["demo"]
    members = given.pop("member", None)
    if "languages" in given:
        members = _translating(members or [], given.pop("languages"))
    if "prompt" in given:
        given["prompts"] = dict(map(_form, given.pop("prompt")))
    given |= {name: read(given[name]) for name, read in _READERS.items() if name in given}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the commands show `ensemble.info.warnings` themselves
        if not members:
            return Ensemble.demo(demo, **given)
        try:
            return Ensemble.load(members, chat=chat, **given)
        except ChatTemplateError as error:
            raise ChatTemplateError(f"{error} `deepen generate` continues plain text.") from error


def _form(text: str) -> tuple[str, str]:
    name, equals, template = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(
            f"{text!r} is not MEMBER=TEMPLATE, such as 'specialist=Question: {{prompt}}'.", param_hint="--prompt"
        )
    return name, template.replace("\\n", "\n")


def _translating(members: list[str], languages: list[str]) -> list[MemberConfig]:
    """Returns the members with their languages, given as MEMBER=FROM:TO.

    Raises:
        typer.BadParameter: For a text of another form, or a name that no member has.
        ConfigurationError: If there are no members.
    """
    from deepen_core.members.loading import member_configs  # noqa: PLC0415 (slow)

    configs = {str(config.name): config for config in member_configs(members)}
    for text in languages:
        name, _, pair = text.partition("=")
        source, colon, target = pair.partition(":")
        if not colon or name not in configs:
            raise typer.BadParameter(
                f"{text!r} is not MEMBER=FROM:TO, such as nllb=eng_Latn:fra_Latn, for one of the members "
                f"{', '.join(configs)}.",
                param_hint="--languages",
            )
        named = {"source_language": source or None, "target_language": target or None}
        configs[name] = configs[name].model_copy(update=named)
    return list(configs.values())


def _given(options: EnsembleOptions | SamplingOptions) -> dict[str, Any]:
    return {name: value for name, value in asdict(options).items() if value is not None}


def _main(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text


def _weights(text: str) -> list[float] | str:
    if text in POLICIES:
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of numbers such as 0.7,0.3, nor one of {', '.join(POLICIES)}.",
            param_hint="--weights",
        ) from None


_READERS: dict[str, Callable[[str], Any]] = {"main": _main, "weights": _weights}
"""Options that the command line takes as text and the engine does not."""
