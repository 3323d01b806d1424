"""What `deepen eval --harness` does: each member alone and the ensemble on tasks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

from deepen_core.config import PRESETS
from deepen_core.errors import ConfigurationError
from deepen_core.evaluation.ledger import open_folder
from deepen_integrations.cli.console import notice, write
from deepen_integrations.cli.evaluation import in_a_file_name
from deepen_integrations.cli.opening import member_count, open_ensemble

if TYPE_CHECKING:
    from deepen_core.results import EnsembleInfo
    from deepen_integrations.cli.options import EnsembleOptions, HarnessOptions
    from deepen_integrations.harness.run import HarnessPlan


def without(given: Mapping[str, Any], option: str) -> None:
    """Rejects options that have no meaning beside another.

    Args:
        given: By their names on the command line.
        option: The other.

    Raises:
        typer.BadParameter: If one was given.
    """
    if beside := [name for name, value in given.items() if value]:
        raise typer.BadParameter(f"It does not go with {beside[0]}.", param_hint=option)


def check_no_harness(task: Sequence[str] | None, load: EnsembleOptions, asked: HarnessOptions) -> None:
    """Rejects a command that lacks tasks, or has options for the harness's alone.

    Args:
        task: Files of tasks.
        load: Which ensemble.
        asked: What the harness would run.

    Raises:
        typer.BadParameter: If there are no files, or such an option.
    """
    if not task:
        raise typer.BadParameter("Give at least one file, or tasks of the harness with --harness.", param_hint="TASK")
    few_shot = asked.few_shot is not None
    alone = {"--weights": load.weights, "--harness-tasks": asked.harness_tasks, "--few-shot": few_shot}
    if given := [name for name, value in alone.items() if value]:
        raise typer.BadParameter("It goes with --harness only.", param_hint=given[0])


def harness_plan(asked: HarnessOptions, *, limit: int | None, chat: bool, output: str | None) -> HarnessPlan:
    """Returns the plan that options ask for.

    Raises:
        typer.BadParameter: If there is no name.
        ConfigurationError: If the harness is not installed.
        EvaluationError: If there is no such task, or the folder cannot be written.
    """
    names = [name.strip() for name in (asked.harness or "").split(",") if name.strip()]
    if not names:
        raise typer.BadParameter("Give at least one task.", param_hint="--harness")
    try:
        from deepen_integrations.harness.run import HarnessPlan  # noqa: PLC0415 (slow, and needs an extra)
    except ImportError as missing:
        raise ConfigurationError(f"--harness: {missing}") from missing
    folder = None if asked.harness_tasks is None else Path(asked.harness_tasks)
    cache = None if output is None else Path(output)
    if cache is not None:
        open_folder(cache, {"harness": True})
    return HarnessPlan.checked(names, folder, few_shot=asked.few_shot, limit=limit, chat=chat, cache=cache)


def settings(load: EnsembleOptions, fusions: Sequence[str]) -> list[EnsembleOptions]:
    """Returns the options of each member alone, and of the ensemble with each strategy.

    Args:
        load: The ensemble.
        fusions: Names of strategies.

    Raises:
        typer.BadParameter: For a strategy that is unknown.
        ConfigurationError: If there is no ensemble of that name.
    """
    if unknown := [name for name in fusions if name not in PRESETS]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(PRESETS)}.", param_hint="--fusion")
    count = member_count(load)
    shares = (",".join("1" if place == number else "0" for place in range(count)) for number in range(count))
    alone = [replace(load, main=str(number), weights=weights) for number, weights in enumerate(shares)]
    return alone + [replace(load, fusion=fusion) for fusion in fusions if count > 1]


def run_settings(console: Console, ensembles: Sequence[EnsembleOptions], plan: HarnessPlan, *, as_json: bool) -> None:
    """Runs the plan on several ensembles, and prints the harness's table of each as soon as it is known.

    Args:
        console: Prints tables.
        ensembles: Their options.
        plan: What to run.
        as_json: Print JSON in place of tables, at the end.

    Raises:
        DeepenError: If a member or the harness fails.
    """
    from deepen_integrations.harness.run import run_harness, table, to_json  # noqa: PLC0415 (slow)

    every: dict[str, Any] = {}
    for options in ensembles:
        with open_ensemble(options, chat=plan.chat) as ensemble:
            label = _label(ensemble.info)
            every[label] = found = run_harness(ensemble, plan)
        samples = found.pop("samples")
        if plan.cache is not None:
            place = plan.cache / in_a_file_name(label)
            place.with_name(f"{place.name}.json").write_text(to_json(found), encoding="utf-8")
            place.with_name(f"{place.name}-samples.json").write_text(to_json(samples), encoding="utf-8")
        if not as_json:
            console.print(Text(label, style="bold"))
            console.print(table(found), soft_wrap=True, markup=False)
    if as_json:
        write(to_json(every), newline=False)
    if plan.cache is not None:
        notice(f"Written to {plan.cache}: results and samples of {', '.join(every)}", style="dim")


def _label(info: EnsembleInfo) -> str:
    taking_part = [member for member in info.members if member.weight]
    if len(taking_part) == 1:
        return f"{taking_part[0].name} alone"
    weights = " ".join(f"{member.weight:.3g}" for member in info.members)
    return f"{info.fusion} {weights if info.weight_policy == 'static' else info.weight_policy}, main {info.main}"
