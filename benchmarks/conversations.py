"""The first token of each further turn of a conversation, with what the last answer left and read from the start.

Run with `python -m benchmarks.conversations --models FOLDER`, a folder with those of `benchmarks.given_text.MODELS`;
`--help` lists the options. A conversation asks about notes, which are word problems of a public test set, and goes on
with further questions. Gemma 3 270M has no chat template: with it, conversations are plain texts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from benchmarks.given_text import MODELS, SETS, items, opened
from benchmarks.report import publish
from deepen_core import Ensemble

PAIRS = (("qwen-coder-0.5b", "smollm2-135m"), ("qwen-coder-0.5b", "gemma3-270m"))
QUESTIONS = ("How many people are named?", "Who of them is the oldest?", "Who earns money?", "Name an animal.")


def notes(number: int, size: int) -> str:
    """Notes of some characters, others for each number."""
    problems = items("gsm8k-test")[20 * number :]
    return " ".join(problem["question"] for problem in problems)[:size]


def conversation(ensemble: Ensemble, number: int, size: int, tokens: int, *, kept: bool) -> list[dict[str, Any]]:
    """Returns the ids that a member ran, those of the answer too, the seconds to its first piece, and it, of each turn.

    Args:
        ensemble: Answers.
        number: Of the conversation.
        size: Characters of its notes.
        tokens: Of each answer.
        kept: Whether each turn finds what the one before has left.
    """
    ensemble.forget()
    told: list[str] = [f"Notes: {notes(number, size)}"]
    found = []
    for question in QUESTIONS:
        told.append(question)
        prompt = _prompt(ensemble, told)
        if not kept:
            ensemble.forget()
        before, began = _ids_run(ensemble), time.perf_counter()
        pieces = ensemble.stream(prompt, max_new_tokens=tokens, ignore_eos=True)
        chunks = [next(pieces)]
        seconds = time.perf_counter() - began
        chunks += pieces
        ids = max(after - held for after, held in zip(_ids_run(ensemble), before, strict=True))
        answer = chunks[-1].generation
        assert answer is not None, "the last chunk has the answer"
        found.append({"prompt": answer.usage.prompt_tokens, "ids": ids, "seconds": seconds, "answer": answer.token_ids})
        told.append(answer.text.strip() or "-")
    return found


def _prompt(ensemble: Ensemble, told: Sequence[str]) -> Any:
    if not ensemble.has_chat_template:
        return "\n\n".join(told)
    roles = ["system", *("user", "assistant") * len(told)]
    return [{"role": role, "content": text} for role, text in zip(roles, told, strict=False)]


def _ids_run(ensemble: Ensemble) -> list[int]:
    return [member.work.ids_run for member in ensemble._engine.members]


def measure(ensemble: Ensemble, conversations: int, size: int, tokens: int) -> dict[str, Any]:
    """Medians over all further turns, of which the first ones are not counted."""
    ensemble.generate("Hello", max_new_tokens=2)  # what the libraries do at their first use
    further: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number in range(conversations):
        with_it, without = (conversation(ensemble, number, size, tokens, kept=kept) for kept in (True, False))
        further += list(zip(with_it, without, strict=True))[1:]
    return {
        "turns": len(further),
        "prompt tokens": statistics.median(one["prompt"] for one, _ in further),
        "ids run": statistics.median(one["ids"] for one, _ in further),
        "ids run from the start": statistics.median(other["ids"] for _, other in further),
        "first token s": statistics.median(one["seconds"] for one, _ in further),
        "of the time from the start": statistics.median(one["seconds"] / other["seconds"] for one, other in further),
        "same answer": sum(one["answer"] == other["answer"] for one, other in further),
    }


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"), help="the real models")
    parser.add_argument("--conversations", type=int, default=2)
    parser.add_argument("--characters", type=int, default=2000, help="of the notes")
    parser.add_argument("--tokens", type=int, default=24, help="of each answer")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.models is None or not SETS.is_dir():
        print(f"Give --models, a folder with {', '.join(MODELS)}, and put the test sets into {SETS}.")
        return
    rows = []
    for names in PAIRS:
        for dtype in tqdm(given.dtypes, desc=" + ".join(names)):
            with opened(given.models, names, dtype, given.device) as ensemble:
                found = measure(ensemble, given.conversations, given.characters, given.tokens)
            rows.append({"members": " + ".join(names), "dtype": dtype, **found})
            print(rows[-1], flush=True)
    publish("conversations", "Further turns of a conversation", rows)


if __name__ == "__main__":
    main()
