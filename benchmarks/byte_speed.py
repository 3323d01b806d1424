"""What `"bytes"` costs on real pairs beside `"deepen"`: to prepare, a step over the members' forwards, and in batches.

Run with `python -m benchmarks.byte_speed --models FOLDER`, a folder with those of `benchmarks.given_text.MODELS`;
`--help` lists the options. Ratios are of one run in one process, as in `benchmarks.real_speed`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.given_text import MODELS, PAIRS, opened
from benchmarks.real_speed import PROMPTS, Forwards
from benchmarks.report import publish
from deepen_core import Ensemble
from deepen_core.evaluation.settings import Setting, Settings, equal

FUSIONS = ("deepen", "bytes")
_MANY = [*PROMPTS, *(f"{prompt} " for prompt in PROMPTS)]


def speed(ensemble: Ensemble, prompts: Sequence[str], tokens: int) -> float:
    """Tokens a second of answers that are decoded together."""
    ensemble.forget()
    began = time.perf_counter()
    ensemble.generate(prompts, max_new_tokens=tokens, ignore_eos=True)
    return len(prompts) * tokens / (time.perf_counter() - began)


def measure(ensemble: Ensemble, tokens: int) -> dict[str, float]:
    """Seconds to prepare the strategy, ratios over the forwards of an answer, and the gain of a batch."""
    engine = ensemble._engine
    began = time.perf_counter()
    setting = Setting(engine.fusion_name, equal(len(engine.members)))
    _ = Settings(engine.members, engine.main, [setting]).fusions
    prepared = time.perf_counter() - began
    forwards = Forwards(ensemble)
    ensemble.generate("Hello", max_new_tokens=2)  # what the libraries do at their first use
    answer: dict[str, Any] = {"max_new_tokens": tokens, "ignore_eos": True}
    cold, warm = (forwards.ratio(lambda: ensemble.generate(PROMPTS[0], **answer)) for _ in range(2))
    alone = speed(ensemble, [PROMPTS[1]], tokens)
    return {"prepared s": prepared, "new": cold, "warm": warm, "batch": speed(ensemble, _MANY, tokens // 2) / alone}


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"), help="the real models")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    given = parser.parse_args()
    if given.models is None:
        print(f"Give --models, a folder with {', '.join(MODELS)}.")
        return
    rows = []
    for names in PAIRS:
        for dtype in given.dtypes:
            for fusion in FUSIONS:
                with opened(given.models, names, dtype, fusion=fusion) as ensemble:
                    found = measure(ensemble, given.tokens)
                rows.append({"main": names[0], "other": names[1], "dtype": dtype, "fusion": fusion, **found})
                print(rows[-1], flush=True)
    publish("byte_speed", "Fusing by bytes beside fusing over shared tokens", rows)


if __name__ == "__main__":
    main()
