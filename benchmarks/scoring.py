"""Time to score a given text on real pairs, against the members' own forwards over it.

Run with `python -m benchmarks.scoring --models FOLDER`, a folder with those of `benchmarks.given_text.MODELS`; `--help`
lists the options. Both take turns in one process, and the best turn of each counts. "Off" is the largest difference of
a token's log-probability (nats) from that of the same text run step by step, over its beginning. The prompt ends where
tokens of all members end: if one spans prompt and text, that member's own score takes another forward of all of it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tqdm.auto import tqdm

from benchmarks.given_text import MODELS, PAIRS, SETS, opened, whole_texts
from benchmarks.report import publish
from deepen_core import Ensemble

PROMPT = "Here are some stories for children, one after the other."
_STEPWISE = 300  # characters that are run step by step too


def long_text(ensemble: Ensemble, tokens: int) -> str:
    """Stories of together at least so many of main's tokens."""
    for number in count(1):
        text = " " + "\n\n".join(whole_texts("story", number))
        if len(ensemble.tokenize(text)) >= tokens:
            return text
    raise AssertionError


def seconds(work: Callable[[], object]) -> float:
    """Of a piece of work."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(ensemble: Ensemble, text: str, repeats: int) -> dict[str, Any]:
    """Seconds to score a text, and of one forward of each member over it."""
    members = ensemble._engine.members_counted
    score = ensemble.score(PROMPT, text)

    @torch.inference_mode()
    def own() -> None:
        for member, found in zip(members, score.members, strict=True):
            start = member.tokenizer.reader.read_text(PROMPT)
            ids = [*start.ids, *member.tokenizer.encode(PROMPT + text)]
            member.token_logprobs(ids, len(ids) - len(found.token_ids))

    turns = [(seconds(own), seconds(lambda: ensemble.score(PROMPT, text))) for _ in tqdm(range(repeats), leave=False)]
    forwards, together = (min(turn[n] for turn in turns) for n in (0, 1))
    short = text[:_STEPWISE]
    at_once = ensemble.score(PROMPT, short)
    with mock.patch("deepen_core.engine.state_reader.tree_run_of", return_value=None):
        stepwise = ensemble.score(PROMPT, short)
    off = max(abs(a - b) for a, b in zip(at_once.logprobs, stepwise.logprobs, strict=True))
    return {
        "tokens": len(score.token_ids),
        "forwards s": forwards,
        "score s": together,
        "ratio": together / forwards,
        "off": off,
    }


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"), help="the real models")
    parser.add_argument("--tokens", type=int, default=1000, help="of main's, at least")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.models is None or not SETS.is_dir():
        print(f"Give --models, a folder with {', '.join(MODELS)}, and put the test sets into {SETS}.")
        return
    rows = []
    for dtype in given.dtypes:
        for names in PAIRS:
            with opened(given.models, names, dtype, given.device) as ensemble:
                found = measure(ensemble, long_text(ensemble, given.tokens), given.repeats)
            rows.append({"main": names[0], "other": names[1], "dtype": dtype, **found})
            print(rows[-1], flush=True)
    publish("scoring", "Scoring a given text over the members' own forwards", rows)


if __name__ == "__main__":
    main()
