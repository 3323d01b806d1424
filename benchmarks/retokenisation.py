"""What it costs a listening member to keep its text canonical: tokens run again, and time against encoding it whole.

Run with `python -m benchmarks.retokenisation`. Uses the tokenizers beside the project.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.report import publish
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.sampling.detokenizer import Utf8Stream
from deepen_core.tokenization.retokenizer import AlignedText

SHARED = Path(__file__).parents[2] / "shared"
NAMES = ("gpt-2", "falcon", "mistral-v1", "mistral-tekken")


def pieces(main: MemberTokenizer, text: str) -> list[str]:
    """The text as main speaks it, token by token."""
    stream = Utf8Stream()
    values = [main.vocabulary.token_bytes(i) or b"" for i in main.encode(text)]
    if values and main.vocabulary.starts_with_space:
        values[0] = values[0].removeprefix(b" ")
    return [stream.feed(value) for value in values]


def listen(main: MemberTokenizer, other: MemberTokenizer, texts: list[str]) -> dict[str, Any]:
    """Work and time of one pair over some texts."""
    spoken = [pieces(main, text) for text in texts]
    run = own = appended = 0
    began = time.perf_counter()
    for text in spoken:
        aligned, held = AlignedText(other.backend, other.boundaries), list[int]()
        for piece in text:
            place, tail = aligned.append(piece)
            same = place
            while same < len(held) and same < place + len(tail) and held[same] == tail[same - place]:
                same += 1
            run += place + len(tail) - same
            held[place:] = tail
            appended += 1
        own += len(held)
    tail_s = time.perf_counter() - began
    began = time.perf_counter()
    for text in spoken:
        for end in range(1, len(text) + 1):
            other.encode("".join(text[:end]))
    whole_s = time.perf_counter() - began
    return {
        "tokens run / own token": run / own,
        "main's tokens / own tokens": appended / own,
        "us per token": 1e6 * tail_s / appended,
        "encoding all / encoding the tail": whole_s / tail_s,
    }


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", type=int, default=4, help="join so many stories to a text")
    given = parser.parse_args()
    if not SHARED.is_dir():
        print(f"{SHARED} is not there: it holds the tokenizers that are compared.")
        return
    lines = (SHARED / "data" / "tinystories_valid.txt").read_text(encoding="utf-8").split("\n")
    texts = ["\n".join(lines[: given.stories]), "\n".join(lines[-given.stories :])]
    sides = {n: MemberTokenizer(AutoTokenizer.from_pretrained(SHARED / "tokenizers" / n), n) for n in NAMES}
    rows = [
        {"main": a, "listener": b, **listen(sides[a], sides[b], texts)} for a, b in itertools.permutations(NAMES, 2)
    ]
    lengths = ", ".join(f"{len(t):,}" for t in texts)
    publish("retokenisation", f"Keeping a growing text canonical (texts of {lengths} characters)", rows)


if __name__ == "__main__":
    main()
