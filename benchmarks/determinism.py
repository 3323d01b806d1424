"""How many answers depend on what is decoded beside them, and what `deterministic=True` costs.

Run with `python -m benchmarks.determinism --models FOLDER`, a folder with those of `benchmarks.given_text.MODELS`;
`--help` lists the options. Greedy answers to the same prompts, each asked alone, then all at once; those that differ in
any token are counted, and those with any other log-probability. "Time" is that of the deterministic batch over the
usual one, in the same process.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from benchmarks.given_text import MODELS, opened
from benchmarks.report import publish
from deepen_core import Ensemble, Generation

PROMPTS = [
    f"{how} {what}."
    for how in ("Write a story about", "Explain in a few words what you know about")
    for what in ("dogs", "the sea", "a baker", "rain", "a clock", "two friends", "ice", "a map")
]


def measure(ensemble: Ensemble, tokens: int) -> dict[str, Any]:
    """Asks each prompt alone and all together, in both ways."""
    found: dict[str, Any] = {"answers": len(PROMPTS), "tokens": tokens}
    seconds = {}
    for way, deterministic in (("usually", False), ("deterministic", True)):
        options: dict[str, Any] = {"max_new_tokens": tokens, "logprobs": 0, "deterministic": deterministic}
        alone = []
        for prompt in tqdm(PROMPTS, desc=way, leave=False):
            ensemble.forget()
            alone.append(ensemble.generate(prompt, **options))
        ensemble.forget()
        began = time.perf_counter()
        together = ensemble.generate(PROMPTS, **options)
        seconds[way] = time.perf_counter() - began
        pairs = list(zip(alone, together, strict=True))
        found[f"other tokens, {way}"] = sum(one.token_ids != other.token_ids for one, other in pairs)
        found[f"other bits, {way}"] = sum(_bits(one) != _bits(other) for one, other in pairs)
    return {**found, "time": seconds["deterministic"] / seconds["usually"]}


def _bits(answer: Generation) -> list[float]:
    assert answer.logprobs is not None, "asked for"
    return [token.logprob for token in answer.logprobs]


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"), help="the real models")
    parser.add_argument("--members", nargs="+", default=list(MODELS)[:2], choices=list(MODELS), help="main first")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.models is None:
        print(f"Give --models, a folder with {', '.join(MODELS)}.")
        return
    rows = []
    for dtype in given.dtypes:
        with opened(given.models, given.members, dtype, given.device) as ensemble:
            rows.append({"members": " + ".join(given.members), "dtype": dtype, **measure(ensemble, given.tokens)})
        print(rows[-1], flush=True)
    publish("determinism", "Answers that depend on their neighbours", rows)


if __name__ == "__main__":
    main()
