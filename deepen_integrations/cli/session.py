"""What every command does around its work: checks options, opens the ensemble, tells errors in one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from deepen_core import Ensemble


def notice(message: str, style: str = "yellow") -> None:
    """Prints one line to the error stream, whatever characters the message holds."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text(" ".join(message.split()), style=style))


@contextmanager
def clear_errors(debug: bool) -> Iterator[None]:
    """Ends the program with one red line for an error of the engine, and quietly for Ctrl-C.

    Args:
        debug: Let the error through, with its traceback.

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
    """The prompt of the command line, or the standard input (less its last newline) for `-` and none.

    Raises:
        typer.BadParameter: If there is neither.
    """
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise typer.BadParameter("Give a text to continue, or pipe one in.", param_hint="TEXT")
    return sys.stdin.read().removesuffix("\n")


def checked_sampling(**options: Any) -> dict[str, Any]:
    """The sampling options that were given, after a check that the engine takes them.

    Raises:
        SamplingError: For a value outside its range.
    """
    from deepen_core.config import resolve_sampling  # noqa: PLC0415 (slow)

    given = {name: value for name, value in options.items() if value is not None}
    if "stop" in given:
        # A newline is hard to type in a shell.
        given["stop"] = [text.replace("\\n", "\n").replace("\\t", "\t") for text in given["stop"]]
    resolve_sampling(None, given)
    return given


def open_ensemble(
    members: Sequence[str] | None,
    *,
    demo: bool,
    main: str,
    weights: str | None,
    fusion: str,
    device: str | None,
    dtype: str | None,
) -> Ensemble:
    """Loads the members, or the embedded demo ensemble if there are none.

    Raises:
        typer.BadParameter: If options contradict each other.
        DeepenError: If the engine refuses.
    """
    if members and demo:
        raise typer.BadParameter("--demo brings its own members: leave out --demo or --member.")
    from deepen_core import Ensemble  # noqa: PLC0415 (slow)

    options: dict[str, Any] = {"main": _main(main), "weights": _weights(weights), "fusion": fusion}
    options |= {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the commands show `ensemble.info.warnings` themselves
        if not members:
            return Ensemble.demo(**options)
        return Ensemble.load(list(members), progress=sys.stderr.isatty(), **options)


def _main(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text


def _weights(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of numbers such as 0.7,0.3.", param_hint="--weights"
        ) from None
