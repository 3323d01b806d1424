"""The commands that show what an ensemble is: `info`, `demo` and `doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from deepen_core.demo import member_paths
from deepen_integrations.cli import options as opt
from deepen_integrations.cli.application import commands, examples_of, to_json
from deepen_integrations.cli.console import console, write
from deepen_integrations.cli.doctor import print_report
from deepen_integrations.cli.opening import named_options, open_ensemble, or_demo
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
            write(to_json(ensemble.info))
        else:
            print_info(console(), ensemble.info)


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
        print_answers(console(), ask_all(questions, fusion))


@commands.command(
    epilog=examples_of(
        "deepen doctor",
        "deepen doctor -m ./general -m ./specialist --try",
        "deepen doctor -e my-pair --json",
    )
)
@opt.spread(without=["main", "weights", "fusion", "gate", "prompt", "languages"])
def doctor(
    *,
    load: opt.EnsembleOptions,
    try_members: Annotated[
        bool, typer.Option("--try", help="Load the members, one after the other, and try what each can do.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    debug: opt.Debug = False,
) -> None:
    """Examine versions, devices, memory, extras, and what each member can and cannot do, with the reason.

    Without `--try` no weights are read. Ends with code 1 if something is wrong.
    """
    with clear_errors(debug):
        options = named_options(or_demo(load))
        with Status("examining"):
            from deepen_integrations.doctor.examination import examine  # noqa: PLC0415 (imports torch)

            report = examine({"models": member_paths(), **options}, try_members=try_members)
        if as_json:
            write(to_json(report))
        else:
            print_report(console(), report)
    raise typer.Exit(int(bool(report.wrong)))
