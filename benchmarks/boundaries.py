"""What two rules for places where members cut a text differently would be worth on real pairs, beside token healing.

- SAFE (arXiv 2510.15346) never fuses where main's token ends inside another member's token: the first table has the
  nats of such places by strategy.
- CoRE (arXiv 2510.13855) keeps main's token where that and the fused one begin with one another: the second table has
  which of the two the given text goes on with.

Run with `python -m benchmarks.boundaries --models FOLDER`, a folder with those of `benchmarks.given_text.MODELS`;
`--help` lists the options.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.given_text import KINDS, MODELS, PAIRS, SETS, Given, beginnings, opened, read
from benchmarks.report import publish
from deepen_core import Ensemble
from deepen_core.evaluation.settings import Setting, Settings, equal
from deepen_core.fusion.base import StepInputs
from deepen_core.fusion.mixing import GivenSteps

STRATEGIES = ("deepen", "product", "translate")


@dataclass
class Found:
    """What is counted, in all texts of a pair.

    Attributes:
        inside: Places where main's best token ends inside a token of the other member.
        nats: Surprise there, by strategy.
        changed: For each strategy, places where fusion changes main's best token for one that it begins, or that
            begins with it.
        own: How often the text goes on with main's token there.
        fused: How often with the fused one.
    """

    steps: int = 0
    inside: int = 0
    nats: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    own: Counter[str] = field(default_factory=Counter)
    fused: Counter[str] = field(default_factory=Counter)


def measure(ensemble: Ensemble, texts: list[Given]) -> Found:
    """Counts at all places of some texts, at equal weights; main is the first member of a pair."""
    engine, found = ensemble._engine, Found()
    fusions = Settings(engine.members, 0, [Setting(name, equal(2)) for name in STRATEGIES]).fusions
    for given in tqdm(texts, leave=False):
        for steps in read(ensemble, given):
            logprobs = {"main alone": steps.logprobs[0]}
            for name, fusion in fusions.items():
                weights = torch.full(steps.speaking.shape, 0.5) * steps.speaking
                logprobs[name] = fusion.fuse(StepInputs(steps.logprobs, weights, steps.heard))
            _count(ensemble, given, steps, logprobs, found)
    return found


def _count(
    ensemble: Ensemble, given: Given, steps: GivenSteps, logprobs: dict[str, torch.Tensor], found: Found
) -> None:
    vocabulary = ensemble._engine.members[0].tokenizer.vocabulary
    best = {name: values.argmax(-1).tolist() for name, values in logprobs.items()}
    inside = list(_inside(ensemble, given, steps, best["main alone"]))
    found.steps += len(inside)
    found.inside += sum(inside)
    next_ids = torch.tensor(steps.token_ids)
    for name, values in logprobs.items():
        surprise = -values.gather(1, next_ids[:, None])[:, 0]
        found.nats[name] += float(surprise[torch.tensor(inside)].sum())
        for own, fused, right in zip(best["main alone"], best[name], steps.token_ids, strict=True):
            one, other = (vocabulary.token_bytes(token_id) or b"" for token_id in (own, fused))
            if own != fused and one and other and (one.startswith(other) or other.startswith(one)):
                found.changed[name] += 1
                found.own[name] += own == right
                found.fused[name] += fused == right


def _inside(ensemble: Ensemble, given: Given, steps: GivenSteps, best: list[int]) -> Iterator[bool]:
    """Yields for each step whether main's best token would change the other member's tokens before it."""
    main, other = (member.tokenizer for member in ensemble._engine.members)
    for place, token_id in enumerate(best):
        said = b"".join(main.vocabulary.token_bytes(one) or b"" for one in steps.heard(0)[place].said)
        before = str(given.prompt) + said.decode(errors="ignore")
        ids = other.encode(before)
        grown = other.encode(before + (main.vocabulary.token_bytes(token_id) or b"").decode(errors="ignore"))
        yield grown[: len(ids)] != ids


def rows(found: Found, **label: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The rows of a pair in the two tables."""
    nats = {name: value / max(1, found.inside) for name, value in found.nats.items()}
    safe = {**label, "steps": found.steps, "inside a token": found.inside, **nats}
    core = [
        {
            **label,
            "fusion": name,
            "changed to a longer or shorter token": found.changed[name],
            "main's is right": found.own[name],
            "the fused one is right": found.fused[name],
        }
        for name in STRATEGIES
    ]
    return safe, core


def main() -> None:
    """Measures and publishes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"), help="the real models")
    parser.add_argument("--texts", type=int, default=8, help="of each kind")
    parser.add_argument("--characters", type=int, default=400, help="of each text")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.models is None or not SETS.is_dir():
        print(f"Give --models, a folder with {', '.join(MODELS)}, and put the test sets into {SETS}.")
        return
    safe, core = [], []
    texts = [text for kind in KINDS for text in beginnings(kind, given.texts, given.characters)]
    for names in PAIRS:
        with opened(given.models, names, given.dtype, given.device) as ensemble:
            one, several = rows(measure(ensemble, texts), main=names[0], other=names[1])
            safe.append(one)
            core += several
    title = "Nats of steps in which main's best token ends inside another member's token"
    publish("boundaries", title, safe, **{"Tokens that begin with one another": core}, dtype=given.dtype)


if __name__ == "__main__":
    main()
