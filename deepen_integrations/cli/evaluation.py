"""What `deepen eval` and `deepen fit` do: plans from options, tables, and files beside the scores."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepen_core.config import PRESETS
from deepen_core.config.weights import POLICIES
from deepen_integrations.cli.plot import plotted

if TYPE_CHECKING:
    from deepen_core import Ensemble
    from deepen_core.evaluation.cost import Cost
    from deepen_core.evaluation.fitted_weights import By, FittedPolicy, FittedWeights
    from deepen_core.evaluation.plan import Plan
    from deepen_core.evaluation.run import Outcome
    from deepen_core.evaluation.summary import Row

Name = TypeVar("Name", bound=str)


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Prints the table of an evaluation, the fitted weights, and what to run."""
    summary = outcome.summary
    several = len({row.main for row in summary.rows if row.main}) > 1
    caption = "points: against the best member alone, with 95 % intervals"
    table = Table(title="Right answers, %", title_justify="left", caption=caption, caption_justify="left")
    table.add_column("", overflow="fold")
    if several:
        table.add_column("main", overflow="fold")
    for task, count in summary.items.items():
        table.add_column(f"{task} ({count})", justify="right")
    table.add_column("mean", justify="right")
    table.add_column("points", justify="right", no_wrap=True)
    for row in summary.rows:
        marked = "bold" if row is (summary.recommended or summary.best_member) else ""
        cells = [row.label, *([row.main] if several else []), *(f"{100 * s:.1f}" for s in row.shares.values())]
        table.add_row(*(Text(cell) for cell in (*cells, f"{100 * row.mean:.1f}", _difference(row))), style=marked)
    console.print(table)
    for fit in outcome.weights:
        options = f"--fusion {fit.fusion} --main {fit.main} --weights {fit.argument}"
        asked = ", for weights by the prompt" if fit.fitted_for != "static" else ""
        console.print(f"Fitted on {', '.join(fit.tasks)}{asked}: {options}", soft_wrap=True)
    if outcome.costs:
        console.print(_costs(outcome.costs))
    for main, shares in outcome.asked.items():
        told = ", ".join(f"{threshold}: {100 * share:.0f} %" for threshold, share in shares.items())
        if told:
            console.print(f"Steps in which a gate asks others than {main}: {told}", soft_wrap=True)
    console.print(Text(summary.advice, style="bold"), soft_wrap=True)


def _costs(costs: Sequence[Cost]) -> Table:
    table = Table(title="Answers to open questions", title_justify="left")
    for heading in ("", "main"):
        table.add_column(heading, overflow="fold")
    for heading in ("tokens", "others asked in", "ms a token"):
        table.add_column(heading, justify="right")
    for one in costs:
        time = "" if one.seconds is None else f"{1000 * one.seconds:.1f}"
        asked = f"{100 * one.asked:.0f} %" if one.asked else ""
        table.add_row(Text(one.label), Text(one.main), f"{one.tokens:,}", asked, time)
    return table


def _difference(row: Row) -> str:
    off = row.difference
    if off is None:
        return "best member"
    return f"{100 * off.mean:+.1f} ({100 * off.low:+.1f} to {100 * off.high:+.1f})"


def save_outcome(outcome: Outcome, output: str) -> list[str]:
    """Writes `summary.json`, the fitted weights and, where matplotlib is installed, a plot.

    Args:
        outcome: What was found.
        output: The folder.

    Returns:
        The names of the files.
    """
    folder = Path(output)
    written = ["summary.json"]
    (folder / "summary.json").write_text(to_json(outcome), encoding="utf-8")
    for fit in outcome.weights:
        policy = "" if fit.fitted_for == "static" else f"-{fit.fitted_for}"
        name = f"weights-{fit.fusion}{policy}-{in_a_file_name(fit.main)}.json"
        fit.save(folder / name)
        written.append(name)
    if plotted(outcome.summary, folder / "summary.svg"):
        written.append("summary.svg")
    return written


def in_a_file_name(text: str) -> str:
    """Returns a text as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "-." else "-" for c in text)


def to_json(outcome: Outcome) -> str:
    """Returns everything that was found, as JSON."""
    return json.dumps({**asdict(outcome), "advice": outcome.summary.advice}, indent=2, ensure_ascii=False) + "\n"


def plan_of(
    tasks: Sequence[str],
    fitted_on: Sequence[str],
    limit: int | None,
    *,
    shots: Sequence[str],
    by: str,
    fusions: Sequence[str] | None,
    policies: Sequence[str] | None,
    gates: Sequence[float] | None,
    chat: bool,
    together: int,
    votes: int,
    vote_temperature: float,
) -> Plan:
    """Returns the plan that options ask for; None stands for what `Plan` has.

    Raises:
        typer.BadParameter: For unknown names and files that are not there.
        EvaluationError: If a file holds no task, or the tasks do not fit together.
    """
    from deepen_core.evaluation.plan import Plan  # noqa: PLC0415 (slow)
    from deepen_core.evaluation.task_file import read_task  # noqa: PLC0415

    plan = Plan(
        [read_task(path, limit) for path in files(tasks, "TASK")],
        [read_task(path, limit) for path in files(fitted_on, "--fit")],
        fusions=_known(fusions, PRESETS, "--fusion") or Plan.fusions,
        policies=_known(policies, POLICIES, "--policy") or Plan.policies,
        gates=gates or Plan.gates,
        by=checked_by(by),
        chat=chat,
        shots=[read_task(path) for path in files(shots, "--shots")],
        together=together,
        votes=votes,
        vote_temperature=vote_temperature,
    )
    plan.check()
    return plan


def with_mains(plan: Plan, ensemble: Ensemble, main: str | None, *, each: bool) -> Plan:
    """Returns a plan with the main members that options ask for.

    Args:
        plan: The plan.
        ensemble: The ensemble.
        main: Index or name of the main member; the ensemble's own if None.
        each: Each member in turn instead.

    Raises:
        ConfigurationError: If there is no such member.
    """
    from deepen_core.members.loading import main_index  # noqa: PLC0415 (slow)

    names = [member.name for member in ensemble.info.members]
    named = ensemble.info.main if main is None else main
    place = int(named) if main is not None and named.removeprefix("-").isdecimal() else named
    return replace(plan, mains=range(len(names)) if each else (main_index(place, names, ()),))


def _known(given: Sequence[str] | None, names: Collection[str], hint: str) -> list[str]:
    unknown = [name for name in given or () if name not in names]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(names)}.", param_hint=hint)
    return list(given or ())


def checked_by(text: str) -> By:
    """Returns what fitted weights are best at.

    Raises:
        typer.BadParameter: If it is neither "score" nor "likelihood".
    """
    return _one_of(text, {"score": "score", "likelihood": "likelihood"}, "--by")


def checked_policy(text: str) -> FittedPolicy:
    """Returns the policy that weights are fitted for.

    Raises:
        typer.BadParameter: If it is neither "static" nor "perplexity".
    """
    return _one_of(text, {"static": "static", "perplexity": "perplexity"}, "--policy")


def _one_of(text: str, known: Mapping[str, Name], hint: str) -> Name:
    if text in known:
        return known[text]
    raise typer.BadParameter(f"{text!r} is neither {' nor '.join(known)}.", param_hint=hint)


def told(fit: FittedWeights) -> str:
    """Returns what fitted weights come to, in a sentence or two."""
    if fit.tells_nothing:
        return (
            f"{' and '.join(fit.members)}: no member answers any example right, so nothing shows which weights are "
            "best. Give easier examples."
        )
    policy, weights = ("", "weights") if fit.policy == "static" else (f", policy {fit.policy}", "shares")
    found = f"{_value(fit, fit.value)}{' right' if fit.by == 'score' else ' bits a byte of right answers'}"
    of_equal, alone = (_value(fit, value) for value in (fit.equal_value, fit.alone_value))
    text = (
        f"{' and '.join(fit.members)}, main {fit.main}, fusion {fit.fusion}{policy}: {found}, {of_equal} at equal "
        f"{weights}, {alone} by main alone."
    )
    if fit.by_prompt is None:
        return text
    return (
        f"{text} Weights that follow the prompt come to {_value(fit, fit.by_prompt)}: these prompts do not show which "
        "member is right."
    )


def _value(fit: FittedWeights, value: float) -> str:
    return f"{100 * value:.1f} %" if fit.by == "score" else f"{value:.3f}"


def files(given: Sequence[str], hint: str) -> list[Path]:
    """Returns the files of an option.

    Raises:
        typer.BadParameter: If one is not there.
    """
    found = [Path(path) for path in given]
    if missing := [str(path) for path in found if not path.is_file()]:
        raise typer.BadParameter(f"There is no file {' and no file '.join(missing)}.", param_hint=hint)
    return found
