"""The commands that measure an ensemble on given tasks: `eval` and `fit`."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated

import typer

from deepen_integrations.cli import options as opt
from deepen_integrations.cli.application import commands, examples_of
from deepen_integrations.cli.console import console, notice, write
from deepen_integrations.cli.job_log import job_log
from deepen_integrations.cli.opening import open_ensemble, or_demo
from deepen_integrations.cli.session import clear_errors
from deepen_integrations.cli.status import Status


@commands.command(
    name="eval",
    epilog=examples_of(
        "deepen eval arc-test.jsonl piqa-test.jsonl -m ./general -m ./specialist --output results",
        "deepen eval arc-test.jsonl -m ./general -m ./specialist --fit arc-dev.jsonl --each-main --limit 200",
        "deepen eval --demo --limit 100",
        "deepen eval --harness arc_easy,piqa -m ./general -m ./specialist --limit 200",
    ),
)
@opt.spread(without=["main", "fusion", "gate"])
def evaluate(
    task: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TASK...",
            help="Files of JSON lines: `question`, `choices` (a list) and `answer` (the number of the right one, from "
            "0); or `question` and `answers`; or `prompt`, `test` and `entry_point`; or `source` and `translation`. "
            "None with `--harness`; none with `--demo` are the demo's own.",
            show_default=False,
        ),
    ] = None,
    *,
    load: opt.EnsembleOptions,
    harness: opt.HarnessOptions,
    fit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Fit weights on these questions, which are not among the tasks, and the shares that `perplexity` "
            "starts from.",
        ),
    ] = None,
    by: opt.By = "score",
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            "--fusion",
            metavar="NAME",
            help="Compare this strategy; repeat it for several.",
            show_default="deepen, product and union",
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Compare these weights that change; repeat it.",
            show_default="adaptive, confidence, consistency, perplexity and context",
        ),
    ] = None,
    gate: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            max=1,
            metavar="P",
            help="Compare asking the other members only where main's best token has less than this probability; repeat "
            "it.",
            show_default="0.5 and 0.9",
        ),
    ] = None,
    main: Annotated[
        str | None,
        typer.Option(
            metavar="MEMBER",
            help="The model whose tokens are chosen: index or name of a member.",
            show_default="0, or that of the named ensemble",
        ),
    ] = None,
    each_main: Annotated[bool, typer.Option("--each-main", help="Compare with each member as main.")] = False,
    as_chat: Annotated[bool, typer.Option("--chat", help="Ask by the members' chat templates.")] = False,
    shots: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="Show all of these open questions, with their answers, before those of their kind."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="At most so many open questions at once.")] = 16,
    votes: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Answer open questions also by the majority of N sampled answers, of each member alone and of each "
            "strategy.",
            show_default="none",
        ),
    ] = 0,
    vote_temperature: Annotated[
        float, typer.Option(metavar="T", help="The temperature at which these are sampled.")
    ] = 0.7,
    limit: opt.Limit = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Keep scores, table, plot and weights here; the same command goes on where it stopped."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: opt.Debug = False,
) -> None:
    """Measure what the ensemble is worth against each of its members, and say what to run.

    Questions with choices are answered by likelihood a byte. Every member reads each text once, and all settings are
    compared on that: each member alone, their vote, and each strategy at equal, fitted and changing weights. Open
    questions and exercises are answered in each setting by itself; programs that are written are run, so use a
    container for models that you do not trust. Translations are judged by chrF.

    With `--harness` the tasks are those of lm-evaluation-harness, run on each member alone and on the ensemble.
    """
    from deepen_integrations.cli import demo_evaluation as de  # noqa: PLC0415 (only this command needs it)
    from deepen_integrations.cli import evaluation as ev  # noqa: PLC0415 (as above)
    from deepen_integrations.cli import harness as hn  # noqa: PLC0415 (as above)

    with clear_errors(debug):
        if harness.harness is not None:
            others = {"--fit": fit, "--policy": policy, "--gate": gate, "--each-main": each_main, "--shots": shots}
            hn.without({"TASK": task, **others}, "--harness")
            asked = hn.harness_plan(harness, limit=limit, chat=as_chat, output=output)
            ensembles = hn.settings(dataclasses.replace(or_demo(load), main=main), strategy or ["deepen"])
            hn.run_settings(console(), ensembles, asked, as_json=as_json)
            return
        plan_of = functools.partial(
            ev.plan_of,
            fitted_on=fit or [],
            limit=limit,
            shots=shots or [],
            by=by,
            fusions=strategy,
            policies=policy,
            gates=gate,
            chat=as_chat,
            together=batch,
            votes=votes,
            vote_temperature=vote_temperature,
        )
        if load.demo and not task:
            parts = de.demo_parts(plan_of, load, output)
        else:
            hn.check_no_harness(task, load, harness)
            parts = [de.Part(plan_of(task or []), lambda: open_ensemble(load, chat=as_chat), output)]
        for part in parts:
            with part.open() as ensemble:
                plan = ev.with_mains(part.plan, ensemble, main, each=each_main)
                with Status("evaluating"), job_log():
                    outcome = ensemble.evaluate(plan, output=part.output)
            if as_json:
                write(ev.to_json(outcome), newline=False)
            else:
                ev.print_outcome(console(), outcome)
            if part.output is not None:
                notice(f"Written to {part.output}: {', '.join(ev.save_outcome(outcome, part.output))}", style="dim")


@commands.command(
    epilog=examples_of(
        "deepen fit arc-dev.jsonl -m ./general -m ./specialist --output weights.json",
        "deepen fit texts.jsonl --by likelihood -m ./general -m ./specialist",
        "deepen fit arc-dev.jsonl humaneval-dev.jsonl --policy perplexity -m ./general -m ./specialist",
    ),
)
@opt.spread(without=["weights"])
def fit(
    examples: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Files of JSON lines: questions with `question`, `choices` and `answer`, or `question` and `answers`, "
            "translations with `source` and `translation`, texts with `prompt` and `text`, or exercises in Python with "
            "`prompt`, `test` and `entry_point`, for which the programs that each member writes are run.",
        ),
    ],
    *,
    load: opt.EnsembleOptions,
    by: opt.By = "score",
    policy: Annotated[
        str,
        typer.Option(
            metavar="static|perplexity",
            help="Fit numbers, or the shares with which members are weighed by each prompt; the result is numbers "
            "where these are better.",
        ),
    ] = "static",
    limit: opt.Limit = None,
    output: Annotated[str | None, typer.Option(metavar="FILE", help="Save the weights here, as JSON.")] = None,
    debug: opt.Debug = False,
) -> None:
    """Find the weights with which the ensemble does best on examples, and print them for `--weights`."""
    from deepen_integrations.cli import evaluation as ev  # noqa: PLC0415 (only this command needs it)

    with clear_errors(debug):
        paths = ev.files(examples, "FILE")
        chosen, fitted = ev.checked_by(by), ev.checked_policy(policy)
        with open_ensemble(load) as ensemble, Status("fitting weights"), job_log():
            found = ensemble.fit_weights(paths, by=chosen, policy=fitted, limit=limit)
        write(found.argument)
        notice(ev.told(found), style="dim")
        if output is not None:
            found.save(output)
