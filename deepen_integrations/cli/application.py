"""The `deepen` program without its commands, which add themselves to it."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import typer

from deepen_core import __version__
from deepen_core.tracing import Trace

commands = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deepen-integrations {__version__}")
        raise typer.Exit


def to_json(record: Any) -> str:
    """Formats a result as JSON. The bytes of a token become text, with escapes where they are not UTF-8."""

    def plain(value: bytes | Trace) -> Any:
        return value.to_dict() if isinstance(value, Trace) else value.decode("utf-8", "backslashreplace")

    return json.dumps(
        dataclasses.asdict(record),
        ensure_ascii=False,
        indent=2,
        default=plain,
    )


def examples_of(*lines: str) -> str:
    """Returns the end of a command's help: examples, one a line."""
    return "\n\n".join(["Examples:", *(f"`{line}`" for line in lines)])


@commands.callback()
def deepen(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Several local language models, each with its own tokenizer, answer as one.

    Without `--member` or `--ensemble` every command uses the toy demo: two tiny models that come with the package.
    `deepen COMMAND --help` has the options and examples.
    """
