"""What healing is worth on real pairs: bits a byte of given text, and nats after prompts that are cut anywhere.

Run with `python -m benchmarks.healing --models FOLDER`, a folder with those of `benchmarks.given_text.MODELS`; `--help`
lists the options. Compared are no healing, healing of main's next token alone, and healing as it is.
"""

from __future__ import annotations

import argparse
import os
import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from benchmarks.given_text import (
    KINDS,
    MODELS,
    PAIRS,
    SETS,
    Given,
    answers,
    beginnings,
    opened,
    read,
    whole_texts,
)
from benchmarks.report import publish
from deepen_core import Ensemble
from deepen_core.engine.reading import TextReading
from deepen_core.fusion.anchors.segmentation import Segmentation
from deepen_core.fusion.anchors.token_healing import Healer, Heard
from deepen_core.fusion.deepen.sharp_fusion import SharpFusion
from deepen_core.fusion.mixing import Mixer
from deepen_core.fusion.policies import StaticWeights

K = TypeVar("K", bound=Hashable)

_FIRST = 3  # tokens behind the end of a prompt


class NextTokenHealer(Healer):
    """Gives what is left of a longer token to main's next token towards it alone, and takes nothing away."""

    def _spread(self, longer: int, left: Any, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
        return torch.tensor([left.column]), torch.ones(1)

    def _without_ruled_out(self, mass: torch.Tensor, sequences: Sequence[Heard]) -> torch.Tensor:  # noqa: ARG002
        return mass


def ways_to_heal(ensemble: Ensemble) -> dict[str, Mixer]:
    """Main alone, and at equal weights, strategies that differ in how they heal the other member of a pair."""
    now = ensemble._engine.fusion
    main, other = (m.tokenizer for m in ensemble._engine.members)
    cut = [Segmentation(t.vocabulary, t.backend) for t in (other, main)]
    size = ensemble._engine.members[1].vocabulary_size
    next_token = NextTokenHealer(*cut, now._anchors, size)
    equal = StaticWeights([0.5, 0.5])
    return {
        "main alone": Mixer(now, StaticWeights([1.0, 0.0]), 0),
        "no healing": Mixer(SharpFusion(now._columns, 0, now._config), equal, 0),
        "next token": Mixer(SharpFusion(now._columns, 0, now._config, [None, next_token]), equal, 0),
        "as it is": Mixer(now, equal, 0),
    }


def nats(reading: TextReading, ways: Mapping[K, Mixer]) -> dict[K, float]:
    """Surprise at a text, fused in several ways, of steps that are read once."""
    found = dict.fromkeys(ways, 0.0)
    known: dict[K, dict[int, list[float]]] = {name: {} for name in ways}
    for steps in reading:
        for name, mixer in ways.items():
            found[name] -= sum(mixer.logprobs_of(steps, known[name]))
    return found


def cuts(text: str, chosen: random.Random) -> dict[str, int]:
    """A place of each kind at which a prompt may end, where a text has one."""
    found: dict[str, int] = {}
    places = list(range(60, len(text) - 40))
    chosen.shuffle(places)
    for place in places:
        before, after = text[place - 1], text[place]
        if before.isalpha() and after.isalpha():
            kind = "in a word"
        elif before.isalpha() and after == " ":
            kind = "after a word"
        elif before == " " and after.isalpha() and text[place - 2] != " ":
            kind = "after a blank"
        elif before == "\n" and after != "\n":
            kind = "after a newline"
        elif before in ":.?," and after in " \n":
            kind = "after a mark"
        else:
            continue
        found.setdefault(kind, place)
    return found


def bits_a_byte(ensemble: Ensemble, count: int, size: int) -> Iterable[dict[str, Any]]:
    """A row for each kind of given text."""
    ways = ways_to_heal(ensemble)
    given = {kind: beginnings(kind, count, size) for kind in KINDS}
    if ensemble.has_chat_template:
        given["chat"] = answers(count, size)
    for kind, texts in given.items():
        total: dict[str, float] = defaultdict(float)
        for text in tqdm(texts, desc=kind, leave=False):
            for name, value in nats(read(ensemble, text), ways).items():
                total[name] += value
        scale = log(2) * sum(len(text.text.encode()) for text in texts)
        yield {"text": kind, **{name: value / scale for name, value in total.items()}}


def ends_of_prompts(ensemble: Ensemble, count: int) -> Iterable[dict[str, Any]]:
    """A row for each kind of place at which a prompt ends: nats for the first tokens behind it."""
    ways, chosen = ways_to_heal(ensemble), random.Random(3)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for kind in ("code", "maths", "prose"):
        for text in tqdm(whole_texts(kind, count), desc=f"ends of {kind}", leave=False):
            for place, cut in cuts(text, chosen).items():
                given = Given(text[max(0, cut - 120) : cut], text[cut : cut + 40])
                found[place].append(nats(read(ensemble, given, limit=_FIRST), ways))
    for place, texts in sorted(found.items()):
        means = {name: sum(values[name] for values in texts) / len(texts) for name in texts[0]}
        yield {"prompt ends": place, "prompts": len(texts), **means}


def main() -> None:
    """Measures and publishes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"), help="the real models")
    parser.add_argument("--texts", type=int, default=4, help="of each kind, to give")
    parser.add_argument("--prompts", type=int, default=6, help="of each kind, to end")
    parser.add_argument("--characters", type=int, default=400, help="of each text")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.models is None or not SETS.is_dir():
        print(f"Give --models, a folder with {', '.join(MODELS)}, and put the test sets into {SETS}.")
        return
    texts, ends = [], []
    for names in PAIRS:
        with opened(given.models, names, given.dtype, given.device) as ensemble:
            label = {"main": names[0], "other": names[1]}
            texts += [{**label, **row} for row in bits_a_byte(ensemble, given.texts, given.characters)]
            ends += [{**label, **row} for row in ends_of_prompts(ensemble, given.prompts)]
    publish(
        "healing", "Bits a byte of given text, equal weights", texts, **{"Nats of three tokens behind a prompt": ends}
    )


if __name__ == "__main__":
    main()
