"""What a constraint costs: its share of the time that decoding takes, and masks over large vocabularies.

Run with `python -m benchmarks.constraints`; `--help` lists the options. The members are those of
`benchmarks.decoding`; the large vocabularies are real ones, and come from beside the project.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from benchmarks.decoding import SHARED, make_members, prompts
from benchmarks.report import publish
from deepen_core import Ensemble, SamplingParams
from deepen_core.chat.thoughts import Thoughts
from deepen_core.constraints.matcher import Constraint, Constraints
from deepen_core.engine import sequence as rows_of_the_engine
from deepen_core.replies import ReplyForm
from deepen_core.tokenization.vocabulary import Vocabulary

RECORDS = {
    "type": "array",
    "minItems": 50,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 3, "maxLength": 40},
            "born": {"type": "string", "pattern": "^[12][0-9]{3}-[01][0-9]-[0-3][0-9]$"},
            "score": {"type": "integer", "minimum": 0, "maximum": 1000},
            "kind": {"enum": ["dog", "cat", "bird", "fish"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 1, "maxItems": 4},
        },
        "required": ["name", "born", "score", "kind", "tags"],
        "additionalProperties": False,
    },
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"properties": {"records": RECORDS}}}}
    for name in ("add", "change", "compare")
]


def _grammar_of_calls(choice: str) -> str | None:
    return ReplyForm.from_openai(TOOLS, choice).params(SamplingParams(), Thoughts()).grammar


CONSTRAINTS: dict[str, dict[str, Any]] = {
    "json_schema": {"json_schema": RECORDS},
    "regex": {"regex": r"([A-Z][a-z]*( [a-z]+){2,12}[.!?] ){100}"},
    "tools, required": {"grammar": _grammar_of_calls("required")},
    "tools, a text": {"grammar": _grammar_of_calls("auto")},
}


class Watch:
    """Adds up the time that some functions take.

    Attributes:
        seconds: So far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, watched."""

        def watched(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - began

        return watched


@contextmanager
def watched() -> Iterator[Watch]:
    """Watches all that a row does for its constraint: asking what is allowed, masking scores, going on."""
    watch = Watch()
    allowed, advance, masked = Constraint.allowed, Constraint.advance, rows_of_the_engine.masked
    Constraint.allowed = watch.over(allowed)  # type: ignore[method-assign]
    Constraint.advance = watch.over(advance)  # type: ignore[method-assign]
    rows_of_the_engine.masked = watch.over(masked)
    try:
        yield watch
    finally:
        Constraint.allowed, Constraint.advance = allowed, advance  # type: ignore[method-assign]
        rows_of_the_engine.masked = masked


def measure(ensemble: Ensemble, texts: list[str], name: str, tokens: int, repeats: int) -> dict[str, Any]:
    """The share of the mask where some prompts are answered together, each with so many tokens."""
    options = {**CONSTRAINTS[name], "max_new_tokens": tokens, "temperature": 1.0, "seed": 1}
    ensemble.generate(texts, **options)
    found = []
    for _ in range(repeats):
        ensemble.forget()
        with watched() as watch:
            began = time.perf_counter()
            answers = ensemble.generate(texts, **options)
            whole = time.perf_counter() - began
        spoken = sum(len(answer.token_ids) for answer in answers)
        found.append((watch.seconds / whole, 1000 * watch.seconds / spoken, spoken / whole))
    share, each, rate = (statistics.median(values) for values in zip(*found, strict=True))
    return {"constraint": name, "batch": len(texts), "tokens/s": rate, "mask ms a token": each, "share of time": share}


def measure_vocabulary(folder: str, name: str, tokens: int) -> dict[str, Any]:
    """Masks alone over a real vocabulary, along an answer of tokens chosen at random."""
    vocabulary = Vocabulary.from_tokenizer(Tokenizer.from_file(str(SHARED / "tokenizers" / folder / "tokenizer.json")))
    constraints, params = Constraints(vocabulary), SamplingParams(**CONSTRAINTS[name])
    began = time.perf_counter()
    started = constraints.start(params, starts_text=False)
    first = time.perf_counter() - began
    began = time.perf_counter()
    started = constraints.start(params, starts_text=False)
    again = time.perf_counter() - began
    assert started is not None
    dice, scores, times = random.Random(0), torch.randn(vocabulary.size), []
    for _ in range(tokens):
        began = time.perf_counter()
        allowed = started.allowed(len(scores), scores.device)
        rows_of_the_engine.masked(scores, scores, allowed)
        took = time.perf_counter() - began
        token_id = dice.choice([i for i in allowed.nonzero()[:, 0].tolist() if i not in vocabulary.stop_ids])
        began = time.perf_counter()
        started.advance(token_id)
        times.append(took + time.perf_counter() - began)
        if started.complete:
            break
    return {
        "vocabulary": folder,
        "tokens": vocabulary.size,
        "constraint": name,
        "first start ms": 1000 * first,
        "later start ms": 1000 * again,
        "mask ms, mean": 1000 * statistics.mean(times),
        "median": 1000 * statistics.median(times),
        "largest": 1000 * max(times),
    }


def main() -> None:
    """Measures and publishes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=64, help="length of each answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if not SHARED.is_dir():
        print(f"{SHARED} is not there: it holds the tokenizers.")
        return
    large = [
        measure_vocabulary(folder, name, 200)
        for folder in ("mistral-v1", "gpt-2", "falcon", "mistral-tekken")
        for name in CONSTRAINTS
    ]
    print(json.dumps(large, indent=1), flush=True)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = make_members(Path(folder))
        options: dict[str, Any] = {"progress": False, "device": given.device}
        with Ensemble.load(paths, **options) as ensemble:
            ensemble.warm_up()
            texts = prompts(PreTrainedTokenizerFast.from_pretrained(paths[0]), 64, max(given.batches))
            rows = [
                measure(ensemble, texts[:batch], name, given.tokens, given.repeats)
                for name in CONSTRAINTS
                for batch in given.batches
            ]
    publish("constraints", "Constraints in decoding, a vocabulary of 32,000", rows, vocabularies=large)


if __name__ == "__main__":
    main()
