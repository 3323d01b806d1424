"""What tracing costs: CPU time without a trace over that of a decoder without the code for it, and with a trace.

Run with `python -m benchmarks.tracing`; `--help` lists the options. Both ways are run in this process by turns, in
pairs that follow each other. What is timed is the CPU time of the process: it has one thread that computes, and other
work on the machine slows down the clock on the wall more than that. What counts is the median of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.report import publish, read
from deepen_core import Ensemble, SamplingParams
from deepen_core.engine.trace_recorder import TraceRecorder

PROMPT = "The house at the end of the street"
Way = Literal["no code", "off", "on", "read"]
_KINDS: dict[str, tuple[Way, Way]] = {"off": ("no code", "off"), "on": ("off", "on"), "on, and read": ("off", "read")}
"""What is compared: the second way over the first."""


def seconds(ensemble: Ensemble, answers: int, tokens: int, way: Way) -> float:
    """Returns the CPU seconds of some answers decoded together; "read" makes the records of their traces as well."""
    prompts = [f"{PROMPT} number {number}" for number in range(answers)]
    params = SamplingParams(max_new_tokens=tokens, ignore_eos=True, trace=way in {"on", "read"})
    code = TraceRecorder.observe
    ensemble.forget()
    if way == "no code":
        TraceRecorder.observe = lambda *_: None  # type: ignore[method-assign]
    started = time.process_time()
    try:
        found = ensemble.generate(prompts, params)
        if way == "read":
            assert all(answer.trace is not None and answer.trace.steps for answer in found)
        return time.process_time() - started
    finally:
        TraceRecorder.observe = code  # type: ignore[method-assign]


def measure(ensemble: Ensemble, members: str, batch: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Measures one ensemble with one number of answers together."""
    seconds(ensemble, batch, tokens, "read")
    ratios: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    base = []
    for repeat in range(repeats):
        for kind, (first, second) in _KINDS.items():
            swapped = repeat % 2 == 1  # whatever comes second must not always gain or lose by that
            order = (second, first) if swapped else (first, second)
            times = [seconds(ensemble, batch, tokens, way) for way in order]
            before, after = reversed(times) if swapped else times
            ratios[kind].append(after / before)
            base.append(before / tokens)
    found: dict[str, Any] = {"members": members, "batch": batch, "ms a step": 1000 * statistics.median(base)}
    for kind, values in ratios.items():
        low, _, high = statistics.quantiles(values, n=4)
        found[kind] = statistics.median(values)
        found[f"{kind}: middle half"] = f"{low:.3f} to {high:.3f}"
    return found


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", type=Path, help="model folders; the demo by default")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--repeats", type=int, default=20, help="of each kind of pair")
    parser.add_argument("--keep", action="store_true", help="keep the published lines of other members")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = arguments.models
    members = " and ".join(path.name for path in models) if models else "the demo"
    kept = [row for row in read("tracing")["rows"] if row["members"] != members] if arguments.keep else []
    loaded = Ensemble.load(models, dtype=arguments.dtype, device="cpu") if models else Ensemble.demo()
    with loaded as ensemble:
        rows = [measure(ensemble, members, batch, arguments.tokens, arguments.repeats) for batch in arguments.batches]
    publish("tracing", "Time of decoding with a trace over that without", [*kept, *rows])


if __name__ == "__main__":
    main()
