"""What fusing by bytes is worth on real pairs, against fusing by shared tokens: bits a byte of given text.

Run with `python -m benchmarks.byte_fusion --models FOLDER`, a folder with those of `benchmarks.given_text.MODELS`;
`--help` lists the options. Weights are equal, adaptive, or fitted on other texts (code and PIQA). With `--exact`, "by
the byte" is what the mean of the members' distributions of the next byte would reach, with all ways to cut the text run
that matter; `--exact-only` adds that to what is published, from the same texts.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks.byte_reader import ByteReader
from benchmarks.given_text import KINDS, MODELS, PAIRS, SETS, Given, beginnings, opened, read
from benchmarks.real_pairs import built
from benchmarks.report import publish
from benchmarks.report import read as published
from deepen_core import Ensemble
from deepen_core.config import PRESETS, BytesConfig, StrategyOptions
from deepen_core.fusion.adaptive_weights import AdaptiveWeights
from deepen_core.fusion.base import StepInputs
from deepen_core.fusion.mixing import Mixer
from deepen_core.fusion.policies import StaticWeights

FITTED_ON = ("other code", "advice")
STRATEGIES: dict[str, StrategyOptions] = {
    "deepen": PRESETS["deepen"],
    "product": PRESETS["product"],
    "union": PRESETS["union"],
    "bytes": BytesConfig(),
    "bytes, mixture": BytesConfig(mode="mixture"),
}
WEIGHTS = (0.2, 0.35, 0.5, 0.65, 0.8)
Way = tuple[str, str]
"""A strategy, and main's weight or "adaptive"."""


def bits(ensemble: Ensemble, texts: Sequence[Given]) -> dict[Way, float]:
    """Bits a byte of some texts, of all strategies at all weights, and of the members alone."""
    fusions = built(ensemble, STRATEGIES)
    mixers: dict[Way, Mixer] = {}
    for name, fusion in fusions.items():
        mixers |= {(name, str(w)): Mixer(fusion, StaticWeights([w, 1.0 - w]), 0) for w in WEIGHTS}
        if fusion.compares_tokens:
            mixers[name, "adaptive"] = Mixer(fusion, AdaptiveWeights([0.5, 0.5]), 0)
    total: dict[Way, float] = defaultdict(float)
    for text in tqdm(texts, leave=False):
        reading, known = read(ensemble, text), defaultdict[Way, dict[int, list[float]]](dict)
        for steps in reading:
            inputs = StepInputs(steps.logprobs, steps.speaking.float(), steps.heard)
            compared = {name: fusion.compare(inputs) for name, fusion in fusions.items()}
            for way, mixer in mixers.items():
                total[way] -= sum(mixer.logprobs_of(steps, known[way], compared[way[0]]))
        [[main, other]] = reading.member_scores()
        total["main", ""] -= main.total
        total["other", ""] -= other.total
    scale = log(2) * sum(len(text.text.encode()) for text in texts)
    return {way: value / scale for way, value in total.items()}


def by_the_byte(
    mains: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]], texts: Sequence[Given]
) -> dict[float, float]:
    """Bits a byte of the product of two models' distributions of the next byte, by main's weight."""
    total, count = dict.fromkeys(WEIGHTS, 0.0), 0
    for main, other, given in zip(mains, others, texts, strict=True):
        data = np.frombuffer(given.text.encode(), np.uint8)
        count += len(data)
        for weight in WEIGHTS:
            both = np.maximum(main, 1e-30) ** weight * np.maximum(other, 1e-30) ** (1 - weight)
            total[weight] -= float(np.log2(both[np.arange(len(data)), data] / both.sum(-1)).sum())
    return {weight: bits / count for weight, bits in total.items()}


def row_of(found: Mapping[str, Mapping[Way, float]], exact: Mapping[str, Mapping[float, float]]) -> dict[str, Any]:
    """The table's row of a pair: bits a byte by kind, and what they are against the better member, in percent.

    Args:
        found: For each kind, bits a byte by way.
        exact: For each kind, those by the byte, by main's weight; empty if they are not known.
    """
    better = min(sum(found[kind][name, ""] for kind in KINDS) for name in ("main", "other"))
    row: dict[str, Any] = {}
    for name in ("main", "other"):
        row[name] = sum(found[kind][name, ""] for kind in KINDS) / len(KINDS)

    def add(label: str, way: Way) -> None:
        values = {kind: found[kind][way] for kind in KINDS}
        over = {
            kind: 100 * (v / min(found[kind]["main", ""], found[kind]["other", ""]) - 1) for kind, v in values.items()
        }
        row[f"{label} %"] = 100 * (sum(values.values()) / better - 1)
        row[f"{label}, worst kind %"] = max(over.values())

    for name in STRATEGIES:
        fitted = min(WEIGHTS, key=lambda w: sum(found[kind][name, str(w)] for kind in FITTED_ON))
        add(f"{name}, equal", (name, "0.5"))
        add(f"{name}, fitted", (name, str(fitted)))
        if (name, "adaptive") in found[KINDS[0]]:
            add(f"{name}, adaptive", (name, "adaptive"))
    if exact:
        ideal = {weight: 100 * (sum(exact[kind][weight] for kind in KINDS) / better - 1) for weight in WEIGHTS}
        row["by the byte, equal %"], row["by the byte, best %"] = ideal[0.5], min(ideal.values())
    row["kinds"] = {kind: {" ".join(way).strip(): v for way, v in found[kind].items()} for kind in found}
    return row


def published_bits(names: Sequence[str], texts: int) -> dict[str, dict[Way, float]]:
    """Returns what `bits` has found for each kind of text.

    Args:
        names: The pair.
        texts: Number of texts of each kind.
    """
    [row] = [r for r in published("byte_fusion")["all"] if r["pair"] == " + ".join(names) and r["texts"] == texts]
    ways: dict[Way, str] = {(name, ""): name for name in ("main", "other")}
    ways |= {(name, str(w)): f"{name} {w}" for name in STRATEGIES for w in (*WEIGHTS, "adaptive")}
    return {kind: {way: held[key] for way, key in ways.items() if key in held} for kind, held in row["kinds"].items()}


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"), help="the real models")
    parser.add_argument("--texts", type=int, default=20, help="of each kind")
    parser.add_argument("--fitted", type=int, default=6, help="other texts of each kind, which weights are fitted on")
    parser.add_argument("--characters", type=int, default=600, help="of each text")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--pairs", type=int, nargs="*", default=range(len(PAIRS)), help="numbers of PAIRS; others stay")
    parser.add_argument("--exact", action="store_true", help="by the byte, too")
    parser.add_argument("--exact-only", action="store_true", help="only by the byte, for pairs that are published")
    given = parser.parse_args()
    given.exact |= given.exact_only
    if given.models is None or not SETS.is_dir():
        print(f"Give --models, a folder with {', '.join(MODELS)}, and put the test sets into {SETS}.")
        return
    torch.set_num_threads(1)
    texts = {kind: beginnings(kind, given.texts, given.characters) for kind in KINDS}
    texts |= {kind: beginnings(kind, given.fitted, given.characters) for kind in FITTED_ON}
    pairs = [PAIRS[number] for number in given.pairs]
    exact: dict[tuple[str, str], list[NDArray[Any]]] = {}
    for name in sorted({name for pair in pairs for name in pair}) if given.exact else ():
        with opened(given.models, [name], given.dtype) as ensemble:
            reader = ByteReader(ensemble)
            exact |= {(name, kind): [reader.read(text) for text in texts[kind]] for kind in KINDS}
    rows = []
    for names in pairs:
        if given.exact_only:
            found = published_bits(names, given.texts)
        else:
            with opened(given.models, names, given.dtype) as ensemble:
                found = {kind: bits(ensemble, chosen) for kind, chosen in texts.items()}
        ideal = {}
        if given.exact:
            ideal = {kind: by_the_byte(exact[names[0], kind], exact[names[1], kind], texts[kind]) for kind in KINDS}
        row = {"pair": " + ".join(names), "dtype": given.dtype, "texts": given.texts, **row_of(found, ideal)}
        print(json.dumps(row), flush=True)
        rows.append(row)
        new = [row["pair"] for row in rows]
        try:
            kept = [row for row in published("byte_fusion")["all"] if row["pair"] not in new]
        except FileNotFoundError:
            kept = []
        order = [" + ".join(pair) for pair in PAIRS]
        every = sorted([*kept, *rows], key=lambda row: order.index(row["pair"]))
        shown = [{k: v for k, v in row.items() if k != "kinds"} for row in every]
        publish("byte_fusion", "Bits a byte of given text, against the better member", shown, all=every)


if __name__ == "__main__":
    main()
