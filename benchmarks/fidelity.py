"""How near the fast path is to whole matrices: greedy choices and total variation, and what each limit costs.

Run with `python -m benchmarks.fidelity`; `--help` lists the options. Steps are made up, see `benchmarks/worlds.py`;
`benchmarks.agreement` compares on real steps of real pairs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.report import publish
from benchmarks.worlds import CLASSES, TOKENIZERS, World, logits, make_world, real_world
from deepen_core.config import FusionConfig
from deepen_core.fusion.base import Fusion, StepInputs
from deepen_core.fusion.deepen.calibration import effective_support, self_mass
from deepen_core.fusion.deepen.search import DenseRows, adamw, expectation_maximisation
from deepen_core.fusion.deepen.similarity import Proximity
from deepen_core.fusion.deepen.strategy import DeepenStrategy

_BATCH = 20
SWEEPS: dict[str, list[dict[str, Any]]] = {
    "row_floor": [{"row_floor": value} for value in (1e-2, 3e-3, 1e-3, 1e-4, 1e-5)],
    "row_entries": [{"row_entries": value} for value in (1, 2, 4, 8, 16, 32, 64)],
    "candidates": [{"candidates": value} for value in (16, 64, 256, 512, 1024)],
    "images": [{"images": value} for value in (0, 4, 16, 64, 256)],
}


def steps_of(world: World, entropy: str, steps: int) -> list[list[torch.Tensor]]:
    """Log-probabilities of both members, in batches."""
    return [
        [torch.log_softmax(x, -1) for x in logits(world, entropy, _BATCH, seed=1000 + seed)]
        for seed in range(0, steps, _BATCH)
    ]


def compare(near: Fusion, exact: list[torch.Tensor], batches: list[list[torch.Tensor]]) -> dict[str, float]:
    """Equal choices and mean total variation over some batches whose exact results are known."""
    weights = torch.full((_BATCH, 2), 0.5)
    same, sure, moved, distance = [], [], [], []
    for values, right in zip(batches, exact, strict=True):
        found = near.fuse(StepInputs(values, weights))
        same.append(found.argmax(-1) == right.argmax(-1))
        sure.append(values[0].exp().amax(-1) >= 0.2)
        moved.append(right.argmax(-1) != values[0].argmax(-1))
        distance.append((found.exp() - right.exp()).abs().sum(-1) / 2)
    equal, certain = torch.cat(same), torch.cat(sure)
    return {
        "steps": float(len(equal)),
        "choices that fusion changes": float(torch.cat(moved).float().mean()),
        "equal choices": float(equal.float().mean()),
        "steps where main is sure (>= 0.2)": float(certain.sum()),
        "equal there": float(equal[certain].float().mean()) if bool(certain.any()) else 1.0,
        "mean total variation": float(torch.cat(distance).mean()),
    }


def exact_results(world: World, config: FusionConfig, batches: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """What whole matrices give; held only while they are asked."""
    exact = DeepenStrategy(world.spaces(), 0, config.model_copy(update={"exact": True}))
    return [exact.fuse(StepInputs(values, torch.full((_BATCH, 2), 0.5))) for values in batches]


def measure(name: str, world: World, config: FusionConfig, steps: int) -> list[dict[str, Any]]:
    """The fast path as it is, by class of entropy and over all."""
    batches = {entropy: steps_of(world, entropy, steps) for entropy in CLASSES}
    every = [values for of_class in batches.values() for values in of_class]
    right = exact_results(world, config, every)
    rows, start = [], 0
    for entropy, of_class in [*batches.items(), ("all", every)]:
        begin = 0 if entropy == "all" else start
        near = DeepenStrategy(world.spaces(config.row_entries), 0, config)
        found = compare(near, right[begin : begin + len(of_class)], of_class)
        start += len(of_class)
        rows.append({"world": name, "search": config.search, "entropy": entropy, **found})
        print(rows[-1], flush=True)
    return rows


def sweep(world: World, steps: int) -> list[dict[str, Any]]:
    """What each limit of the fast path costs, the others as they are."""
    batches = {entropy: steps_of(world, entropy, steps) for entropy in CLASSES}
    right = {entropy: exact_results(world, FusionConfig(), of_class) for entropy, of_class in batches.items()}
    return [
        {"limit": limit, "value": setting[limit], "entropy": entropy}
        | _limited(world, FusionConfig(**setting), right[entropy], batches[entropy])
        for limit, settings in SWEEPS.items()
        for setting in settings
        for entropy in CLASSES
    ]


def _limited(
    world: World, config: FusionConfig, right: list[torch.Tensor], batches: list[list[torch.Tensor]]
) -> dict[str, float]:
    cold = DeepenStrategy(world.spaces(config.row_entries), 0, config)
    cold.fuse(StepInputs([x[:1] for x in batches[0]], torch.full((1, 2), 0.5)))
    built = sum(space.rows_built for space in cold.spaces)
    found = compare(cold, right, batches)
    kept = {name: found[name] for name in ("equal choices", "mean total variation")}
    print(config, kept, flush=True)
    return {**kept, "rows a cold step": built}


def sharpness(sizes: Sequence[int] = (1_000, 4_000, 16_000, 64_000), width: int = 256) -> list[dict[str, Any]]:
    """Self-mass of an anchor at temperature 100, and at the one that calibration finds, by size and likeness."""
    return [_sharpness(anchors, common, width) for anchors in sizes for common in (0.0, 0.2, 0.4)]


def _sharpness(anchors: int, common: float, width: int) -> dict[str, Any]:
    world = make_world((anchors + 100, anchors + 100), anchors, width, common=common)
    sample = world.anchor_ids[0][:128]
    values, space = Proximity(world.embeddings[0], world.spaces()[0].columns.others).logits(sample), world.spaces()[0]
    return {
        "anchors": anchors,
        "common component": common,
        "self-mass at 100": self_mass(values, sample, 100.0),
        "support at 100": effective_support(values, 100.0),
        "calibrated temperature": space.temperature,
        "self-mass": space.self_mass,
        "support": space.effective_support,
    }


def convergence(world: World, rows: int = 40) -> list[dict[str, Any]]:
    """Divergence of the search's projection from the target, by steps, for both searches on whole matrices."""
    matrices = [space.dense() for space in world.spaces()]
    values = [torch.log_softmax(x, -1) for x in logits(world, "mid", rows, seed=99)]
    target = sum(0.5 * x.exp() @ m for x, m in zip(values, matrices, strict=True))
    assert isinstance(target, torch.Tensor)
    mine = DenseRows(matrices[0])

    def divergence(probs: torch.Tensor) -> float:
        projected = mine.project(probs / probs.sum(-1, keepdim=True)).clamp_min(1e-20)
        return float(torch.xlogy(target, target / projected).sum(-1).mean())

    def reached(steps: int) -> dict[str, float]:
        found = {"em": divergence(expectation_maximisation(values[0].exp(), mine, target, steps))}
        for radius in (0.15, 0.5):
            found[f"adamw, radius {radius}"] = divergence(adamw(values[0], mine, target, radius, steps).softmax(-1))
        return found

    return [{"steps": steps, **reached(steps)} for steps in (0, 1, 2, 3, 5, 10, 20)]


def main() -> None:
    """Measures and publishes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=700, help="steps of each class of entropy and world")
    parser.add_argument("--sweep-steps", type=int, default=200, help="steps of each class for each setting of a limit")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        worlds = {
            "16k": make_world((16_000, 16_000), 12_000, 512, device=given.device),
            "16k, anisotropic": make_world((16_000, 16_000), 12_000, 512, common=0.4, device=given.device),
        }
        for name, world in worlds.items():
            rows += measure(name, world, FusionConfig(), given.steps)
        rows += measure("16k", worlds["16k"], FusionConfig(search="adamw"), given.steps)
        if TOKENIZERS.is_dir():
            world = real_world(("mistral-v1", "gpt-2"), 512, device=given.device)
            rows += measure(
                "mistral-v1 with gpt-2", world, FusionConfig(), math.ceil(given.steps / 7 / _BATCH) * _BATCH
            )
            del world
        small = make_world((8_000, 9_000), 6_000, 256, device=given.device)
        extra = {"limits": sweep(small, given.sweep_steps), "sharpness": sharpness(), "convergence": convergence(small)}
    publish("fidelity", "The fast path against whole matrices", rows, **extra)


if __name__ == "__main__":
    main()
