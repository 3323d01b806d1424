"""The commands of `deepen` with their options and help."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from deepen_integrations.cli import options as opt
from deepen_integrations.cli.serve import serve
from deepen_integrations.cli.session import (
    checked_sampling,
    checked_vote,
    clear_errors,
    notice,
    open_ensemble,
    read_prompt,
)

if TYPE_CHECKING:
    from deepen_core import Ensemble
    from deepen_core.voting import Choice

commands = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deepen-integrations {version('deepen-integrations')}")
        raise typer.Exit


def _to_json(record: Any) -> str:
    """Formats a result as JSON. The bytes of a token become text, with escapes where they are not UTF-8."""
    return json.dumps(
        dataclasses.asdict(record),
        ensure_ascii=False,
        indent=2,
        default=lambda data: data.decode("utf-8", "backslashreplace"),
    )


def _examples(*lines: str) -> str:
    return "\n\n".join(["Examples:", *(f"`{line}`" for line in lines)])


@commands.callback()
def deepen(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Several local language models, each with its own tokenizer, answer as one.

    Without `--member` every command uses two small models that come with the package.
    `deepen COMMAND --help` has the options and examples.
    """


@commands.command(
    epilog=_examples(
        'deepen generate -m ./general -m ./specialist "Once upon a time"',
        'deepen generate -m ./general -m ./specialist --weights 0.7,0.3 --temperature 0.8 --seed 1 "Once"',
        'deepen generate -m ./general -m ./specialist --votes 5 --vote-among all --extract number "What is 6 times 7?"',
        r'cat prompt.txt | deepen generate -m ./general -m ./specialist --stop "\n" --json',
    )
)
@opt.spread(without=["reasoning", "enable_thinking", "template_option"])
def generate(
    text: Annotated[
        str | None, typer.Argument(help="Text to continue; `-` or nothing reads the standard input.")
    ] = None,
    *,
    load: opt.EnsembleOptions,
    sampling: opt.SamplingOptions,
    voting: opt.VoteOptions,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole result as JSON instead of streaming the text.")
    ] = False,
    debug: opt.Debug = False,
) -> None:
    """Continue a text, token by token.

    The new text goes to the standard output as it is generated, everything else to the error stream. With `--votes` it
    is the answer that wins, and a table of all goes to the error stream.
    """
    with clear_errors(debug):
        prompt = read_prompt(text)
        params = checked_sampling(sampling)
        voted = checked_vote(voting, params)
        with open_ensemble(load) as ensemble:
            for warning in ensemble.info.warnings:
                notice(f"Warning: {warning}")
            if voted is not None:
                choice = ensemble.vote(prompt, **params, **voted)
                typer.echo(_to_json(choice) if as_json else choice.text)
                if not as_json:
                    _print_votes(choice)
                return
            if as_json:
                typer.echo(_to_json(ensemble.generate(prompt, **params)))
                return
            _print_stream(ensemble, prompt, params)


def _print_votes(choice: Choice) -> None:
    from deepen_integrations.cli.tables import print_votes  # noqa: PLC0415 (only some commands need it)

    print_votes(Console(stderr=True, highlight=False), choice)
    notes = [note for candidate in choice.candidates if candidate.generation for note in candidate.generation.warnings]
    for note in dict.fromkeys(notes):
        notice(f"Note: {note}")


def _print_stream(ensemble: Ensemble, prompt: str, params: dict[str, Any]) -> None:
    warnings: list[str] = []
    try:
        for chunk in ensemble.stream(prompt, **params):
            typer.echo(chunk.text, nl=False)
            if chunk.generation is not None:
                warnings = chunk.generation.warnings
    finally:
        typer.echo()
    for warning in warnings:
        notice(f"Note: {warning}")


@commands.command(
    epilog=_examples(
        "deepen chat",
        'deepen chat -m ./general -m ./specialist --system "Answer in one sentence." --temperature 0.7',
        "deepen chat -m ./general -m ./specialist --no-enable-thinking",
    )
)
@opt.spread(without=["control_tokens", "logprobs"])
def chat(
    *,
    load: opt.EnsembleOptions,
    system: Annotated[
        str | None, typer.Option(help="Instruction that precedes the conversation.", metavar="TEXT")
    ] = None,
    sampling: opt.SamplingOptions,
    debug: opt.Debug = False,
) -> None:
    """Talk to the ensemble; every member reads the conversation through its own chat template.

    Ctrl-C interrupts an answer and keeps its beginning. `/reset` starts over, `/info` describes the ensemble,
    `/quit` or Ctrl-D ends.
    """
    from deepen_integrations.cli.chat import Chat  # noqa: PLC0415 (only this command needs it)

    with clear_errors(debug):
        params = checked_sampling(sampling)
        with open_ensemble(load, chat=True) as ensemble:
            Chat(ensemble, params, system).run()


@commands.command(
    epilog=_examples(
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
    from deepen_integrations.cli.tables import print_info  # noqa: PLC0415 (only some commands need it)

    with clear_errors(debug), open_ensemble(load) as ensemble:
        if as_json:
            typer.echo(_to_json(ensemble.info))
        else:
            print_info(Console(highlight=False), ensemble.info)


@commands.command(
    epilog=_examples(
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
    from deepen_integrations.cli.demo import ask_all  # noqa: PLC0415 (only this command needs it)
    from deepen_integrations.cli.tables import print_answers  # noqa: PLC0415

    with clear_errors(debug):
        print_answers(Console(highlight=False), ask_all(questions, fusion))


@commands.command(
    name="eval",
    epilog=_examples(
        "deepen eval arc-test.jsonl piqa-test.jsonl -m ./general -m ./specialist --output results",
        "deepen eval arc-test.jsonl -m ./general -m ./specialist --fit arc-dev.jsonl --each-main --limit 200",
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
            "0); or `question` and `answers`; or `prompt`, `test` and `entry_point`. None with `--harness`.",
            show_default=False,
        ),
    ] = None,
    *,
    load: opt.EnsembleOptions,
    harness: opt.HarnessOptions,
    fit: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Fit weights on these questions, which are not among the tasks."),
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
        typer.Option(metavar="NAME", help="Compare these weights that change by step; repeat it.", show_default="all"),
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
        str, typer.Option(metavar="MEMBER", help="The model whose tokens are chosen: index or name of a member.")
    ] = "0",
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
    container for models that you do not trust.

    With `--harness` the tasks are those of lm-evaluation-harness, run on each member alone and on the ensemble.
    """
    from deepen_integrations.cli import evaluation as ev  # noqa: PLC0415 (only this command needs it)
    from deepen_integrations.cli import harness as hn  # noqa: PLC0415 (as above)

    with clear_errors(debug):
        if harness.harness is not None:
            others = {"--fit": fit, "--policy": policy, "--gate": gate, "--each-main": each_main, "--shots": shots}
            hn.without({"TASK": task, **others}, "--harness")
            asked = hn.harness_plan(harness, limit=limit, chat=as_chat, output=output)
            ensembles = hn.settings(dataclasses.replace(load, main=main), strategy or ["deepen"])
            hn.run_settings(Console(highlight=False), ensembles, asked, as_json=as_json)
            return
        hn.check_no_harness(task, load, harness)
        plan = ev.plan_of(
            task or [],
            fit or [],
            limit,
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
        with open_ensemble(load, chat=as_chat) as ensemble:
            outcome = ensemble.evaluate(ev.with_mains(plan, ensemble, main, each=each_main), output=output)
        if as_json:
            typer.echo(ev.to_json(outcome), nl=False)
        else:
            ev.print_outcome(Console(highlight=False), outcome)
        if output is not None:
            notice(f"Written to {output}: {', '.join(ev.save_outcome(outcome, output))}", style="dim")


@commands.command(
    epilog=_examples(
        "deepen fit arc-dev.jsonl -m ./general -m ./specialist --output weights.json",
        "deepen fit texts.jsonl --by likelihood -m ./general -m ./specialist",
    ),
)
@opt.spread(without=["weights"])
def fit(
    examples: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Files of JSON lines: questions with `question`, `choices` and `answer`, or texts with `prompt` and "
            "`text`.",
        ),
    ],
    *,
    load: opt.EnsembleOptions,
    by: opt.By = "score",
    limit: opt.Limit = None,
    output: Annotated[str | None, typer.Option(metavar="FILE", help="Save the weights here, as JSON.")] = None,
    debug: opt.Debug = False,
) -> None:
    """Find the weights with which the ensemble does best on examples, and print them for `--weights`."""
    from deepen_integrations.cli import evaluation as ev  # noqa: PLC0415 (only this command needs it)

    with clear_errors(debug):
        paths = ev.files(examples, "FILE")
        chosen = ev.checked_by(by)
        with open_ensemble(load) as ensemble:
            found = ensemble.fit_weights(paths, by=chosen, limit=limit)
        typer.echo(",".join(f"{weight:g}" for weight in found.weights))
        notice(ev.told(found), style="dim")
        if output is not None:
            found.save(output)


commands.command(
    epilog=_examples("deepen serve -m ./general -m ./specialist --port 8000", "DEEPEN_API_KEY=... deepen serve --demo")
)(serve)
