"""Bits per byte of real stories under two models whose tokens differ much in length, alone and together.

Run with `python -m benchmarks.stories`. Uses the story models beside the project.
"""

from __future__ import annotations

import argparse
import warnings
from math import log
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import publish
from deepen_core import Ensemble, FusionConfig
from deepen_core.config import BytesConfig, StrategyOptions

SHARED = Path(__file__).parents[2] / "shared"
STRATEGIES: dict[str, str | StrategyOptions] = {
    "deepen": "deepen",
    "without healing": FusionConfig(healing=False),
    "without healing, unshared by embedding": FusionConfig(healing=False, unshared="embedding"),
    "deepen-paper": "deepen-paper",
    "product": "product",
    "bytes": "bytes",
    "bytes, mixture": BytesConfig(mode="mixture"),
}


def measure(texts: list[str], main: int, fusion: str | StrategyOptions) -> dict[str, Any]:
    """Bits per byte of the fused distribution and of each member alone."""
    models = [SHARED / "models" / name for name in ("stories260K", "babyllama105")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ensemble = Ensemble.load(models, main=main, fusion=fusion, weights="static", progress=False, device="cpu")
    with ensemble:
        scores = [ensemble.score(text[:30], text[30:]) for text in texts]
        name = ensemble.main_name
    size = sum(score.bytes for score in scores) * log(2)
    alone = {
        f"{member.name} alone": -sum(score.members[place].total for score in scores) / size
        for place, member in enumerate(scores[0].members)
    }
    return {"main": name, "together": -sum(score.total for score in scores) / size, **alone}


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--characters", type=int, default=200, help="of each story")
    given = parser.parse_args()
    if not SHARED.is_dir():
        print(f"{SHARED} is not there: it holds the story models.")
        return
    torch.set_num_threads(1)
    lines = (SHARED / "data" / "tinystories_valid.txt").read_text(encoding="utf-8").split("\n")
    texts = [line[: given.characters] for line in lines if len(line) > given.characters]
    rows = [
        {"fusion": name, **measure(texts, place, config)} for place in (0, 1) for name, config in STRATEGIES.items()
    ]
    publish("stories", "Bits per byte of real stories", rows)


if __name__ == "__main__":
    main()
