"""The commands that answer: `generate` and `chat`."""

from __future__ import annotations

from typing import Annotated

import typer

from deepen_core.voting import Choice
from deepen_integrations.cli import options as opt
from deepen_integrations.cli.answers import StreamedAnswer, show_notes
from deepen_integrations.cli.application import commands, examples_of, to_json
from deepen_integrations.cli.chat import Chat
from deepen_integrations.cli.console import console, notice, write
from deepen_integrations.cli.conversation import Conversation
from deepen_integrations.cli.opening import open_ensemble
from deepen_integrations.cli.session import checked_sampling, checked_vote, clear_errors, read_prompt
from deepen_integrations.cli.status import Status
from deepen_integrations.cli.tables import print_votes
from deepen_integrations.cli.terminal_input import standard_input
from deepen_integrations.cli.traces import Painter


@commands.command(
    epilog=examples_of(
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
    stats: opt.Stats = False,
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
        if voted is not None and params.get("logprobs") is not None and not as_json:
            raise typer.BadParameter("With --votes they are shown by --json only.", param_hint="--logprobs")
        if voted is not None and sampling.trace and not as_json:
            raise typer.BadParameter("With --votes it is shown by --json only.", param_hint="--trace")
        with open_ensemble(load) as ensemble:
            for warning in ensemble.info.warnings:
                notice(f"Warning: {warning}")
            if voted is None and not as_json:
                painter = Painter() if sampling.trace else None
                StreamedAnswer(stats=stats, painter=painter).show(ensemble.stream(prompt, **params))
                return
            with Status("answering"):
                ask = ensemble.generate if voted is None else ensemble.vote
                found = ask(prompt, **params, **(voted or {}))
        write(to_json(found) if as_json else found.text)
        if isinstance(found, Choice) and not as_json:
            _show_votes(found)


def _show_votes(choice: Choice) -> None:
    print_votes(console(stderr=True), choice)
    generations = [candidate.generation for candidate in choice.candidates if candidate.generation]
    show_notes(note for generation in generations for note in generation.warnings)


@commands.command(
    epilog=examples_of(
        "deepen chat",
        'deepen chat -m ./general -m ./specialist "Why is the sky blue?" --stats',
        "deepen chat -e my-pair",
        'deepen chat -m ./general -m ./specialist --system "Answer in one sentence." --temperature 0.7',
        "deepen chat -m ./general -m ./specialist --no-enable-thinking",
    )
)
@opt.spread(without=["control_tokens", "logprobs", "trace"])
def chat(
    text: Annotated[
        str | None,
        typer.Argument(help="One question, to answer it and end; `-` reads it from the standard input."),
    ] = None,
    *,
    load: opt.EnsembleOptions,
    system: Annotated[
        str | None, typer.Option(help="Instruction that precedes the conversation.", metavar="TEXT")
    ] = None,
    sampling: opt.SamplingOptions,
    stats: opt.Stats = False,
    debug: opt.Debug = False,
) -> None:
    """Talk to the ensemble; every member reads the conversation through its own chat template.

    Only answers go to the standard output. Ctrl-C interrupts an answer and keeps its beginning; Ctrl-D or `/quit` ends
    the conversation, and `/help` lists what else it understands.
    """
    with clear_errors(debug):
        if text is None:
            standard_input()
        question = None if text is None else read_prompt(text)
        params = checked_sampling(sampling)
        with open_ensemble(load, chat=True) as ensemble:
            conversation = Conversation(ensemble, params, system, stats=stats)
            for warning in ensemble.info.warnings:
                notice(f"Warning: {warning}")
            if question is None:
                Chat(conversation).run()
            else:
                conversation.ask(question)
