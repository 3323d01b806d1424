"""Greedy choices of the fast path against whole matrices, on real steps of real pairs of models.

Run with `python -m benchmarks.agreement`. The demo is one pair; the story models beside the project are the other.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import publish
from deepen_core import Ensemble
from deepen_core.config import PRESETS, FusionConfig, StrategyOptions
from deepen_core.demo import member_paths
from deepen_core.demo.world import questions
from deepen_core.fusion.base import StepInputs
from deepen_core.fusion.deepen.strategy import DeepenStrategy

SHARED = Path(__file__).parents[2] / "shared"
FUSIONS: dict[str, StrategyOptions] = {
    "deepen, soft rows": FusionConfig(rows="soft"),
    "deepen-paper": PRESETS["deepen-paper"],
}


class Comparing:
    """A fusion that answers as the fast path does, and notes where whole matrices would choose otherwise.

    Args:
        fast: The fast path.
        exact: The same with whole matrices.
    """

    def __init__(self, fast: DeepenStrategy, exact: DeepenStrategy) -> None:
        self._fast, self._exact = fast, exact
        self.steps = self.equal = self.sure = self.sure_equal = self.calls = self.cold = 0
        self.distance = 0.0

    def fuse(self, inputs: StepInputs) -> torch.Tensor:
        """The fast path's answer."""
        built = [s.rows_built for s in self._fast.spaces]
        fast = self._fast.fuse(inputs)
        self.calls += 1
        self.cold += int(built != [s.rows_built for s in self._fast.spaces])
        exact = self._exact.fuse(inputs)
        same = fast.argmax(-1) == exact.argmax(-1)
        main = next(p for p in inputs.logprobs if p is not None and p.shape == fast.shape)
        sure = main.exp().amax(-1) >= 0.2
        self.steps += len(same)
        self.equal += int(same.sum())
        self.sure += int(sure.sum())
        self.sure_equal += int((same & sure).sum())
        self.distance += float((fast.exp() - exact.exp()).abs().sum()) / 2
        return fast


def measure(pair: str, models: list[Path], prompts: list[str], main: int, fusion: str, steps: int) -> dict[str, Any]:
    """One pair with one main, over at least so many steps."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        with Ensemble.load(
            models, main=main, fusion=FUSIONS[fusion], weights="static", progress=False, device="cpu"
        ) as ensemble:
            config = FUSIONS[fusion].model_copy(update={"exact": True})
            fast = ensemble._engine.fusion
            exact = DeepenStrategy(fast.spaces, main, config, fast._average._healers)
            both = Comparing(fast, exact)
            ensemble._engine.decoder._mixer._fusion = both
            for place in range(0, len(prompts), 8):
                if both.steps >= steps:
                    break
                ensemble.generate(prompts[place : place + 8], max_new_tokens=100, ignore_eos=pair != "demo")
            name = ensemble.main_name
    return {
        "pair": pair,
        "main": name,
        "fusion": fusion,
        "steps": both.steps,
        "equal choices": both.equal / both.steps,
        "equal where main is sure": both.sure_equal / max(1, both.sure),
        "mean total variation": both.distance / both.steps,
        "steps that build rows": both.cold / both.calls,
    }


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="real steps of each pair and main")
    given = parser.parse_args()
    torch.set_num_threads(1)
    asked = [q.prompt for q in questions()] * 2
    pairs = {"demo": (member_paths(), asked)}
    if SHARED.is_dir():
        stories = (SHARED / "data" / "tinystories_valid.txt").read_text(encoding="utf-8").split("\n")
        starts = [" ".join(line.split()[at : at + 6]) for line in stories if line for at in range(0, 60, 6)]
        pairs["stories"] = ([SHARED / "models" / n for n in ("stories260K", "babyllama105")], starts)
    rows = [
        measure(pair, models, prompts, place, fusion, given.steps)
        for pair, (models, prompts) in pairs.items()
        for place in (0, 1)
        for fusion in FUSIONS
    ]
    publish("agreement_real", "The fast path against whole matrices on real steps", rows)


if __name__ == "__main__":
    main()
