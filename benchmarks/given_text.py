"""Texts of several kinds, and readings of them in a real pair, to be fused in as many ways as are to be compared.

`MODELS` names the model folders, which are not in this repository. Texts come from public test sets, JSON lines in a
folder `shared` beside it; without them benchmarks say so and end.
"""

from __future__ import annotations

import json
import random
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepen_core import Ensemble
from deepen_core.engine.reading import TextReading
from deepen_core.engine.scoring import TextReader

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
    ("qwen-coder-0.5b", "gemma3-270m"),
    ("gemma3-270m", "qwen-coder-0.5b"),
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


def opened(models: Path, names: Sequence[str], dtype: str, device: str = "cpu", **options: Any) -> Ensemble:
    """Loads real models, the first one main, without what they warn of; `options` are of `Ensemble.load`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Ensemble.load([models / name for name in names], dtype=dtype, device=device, progress=False, **options)


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


def read(ensemble: Ensemble, given: Given, limit: int | None = None) -> TextReading:
    """Returns the reading of a text in the members of a pair, to iterate over once.

    Args:
        ensemble: The pair.
        given: The text.
        limit: At most so many of main's tokens of it.
    """
    reading = next(TextReader(ensemble._engine).readings([(given.prompt, given.text)]))
    reading.texts[0] = replace(reading.texts[0], token_ids=reading.texts[0].token_ids[:limit])
    return reading
