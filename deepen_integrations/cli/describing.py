"""The commands that show what an ensemble is: `info` and `demo`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from deepen_integrations.cli import options as opt
from deepen_integrations.cli.application import commands, examples_of, to_json
from deepen_integrations.cli.opening import open_ensemble
from deepen_integrations.cli.session import clear_errors
from deepen_integrations.cli.status import Status
from deepen_integrations.cli.tables import print_answers, print_info


@commands.command(
    epilog=examples_of(
        "deepen info",
        "deepen info -m ./general -m ./specialist --json",
    )
)
@opt.spread()
def info(
    *,
    load: opt.EnsembleOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: opt.Debug = False,
) -> None:
    """Describe the ensemble: members, vocabularies, shared tokens, reasons why fusion may not help."""
    with clear_errors(debug), open_ensemble(load) as ensemble:
        if as_json:
            typer.echo(to_json(ensemble.info))
        else:
            print_info(Console(highlight=False), ensemble.info)


@commands.command(
    epilog=examples_of(
        "deepen demo",
        "deepen demo --questions 100 --fusion deepen-paper",
    )
)
def demo(
    questions: Annotated[
        int, typer.Option(help="How many held-out questions to ask.", min=1, max=480, metavar="N")
    ] = 12,
    fusion: opt.Fusion = "deepen",
    debug: opt.Debug = False,
) -> None:
    """Ask the embedded demo ensemble, and each of its members alone, the same questions.

    Each member was trained on a part of an invented world, so each knows answers that the other does not.
    """
    with clear_errors(debug):
        with Status("importing torch"):
            from deepen_integrations.cli.demo import ask_all  # noqa: PLC0415 (slow)
        print_answers(Console(highlight=False), ask_all(questions, fusion))
