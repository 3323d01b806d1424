"""What healing is worth on real pairs: bits a byte of given text, and nats after prompts that are cut anywhere.

Run with `python -m benchmarks.healing --models FOLDER`, a folder with those of `benchmarks.given_text.MODELS`; `--help`
lists the options. Compared are no healing, healing of main's next token alone, and healing as it is.
"""

from __future__ import annotations

import argparse
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.given_text import (
    KINDS,
    MODELS,
    PAIRS,
    SETS,
    Given,
    SaidStep,
    answers,
    beginnings,
    opened,
    said_of,
    whole_texts,
)
from benchmarks.report import publish
from deepen_core import Ensemble
from deepen_core.fusion.anchors.segmentation import Segmentation
from deepen_core.fusion.anchors.token_healing import Healer, Heard
from deepen_core.fusion.base import Fusion, StepInputs
from deepen_core.fusion.deepen.sharp_fusion import SharpFusion

_FIRST = 3  # tokens behind the end of a prompt
_TOGETHER = 32  # steps that are fused at once


class NextTokenHealer(Healer):
    """Gives what is left of a longer token to main's next token towards it alone, and takes nothing away."""

    def _spread(self, longer: int, left: Any, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
        return torch.tensor([left.column]), torch.ones(1)

    def _without_ruled_out(self, mass: torch.Tensor, sequences: Sequence[Heard]) -> torch.Tensor:  # noqa: ARG002
        return mass


def ways_to_heal(ensemble: Ensemble) -> dict[str, SharpFusion]:
    """Strategies that differ in how they heal the other member of a pair."""
    now = ensemble._engine.fusion
    main, other = (m.tokenizer for m in ensemble._engine.members)
    cut = [Segmentation(t.vocabulary, t.backend) for t in (other, main)]
    size = ensemble._engine.members[1].vocabulary_size
    next_token = NextTokenHealer(*cut, now._anchors, size)
    return {
        "no healing": SharpFusion(now._columns, 0, now._config),
        "next token": SharpFusion(now._columns, 0, now._config, [None, next_token]),
        "as it is": now,
    }


@torch.inference_mode()
def nats(
    steps: Sequence[SaidStep], ways: Mapping[str, Fusion], weight: float | Sequence[float] = 0.5
) -> dict[str, float]:
    """Surprise of main alone, and of both where main has this weight (one for all steps, or one each), in all."""
    of_main = [weight] * len(steps) if isinstance(weight, float) else list(weight)
    found = {"main alone": -sum(float(step.main[step.token_id]) for step in steps), **dict.fromkeys(ways, 0.0)}
    for start in range(0, len(steps), _TOGETHER):
        places = [n for n in range(start, min(start + _TOGETHER, len(steps))) if steps[n].other is not None]
        part = [steps[n] for n in places]
        quiet = [step for step in steps[start : start + _TOGETHER] if step.other is None]
        for name, fusion in ways.items():
            found[name] -= sum(float(step.main[step.token_id]) for step in quiet)
            if not part:
                continue
            said = [torch.stack([step.main for step in part]), torch.stack([step.other for step in part])]  # type: ignore[misc]
            weights = torch.tensor([[of_main[n], 1.0 - of_main[n]] for n in places])
            heard = [step.heard for step in part]
            fused = fusion.fuse(StepInputs(said, weights, lambda _, heard=heard: heard))  # type: ignore[misc]
            found[name] -= sum(float(line[step.token_id]) for line, step in zip(fused, part, strict=True))
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
            for name, value in nats(list(said_of(ensemble, text)), ways).items():
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
                found[place].append(nats(list(said_of(ensemble, given, limit=_FIRST)), ways))
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
