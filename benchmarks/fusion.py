"""Fusion at the size of real vocabularies: time for a token, warm and cold, memory, building, the plain way beside it.

Run with `python -m benchmarks.fusion`; `--help` lists the options. Embeddings are made up, with the structure of real
ones (`benchmarks/worlds.py`); the last worlds have the real vocabularies beside the project. The dense reference runs
in the same process where its matrices fit. How near the choices are is measured by `benchmarks.fidelity`.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.reference import DenseReference
from benchmarks.report import publish
from benchmarks.worlds import CLASSES, TOKENIZERS, World, logits, make_world, real_world
from deepen_core.config import FusionConfig
from deepen_core.fusion.base import Fusion, StepInputs
from deepen_core.fusion.deepen.strategy import DeepenStrategy

WORLDS: dict[str, Callable[[str], World]] = {
    "32k": lambda device: make_world((32_000, 32_000), 24_000, 512, device=device),
    "128k": lambda device: make_world((128_000, 152_000), 110_000, 1024, device=device),
    "mistral-v1 with gpt-2": lambda device: real_world(("mistral-v1", "gpt-2"), 768, device=device),
    "mistral-v1 with mistral-tekken": lambda d: real_world(("mistral-v1", "mistral-tekken"), 1024, device=d),
    "gpt-2 with falcon": lambda device: real_world(("gpt-2", "falcon"), 768, device=device),
}
MIB = 2**20
_REFERENCE_GIB = 16.0


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median wall-clock seconds of a call."""
    taken = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


@contextmanager
def peak_memory(found: dict[str, float]) -> Iterator[None]:
    """Notes by how many MiB the process grew at most (Linux), and by how many the GPU's tensors did."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
    yield
    found["peak MiB"] = (_status("VmHWM") - before) / 1024
    if torch.cuda.is_available():
        found["GPU peak MiB"] = (torch.cuda.max_memory_allocated() - allocated) / MIB


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def fuse(fusion: Fusion, values: list[torch.Tensor]) -> torch.Tensor:
    """One step at equal weights: logits of both members [rows, vocabulary] to fused log-probabilities."""
    weights = torch.full((len(values[0]), 2), 0.5)
    return fusion.fuse(StepInputs([torch.log_softmax(x, -1) for x in values], weights))


def measure_speed(name: str, world: World, config: FusionConfig, repeats: int) -> list[dict[str, Any]]:
    """Time to fuse one row and sixteen, with rows built and with none, for each class of entropy."""
    rows = []
    for batch in (1, 16):
        for entropy in CLASSES:
            values = logits(world, entropy, batch, seed=7)
            memory: dict[str, float] = {}
            with peak_memory(memory):
                fusion = DeepenStrategy(world.spaces(config.row_entries), 0, config)
                cold = seconds(lambda f=fusion, v=values: fuse(f, v), 1)  # type: ignore[misc]
                warm = seconds(lambda f=fusion, v=values: fuse(f, v), repeats)  # type: ignore[misc]
            rows.append(
                {
                    "world": name,
                    "V / V / A / d": world.label,
                    "rows": batch,
                    "entropy": entropy,
                    "ms": 1000 * warm,
                    "cold ms": 1000 * cold,
                    "rows built": sum(s.rows_built for s in fusion.spaces),
                    "MiB held": sum(s.bytes_held for s in fusion.spaces) / MIB,
                    **memory,
                }
            )
            print(f"{name}, {entropy}, {batch} rows: {1000 * warm:.2f} ms, cold {1000 * cold:.0f} ms", flush=True)
    return rows


def measure_build(name: str, world: World, config: FusionConfig) -> dict[str, Any]:
    """Building every row of both members ahead of time."""
    found: dict[str, float] = {}
    with peak_memory(found):
        began = time.perf_counter()
        spaces = world.spaces(config.row_entries)
        ready = time.perf_counter()
        for space in spaces:
            space.build((space.fixed < 0).nonzero()[:, 0])
        built = time.perf_counter()
    return {
        "world": name,
        "spaces s": ready - began,
        "build s": built - ready,
        "rows": sum(s.rows_built for s in spaces),
        "MiB held": sum(s.bytes_held for s in spaces) / MIB,
        **found,
    }


def measure_reference(name: str, world: World, warm_ms: float) -> dict[str, Any]:
    """The dense reference on the same world, one row; its time is left out where its matrices do not fit."""
    needed = sum(4 * len(e) * world.anchors for e in world.embeddings) / 2**30
    row: dict[str, Any] = {"world": name, "V / V / A / d": world.label, "ms": warm_ms, "dense GiB": needed}
    if needed > _REFERENCE_GIB:
        return {**row, "dense ms": "does not fit", "ratio": ""}
    reference = DenseReference(world.embeddings, world.anchor_ids)
    values = [x[0] for x in logits(world, "mid", 1, seed=7)]
    taken = 1000 * seconds(lambda: reference.fuse(values), 3)
    print(f"{name}: dense {taken:.0f} ms, {taken / warm_ms:.0f} times", flush=True)
    return {**row, "dense ms": taken, "ratio": taken / warm_ms}


def measure_generation(name: str, world: World, config: FusionConfig, tokens: int) -> dict[str, Any]:
    """A generation from a cold start: how often a step has rows to build, and what that costs.

    Candidates are drawn by a Zipf law; of twenty steps thirteen are of low entropy, six of middle and one of high.
    """
    fusion = DeepenStrategy(world.spaces(config.row_entries), 0, config)
    mixed = ["low"] * 13 + ["mid"] * 6 + ["high"]
    built, times = [0], []
    for step in range(tokens):
        values = logits(world, mixed[step * 7 % 20], 1, seed=50_000 + step, popular=True)
        times.append(1000 * seconds(lambda v=values: fuse(fusion, v), 1))  # type: ignore[misc]
        built.append(sum(s.rows_built for s in fusion.spaces))
    new = [after - before for before, after in itertools.pairwise(built)]
    parts = {"first tenth": slice(0, tokens // 10), "last fifth": slice(-tokens // 5, None)}
    row: dict[str, Any] = {
        "world": name,
        "tokens": tokens,
        "steps that build": sum(n > 0 for n in new) / tokens,
        "rows built": built[-1],
        "mean ms": statistics.mean(times),
        **{f"mean ms, {part}": statistics.mean(times[at]) for part, at in parts.items()},
        **{f"rows a step, {part}": statistics.mean(new[at]) for part, at in parts.items()},
    }
    print(row, flush=True)
    return {**row, "new": new}


def main() -> None:
    """Measures and publishes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), choices=list(WORLDS), help="which worlds")
    parser.add_argument("--repeats", type=int, default=21, help="timings of each, of which the median is taken")
    parser.add_argument("--tokens", type=int, default=500, help="length of the generation from a cold start")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--skip-reference", action="store_true", help="leave out the dense reference (up to 16 GiB)")
    parser.add_argument("--build", nargs="*", default=["32k"], choices=list(WORLDS), help="worlds to build ahead")
    given = parser.parse_args()
    config = FusionConfig()
    speed, dense, builds, generations = [], [], [], []
    for name in given.worlds:
        if name not in ("32k", "128k") and not TOKENIZERS.is_dir():
            print(f"{name} is left out: {TOKENIZERS} is not there.")
            continue
        world = WORLDS[name](given.device)
        with torch.inference_mode():
            speed += measure_speed(name, world, config, given.repeats)
            if given.tokens and name in ("32k", "128k"):
                generations.append(measure_generation(name, world, config, given.tokens))
            if name in given.build:
                builds.append(measure_build(name, world, config))
                print(builds[-1], flush=True)
        if not given.skip_reference:
            (one,) = [r["ms"] for r in speed if (r["world"], r["rows"], r["entropy"]) == (name, 1, "mid")]
            dense.append(measure_reference(name, world, one))
        del world
        gc.collect()
    steps = {generation["world"]: generation.pop("new") for generation in generations}
    tables = {"the plain way": dense, "built ahead": builds, "from a cold start": generations}
    publish("fusion", "Fusing main with one member, medians", speed, new_rows=steps, **tables)


if __name__ == "__main__":
    main()
