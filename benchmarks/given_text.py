"""Given texts, and what the members of a real pair predict at each of main's tokens of them, not fused yet.

Both models run each text once; their predictions are then fused in as many ways as are to be compared. `MODELS` names
the model folders, which are not in this repository. Texts come from public test sets, JSON lines in a folder `shared`
beside it; without them benchmarks say so and end.
"""

from __future__ import annotations

import json
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from deepen_core import Ensemble, SamplingParams
from deepen_core.engine.scoring import continuation_ids
from deepen_core.fusion.anchors.token_healing import Heard
from deepen_core.members.transformers.kv_cache import cache_option

SHARED = Path(__file__).parents[2] / "shared"
SETS = SHARED / "data" / "benchmarks"
MODELS = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "qwen-coder-0.5b": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "gemma3-270m": "google/gemma-3-270m",
}
"""The folders of real models, and what each holds."""
PAIRS = (
    ("smollm2-135m", "qwen-coder-0.5b"),
    ("qwen-coder-0.5b", "smollm2-135m"),
    ("smollm2-135m", "gemma3-270m"),
    ("gemma3-270m", "smollm2-135m"),
)
KINDS = ("code", "story", "maths", "prose")
"""Kinds of text to report on; "other code" and "advice" are to choose by."""
_LONG = 520
"""Characters of the parts that stories are cut into, and of the texts that short advice is joined to."""


@dataclass(frozen=True)
class Given:
    """A text that is given after a prompt: a beginning of it, or a conversation."""

    prompt: str | list[dict[str, str]]
    text: str


@dataclass(frozen=True)
class SaidStep:
    """What both members say for one of main's tokens.

    Attributes:
        token_id: Main's token that is given.
        main: Main's log-probabilities [vocabulary].
        other: The other member's; None where bytes of an unfinished character wait.
        heard: What the other member has heard last.
    """

    token_id: int
    main: torch.Tensor
    other: torch.Tensor | None
    heard: Heard


def opened(models: Path, names: Sequence[str], dtype: str, device: str = "cpu") -> Ensemble:
    """Loads real models, the first one main, without what they warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Ensemble.load([models / name for name in names], dtype=dtype, device=device, progress=False)


def items(name: str) -> list[dict[str, Any]]:
    """The items of a test set, such as "gsm8k-dev"."""
    lines = (SETS / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def whole_texts(kind: str, count: int) -> list[str]:
    """Texts of a kind, at least 300 characters each, always the same.

    Raises:
        ValueError: If there are fewer.
    """
    if kind in ("code", "other code"):
        name = "humaneval-test" if kind == "code" else "humaneval-dev"
        found = [(item["prompt"] + item["canonical_solution"]).strip() for item in items(name)]
    elif kind == "story":
        stories = (SHARED / "data" / "tinystories_valid.txt").read_text(encoding="utf-8").split("\n")
        found = [part for story in stories for part in _parts(re.split(r"(?<=[.!?]) ", story))]
    elif kind == "advice":
        found = _parts([f"{item['question']} {item['choices'][item['answer']]}" for item in items("piqa-dev")])
    elif kind == "maths":
        found = [f"{item['question']}\n{item['solution']}" for item in items("gsm8k-dev")]
    else:
        found = [f"{item['question']}\n{item['choices'][item['answer']]}" for item in items("mmlu-dev")]
    found = [text for text in found if len(text) >= 300]
    if len(found) < count:
        raise ValueError(f"There are {len(found)} texts of {kind}, and {count} are asked for.")
    return random.Random(5).sample(found, count)


def _parts(pieces: Sequence[str]) -> list[str]:
    """Joins short texts, in order, to longer ones; what is left at the end is dropped."""
    parts, part = [], ""
    for piece in pieces:
        part = f"{part} {piece}".strip()
        if len(part) >= _LONG:
            parts.append(part)
            part = ""
    return parts


def beginnings(kind: str, count: int, size: int) -> list[Given]:
    """Texts of a kind, cut at a blank after some 60 characters; at most `size` characters are given."""
    cuts = [(text, text.index(" ", 60)) for text in whole_texts(kind, count)]
    return [Given(text[:cut], text[cut : cut + size]) for text, cut in cuts]


def answers(count: int, size: int) -> list[Given]:
    """Questions as conversations, and the beginnings of their right answers."""
    chosen = random.Random(5).sample(items("gsm8k-dev"), count)
    return [Given([{"role": "user", "content": item["question"]}], item["solution"][:size]) for item in chosen]


def said_of(ensemble: Ensemble, given: Given, limit: int | None = None) -> Iterator[SaidStep]:
    """Runs a text through both members of a pair.

    Args:
        ensemble: Of two members, the first one main.
        given: The text.
        limit: At most so many of its tokens.
    """
    main, other = ensemble._engine.members
    if isinstance(given.prompt, str):
        ids = continuation_ids(main.tokenizer, given.prompt, given.text)[:limit]
    else:
        ids = main.tokenizer.encode(given.text)[:limit]
    row = ensemble._engine.decoder.start(given.prompt, SamplingParams())
    held: tuple[list[list[int]], list[list[int]]] = ([], [])
    waiting, spoken = [], []
    for token_id in ids:
        for side, states in zip(row.member_sequences, held, strict=True):
            states.append(list(side.ids))
        waiting.append(row.others_behind)
        spoken.append(list(row.token_ids))
        row.speak(token_id)
    logits = [_logits(m.model, states) for m, states in zip((main, other), held, strict=True)]
    for place, token_id in enumerate(ids):
        (own, _), (theirs, before) = logits[0][place], logits[1][place]
        heard = Heard(held[1][place][-1], before, spoken[place], cut=row.continues_text)
        told = None if waiting[place] else torch.log_softmax(theirs, -1)
        yield SaidStep(token_id, torch.log_softmax(own, -1), told, heard)


@torch.inference_mode()
def _logits(model: Any, states: Sequence[Sequence[int]]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Logits behind the last id of each state of a growing text, and before it; from the last state back to the first.

    Nearly all of each state is the beginning of the last one, so only what is not is run again.
    """
    whole, cache = states[-1], DynamicCache()
    held: dict[str, Any] = {cache_option(model): cache, "use_cache": True}
    base = model(torch.tensor([whole], device=model.device), **held).logits[0].float()
    found: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    for ids in reversed(states):
        same = next((n for n, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), min(len(ids), len(whole)))
        if same == len(ids):
            found.append((base[same - 1], base[same - 2] if same > 1 else None))
            continue
        if cache.get_seq_length() > same:
            cache.crop(same - cache.get_seq_length())
        tail = model(torch.tensor([ids[same:]], device=model.device), **held).logits[0].float()
        found.append((tail[-1], tail[-2] if len(tail) > 1 else base[same - 1]))
    return found[::-1]
