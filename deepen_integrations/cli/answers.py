"""An answer in the terminal: its text on the standard output, and all that is said about it on the error stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from deepen_integrations.cli.console import console, notice, write
from deepen_integrations.cli.status import Status
from deepen_integrations.cli.tables import print_logprobs

if TYPE_CHECKING:
    from deepen_core.results import Chunk, Generation
    from deepen_core.tracing import Trace
    from deepen_integrations.cli.traces import Painter


class StreamedAnswer:
    """Writes an answer while it is generated.

    Args:
        stats: Say afterwards how fast it was.
        trim: Leave out the white space before it.
        painter: Colours a traced answer, whose tables follow.

    Attributes:
        text: What was written so far.
        trace: Of the whole answer, if it was traced.
    """

    def __init__(self, *, stats: bool, trim: bool = False, painter: Painter | None = None) -> None:
        self.text = ""
        self.trace: Trace | None = None
        self._painter = painter
        self._stats = stats
        self._trim = trim

    def show(self, chunks: Iterable[Chunk]) -> None:
        """Writes the answer, then its notes.

        Raises:
            DeepenError: If the answer ends with one; the text so far is written, and ends with a newline.
        """
        generation: Generation | None = None
        finished = False
        try:
            with Status("reading the prompt") as status:
                for chunk in chunks:
                    piece = chunk.text.lstrip() if self._trim and not self.text else chunk.text
                    if piece:
                        status.stop()
                        self._write(piece, chunk)
                        self.text += piece
                    generation = chunk.generation or generation
            finished = True
        finally:
            if finished or self.text:
                write()
        if generation is not None:
            self._report(generation)

    def _write(self, piece: str, chunk: Chunk) -> None:
        if self._painter is None:
            write(piece, newline=False)
        else:
            self._painter.write(piece, chunk.trace)

    def _report(self, generation: Generation) -> None:
        self.trace = generation.trace
        if self._painter is not None and generation.trace is not None:
            self._painter.explain(generation.trace)
        if generation.logprobs is not None:
            print_logprobs(console(stderr=True), generation.logprobs)
        show_notes(generation.warnings)
        if self._stats:
            notice(speed(generation), style="dim")


def show_notes(notes: Iterable[str]) -> None:
    """Writes each different note to the error stream."""
    for note in dict.fromkeys(notes):
        notice(f"Note: {note}")


def speed(generation: Generation) -> str:
    """Says how fast an answer was: tokens per second after the first token, and the seconds until that."""
    timings, usage = generation.timings, generation.usage
    first = timings.queue_s + timings.prefill_s
    later = usage.completion_tokens - 1
    rate = f"{later / timings.decode_s:.1f} tokens/s, " if later > 0 and timings.decode_s > 0 else ""
    return (
        f"{usage.completion_tokens} tokens in {first + timings.decode_s:.2f} s: {rate}first token after {first:.2f} s "
        f"({usage.prompt_tokens} tokens of prompt)."
    )
