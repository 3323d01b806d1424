"""`deepen trace`: which member decided which token of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from deepen_core.errors import TraceError
from deepen_core.tracing import Trace
from deepen_integrations.cli import options as opt
from deepen_integrations.cli.answers import StreamedAnswer
from deepen_integrations.cli.application import commands, examples_of
from deepen_integrations.cli.console import notice, write
from deepen_integrations.cli.opening import open_ensemble
from deepen_integrations.cli.session import checked_sampling, clear_errors, read_prompt
from deepen_integrations.cli.traces import Painter

_EXAMPLE = "Bianca's home is in"
_EXAMPLE_TOKENS = 40


@dataclass(frozen=True)
class TraceFiles:
    """Where a trace is written."""

    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the members' tokens on hover.")
    ] = None
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Write a picture.")] = None
    jsonl: Annotated[
        Path | None, typer.Option("--jsonl", metavar="FILE", help="Write a line of JSON for each step.")
    ] = None

    def write(self, trace: Trace, title: str) -> None:
        """Writes the files that were asked for.

        Raises:
            TraceError: If a file cannot be written.
        """
        made = {self.html: trace.to_html, self.svg: trace.to_svg}
        for path, draw in made.items():
            if path is not None:
                _write(path, draw(title))
        if self.jsonl is not None:
            _write(self.jsonl, trace.to_jsonl())


@commands.command(
    epilog=examples_of(
        'deepen trace -m ./general -m ./specialist "Why is the sky blue?"',
        'deepen trace -e my-pair "Why is the sky blue?" --html trace.html',
        "deepen trace --demo --svg trace.svg",
    )
)
@opt.spread(without=["logprobs", "trace"])
def trace(
    text: Annotated[
        str | None,
        typer.Argument(help="A question; `-` reads it from the standard input.", show_default=f"{_EXAMPLE} (demo)"),
    ] = None,
    *,
    load: opt.EnsembleOptions,
    plain: Annotated[
        bool, typer.Option("--plain", help="Continue the text, rather than answer it as a message of a conversation.")
    ] = False,
    files: TraceFiles,
    sampling: opt.SamplingOptions,
    debug: opt.Debug = False,
) -> None:
    """Answer, and show who decided what: each token in the colour of the member that decided it.

    No colour is agreement of all members. Tables of the steps in which they differ, and of what each member did, go to
    the error stream. Where a member has no chat template, the text is continued.
    """
    with clear_errors(debug):
        example = text is None and not load.member and not load.ensemble
        prompt = _EXAMPLE if example else read_prompt(text)
        params = checked_sampling(sampling)
        if example:
            params = {"max_new_tokens": _EXAMPLE_TOKENS, **params}
        answer = StreamedAnswer(stats=False, painter=Painter())
        with open_ensemble(load) as ensemble:
            for warning in ensemble.info.warnings:
                notice(f"Warning: {warning}")
            asks = not (plain or example) and ensemble.has_chat_template
            if example:
                write(prompt, newline=False)
            request = [{"role": "user", "content": prompt}] if asks else prompt
            answer.show(ensemble.stream(request, trace=True, **params))
            assert answer.trace is not None, "the whole answer has one"
            files.write(answer.trace, prompt)


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as problem:
        raise TraceError(f"The trace cannot be written to {path}: {problem}.") from problem
    notice(f"Wrote {path}.", style="none")
