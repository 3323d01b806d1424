"""What each strategy is worth on real pairs: bits a byte of given text, against each member alone.

Run with `python -m benchmarks.real_pairs --models FOLDER`, a folder with those of `benchmarks.given_text.MODELS`;
`--help` lists the options. Texts are code (HumanEval) and stories (TinyStories). At equal weights all strategies are
compared; for the default one, the weight of main that fits other texts best (code and PIQA) is measured too, and for
those that compare tokens, adaptive weights, which start equal and are fitted on nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from math import log
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tqdm.auto import tqdm

from benchmarks.given_text import MODELS, PAIRS, SETS, Given, beginnings, opened, read
from benchmarks.healing import nats
from benchmarks.report import publish
from benchmarks.report import read as published
from deepen_core import Ensemble, FusionConfig
from deepen_core.config import PRESETS, StrategyOptions
from deepen_core.fusion import strategy_of
from deepen_core.fusion.adaptive_weights import AdaptiveWeights
from deepen_core.fusion.base import Fusion
from deepen_core.fusion.mixing import Mixer
from deepen_core.fusion.policies import StaticWeights
from deepen_core.progress import Steps

KINDS = {"code": "other code", "story": "advice"}
"""The kinds of text, and what weights are fitted on for each."""
STRATEGIES: dict[str, StrategyOptions] = {
    "deepen": PRESETS["deepen"],
    "weighted average (power 1)": FusionConfig(power=1.0),
    "product": PRESETS["product"],
    "union": PRESETS["union"],
}
SOFT: dict[str, StrategyOptions] = {
    f"soft rows, self-mass {mass}": FusionConfig(rows="soft", target_self_mass=mass) for mass in (0.9, 0.99)
}
WEIGHTS = (0.3, 0.5, 0.6, 0.7, 0.8)
ADAPTIVE = -1.0
"""Stands for adaptive weights where others have main's weight."""


def built(ensemble: Ensemble, strategies: Mapping[str, StrategyOptions]) -> dict[str, Fusion]:
    """Strategies for the members of an open ensemble."""
    with Steps("Building", "strategies", 1, shown=False) as steps:
        return {
            name: strategy_of(config).build(ensemble._engine.members, 0, config, steps)
            for name, config in strategies.items()
        }


def bits(
    ensemble: Ensemble,
    texts: Sequence[Given],
    ways: Mapping[float, Mapping[str, Fusion]],
    adaptive: Mapping[str, Fusion] = MappingProxyType({}),
) -> dict[tuple[str, float], float]:
    """Bits a byte of some texts, by strategy and weight of main; members alone are "main" and "other".

    Args:
        ensemble: Of two members, the first one main.
        texts: The texts.
        ways: For each weight of main, the strategies.
        adaptive: The strategies with adaptive weights; their weight of main is `ADAPTIVE`.
    """
    mixers = {
        (name, weight): Mixer(fusion, StaticWeights([weight, 1.0 - weight]), 0)
        for weight, strategies in ways.items()
        for name, fusion in strategies.items()
    }
    mixers |= {(name, ADAPTIVE): Mixer(fusion, AdaptiveWeights([0.5, 0.5]), 0) for name, fusion in adaptive.items()}
    mixers["main", 1.0] = Mixer(ensemble._engine.fusion, StaticWeights([1.0, 0.0]), 0)
    total: dict[tuple[str, float], float] = defaultdict(float)
    for text in tqdm(texts, leave=False):
        reading = read(ensemble, text)
        for way, value in nats(reading, mixers).items():
            total[way] += value
        [[_, other]] = reading.member_scores()
        total["other", 0.0] -= other.total
    scale = log(2) * sum(len(text.text.encode()) for text in texts)
    return {key: value / scale for key, value in total.items()}


def measure(
    ensemble: Ensemble, count: int, fitted: int, size: int, strategies: Mapping[str, StrategyOptions]
) -> dict[str, Any]:
    """A pair: bits a byte by kind and strategy, and what they are against the better member, in percent."""
    every = built(ensemble, strategies)
    default = {weight: {"deepen": every["deepen"]} for weight in WEIGHTS}
    fit = [bits(ensemble, beginnings(kind, fitted, size), default) for kind in KINDS.values()]
    adaptive = {name: fusion for name, fusion in every.items() if fusion.compares_tokens}
    ways = {**default, 0.5: every}
    found = {kind: bits(ensemble, beginnings(kind, count, size), ways, adaptive) for kind in KINDS}

    def mean(name: str, weight: float, parts: Iterable[Mapping[tuple[str, float], float]]) -> float:
        return statistics.mean(part[name, weight] for part in parts)

    better = min(mean("main", 1.0, found.values()), mean("other", 0.0, found.values()))
    weight = min(WEIGHTS, key=lambda w: mean("deepen", w, fit))
    row: dict[str, Any] = {}
    for kind, part in found.items():
        row |= {f"{kind}: main": part["main", 1.0], f"{kind}: other": part["other", 0.0]}
        row |= {f"{kind}: {name}": part[name, 0.5] for name in strategies}
        row |= {f"{kind}: {name}, adaptive": part[name, ADAPTIVE] for name in adaptive}
    row |= {f"{name}, adaptive %": 100 * (mean(name, ADAPTIVE, found.values()) / better - 1) for name in adaptive}
    row |= {f"{name} %": 100 * (mean(name, 0.5, found.values()) / better - 1) for name in strategies}
    return {**row, "fitted weight": weight, "fitted %": 100 * (mean("deepen", weight, found.values()) / better - 1)}


def of_pair(given: argparse.Namespace, names: Sequence[str], dtype: str) -> dict[str, Any]:
    """The table's row of a pair, in a process of its own."""
    with opened(given.models, names, dtype, given.device) as ensemble:
        strategies = STRATEGIES | (SOFT if given.soft else {})
        row = measure(ensemble, given.texts, given.fitted, given.characters, strategies)
        place = str(ensemble.info.members[0].device)
    row = {"main": names[0], "other": names[1], "dtype": dtype, "texts": given.texts, "device": place, **row}
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"), help="the real models")
    parser.add_argument("--texts", type=int, default=20, help="of each kind")
    parser.add_argument("--fitted", type=int, default=6, help="other texts of each kind, which weights are fitted on")
    parser.add_argument("--characters", type=int, default=600, help="of each text")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--pairs", type=int, nargs="*", default=range(len(PAIRS)), help="numbers of PAIRS; others stay")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1, help="pairs measured at the same time")
    parser.add_argument("--soft", action="store_true", help="soft rows too, which takes long")
    given = parser.parse_args()
    if given.models is None or not SETS.is_dir():
        print(f"Give --models, a folder with {', '.join(MODELS)}, and put the test sets into {SETS}.")
        return
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        pairs = [(PAIRS[number], dtype) for dtype in given.dtypes for number in given.pairs]
        rows = [found.result() for found in [pool.submit(of_pair, given, *pair) for pair in pairs]]
    new = [(row["main"], row["other"], row["dtype"]) for row in rows]
    kept = [row for row in published("real_pairs")["rows"] if (row["main"], row["other"], row["dtype"]) not in new]
    publish("real_pairs", "Bits a byte of given text on real pairs", [*kept, *rows])


if __name__ == "__main__":
    main()
