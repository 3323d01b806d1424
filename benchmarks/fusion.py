"""Fusion at the size of real vocabularies: time for a token, memory, building, and agreement with whole matrices.

Run with `python -m benchmarks.fusion`; `--help` lists the options. The synthetic worlds have the structure of real
embeddings (`benchmarks/worlds.py`); the dense reference runs in the same process where its matrices fit.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.reference import DenseReference
from benchmarks.report import publish
from benchmarks.worlds import CLASSES, World, logits, make_world
from deepen_core.config import FusionConfig
from deepen_core.fusion import make_fusion

SIZES = {
    "32k": ((32_000, 32_000), 24_000, 512),
    "128k": ((128_000, 152_000), 110_000, 1024),
}
MIB = 2**20


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
    """Notes by how many MiB the process grew at most (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    yield
    found["peak MiB"] = (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure_speed(name: str, world: World, config: FusionConfig, repeats: int) -> list[dict[str, Any]]:
    """Time to fuse, cold and warm, for each class of entropy and batch size."""
    sizes = " / ".join(f"{len(e) // 1000}k" for e in world.embeddings)
    rows = []
    for entropy in CLASSES:
        for batch in (1, 16):
            fusion = make_fusion(world.spaces(config.row_entries), 0, config)
            values = logits(world, entropy, batch, seed=7)
            weights = torch.full((batch, 2), 0.5)

            def fuse(values: Any = values, weights: Any = weights, fusion: Any = fusion) -> torch.Tensor:
                return fusion.fuse([torch.log_softmax(x, -1) for x in values], weights)

            cold = seconds(fuse, 1)
            warm = seconds(fuse, repeats)
            rows.append(
                {
                    "vocabularies": sizes,
                    "anchors": world.anchors,
                    "width": world.embeddings[0].shape[1],
                    "entropy": entropy,
                    "rows": batch,
                    "ms": 1000 * warm,
                    "ms cold": 1000 * cold,
                    "rows built": sum(s.rows_built for s in fusion.spaces),
                    "MiB held": sum(s.bytes_held for s in fusion.spaces) / MIB,
                }
            )
            print(f"{name}, {entropy}, {batch} rows: {1000 * warm:.2f} ms, cold {1000 * cold:.0f} ms", flush=True)
    return rows


def measure_build(world: World, config: FusionConfig) -> dict[str, Any]:
    """Building every row of both members ahead of time."""
    found: dict[str, float] = {}
    with peak_memory(found):
        spaces = world.spaces(config.row_entries)
        began = time.perf_counter()
        for space in spaces:
            space.build()
        taken = time.perf_counter() - began
    held = sum(s.bytes_held for s in spaces) / MIB
    return {"s": taken, "rows": sum(s.rows_built for s in spaces), "MiB held": held, **found}


def measure_reference(world: World, warm_ms: float) -> dict[str, Any]:
    """The dense reference on the same world, one row."""
    reference = DenseReference(world.embeddings, world.anchor_ids)
    values = [x[0] for x in logits(world, "mid", 1, seed=7)]
    taken = 1000 * seconds(lambda: reference.fuse(values), 3)
    return {"ms": taken, "MiB held": reference.bytes_held / MIB, "ratio": taken / warm_ms}


def measure_agreement(world: World, config: FusionConfig, steps: int) -> list[dict[str, Any]]:
    """Greedy choices and distance from the exact search, by entropy and by how sure main is."""
    near = make_fusion(world.spaces(config.row_entries), 0, config)
    exact = make_fusion(world.spaces(config.row_entries), 0, config.model_copy(update={"exact": True}))
    rows = []
    for entropy in CLASSES:
        equal, distance, sure, sure_equal, moved = 0, 0.0, 0, 0, 0
        for seed in range(0, steps, 20):
            values = [torch.log_softmax(x, -1) for x in logits(world, entropy, 20, seed=1000 + seed)]
            weights = torch.full((20, 2), 0.5)
            a, b = near.fuse(values, weights), exact.fuse(values, weights)
            same = a.argmax(-1) == b.argmax(-1)
            certain = values[0].exp().amax(-1) >= 0.2
            equal += int(same.sum())
            sure += int(certain.sum())
            sure_equal += int((same & certain).sum())
            moved += int((b.argmax(-1) != values[0].argmax(-1)).sum())
            distance += float((a.exp() - b.exp()).abs().sum()) / 2
        rows.append(
            {
                "entropy": entropy,
                "steps": steps,
                "choices that fusion changes": moved / steps,
                "equal to the exact search": equal / steps,
                "steps where main is sure (>= 0.2)": sure,
                "equal there": sure_equal / sure if sure else 1.0,
                "mean total variation": distance / steps,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measures and publishes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES), help="which worlds")
    parser.add_argument("--repeats", type=int, default=15, help="timings of each, of which the median is taken")
    parser.add_argument("--steps", type=int, default=400, help="steps of each entropy class for the agreement")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--skip-reference", action="store_true", help="leave out the dense reference (9 GiB at 32k)")
    parser.add_argument("--skip-build", action="store_true")
    given = parser.parse_args()
    config = FusionConfig()
    speed, facts = [], dict[str, Any]()
    for name in given.sizes:
        vocabularies, anchors, width = SIZES[name]
        world = make_world(vocabularies, anchors, width, device=given.device)
        speed += measure_speed(name, world, config, given.repeats)
        if name == "32k" and not given.skip_build:
            facts["build ahead"] = measure_build(world, config)
            print("build ahead:", facts["build ahead"], flush=True)
        if name == "32k" and not given.skip_reference:
            (one,) = [r["ms"] for r in speed if (r["rows"], r["entropy"], r["anchors"]) == (1, "mid", anchors)]
            facts["dense reference"] = measure_reference(world, one)
            print("dense reference:", facts["dense reference"], flush=True)
        del world
        gc.collect()
    publish("fusion", "Fusing main with one member, medians", speed, **facts)
    if given.steps:
        world = make_world((16_000, 16_000), 12_000, 512, device=given.device)
        agreement = measure_agreement(world, config, given.steps)
        publish("agreement", "Fast path against whole matrices (16k / 16k, 12k anchors, width 512)", agreement)


if __name__ == "__main__":
    main()
