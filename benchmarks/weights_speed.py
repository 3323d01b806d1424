"""Time of a general model with a specialist over that of the specialist alone, by how the two are weighed.

Run with `python -m benchmarks.weights_speed --models FOLDER`, a folder with those of `benchmarks.given_text.MODELS`;
`--help` lists the options. Prompts are programs, sums and questions of public test sets, in plain text and, but for
programs, after four examples. Each prompt is answered by the ensemble and by main alone in turn, in one process.
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

from benchmarks.given_text import MODELS, SETS, opened
from benchmarks.report import publish
from deepen_core import Ensemble
from deepen_core.evaluation.items import prompt_of
from deepen_core.evaluation.task_file import read_task

PAIR = ("qwen-coder-0.5b", "gemma3-270m")
KINDS = {"programs": "humaneval", "sums": "gsm8k", "questions": "triviaqa"}
WEIGHTS = {
    "adaptive": "adaptive",
    "context": "context",
    "perplexity": "perplexity:0.9091,0.09091",  # near the shares that `benchmarks.tasks` fits, 0.97 and 0.03
}
_SHOTS = 4


def prompts_of(kind: str, count: int) -> list[str]:
    """Returns some prompts of a kind."""
    name = KINDS[kind]
    shots = [] if name == "humaneval" else read_task(SETS / f"{name}-dev.jsonl", _SHOTS).open
    asked = read_task(SETS / f"{name}-test.jsonl", count).items
    return [str(prompt_of(item, shots, chat=False)) for item in asked]


def asked(ensemble: Ensemble, prompts: str | Sequence[str], tokens: int) -> tuple[float, Any]:
    """The seconds that an ensemble takes for answers of so many tokens, as the first of all; and the answers."""
    ensemble.forget()
    began = time.perf_counter()
    found = ensemble.generate(prompts, max_new_tokens=tokens, ignore_eos=True)
    return time.perf_counter() - began, found


def compared(ensemble: Ensemble, prompts: Sequence[str], tokens: int) -> dict[str, float]:
    """Ratios over main alone: the first token, and answers one by one and together; and what the other one runs.

    Of the first two, the median of all prompts: on a shared machine, one of them may take twice as long.

    Args:
        ensemble: The two.
        prompts: A first one that is not measured, and a third of the others for each of the three.
        tokens: Of each answer.
    """
    both = (ensemble, ensemble.alone(0))
    warm, *rest = prompts
    for one in both:
        one.generate(warm, max_new_tokens=2)  # what the libraries do at their first use
    firsts, answers = [], []
    steps = [0, 0]
    for prompt in rest[::3]:
        found = [asked(one, prompt, 1)[0] for one in both]
        firsts.append(found[0] / found[1])
    for prompt in rest[1::3]:
        (taken, answer), (alone, _) = (asked(one, prompt, tokens) for one in both)
        answers.append(taken / alone)
        steps = [held + work.steps for held, work in zip(steps, answer.member_work, strict=True)]
    together = [asked(one, rest[2::3], tokens)[0] for one in both]
    return {
        "first token": statistics.median(firsts),
        "one by one": statistics.median(answers),
        "together": together[0] / together[1],
        "other one runs, %": 100 * steps[1] / steps[0],
    }


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"), help="the real models")
    parser.add_argument("--prompts", type=int, default=8, help="of each kind, for each measure")
    parser.add_argument("--tokens", type=int, default=24, help="of each answer")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.models is None or not SETS.is_dir():
        print(f"Give --models, a folder with {', '.join(MODELS)}, and put the test sets into {SETS}.")
        return
    asked = {kind: prompts_of(kind, 1 + 3 * given.prompts) for kind in KINDS}
    rows = []
    for label, weights in WEIGHTS.items():
        with opened(given.models, PAIR, given.dtype, given.device, weights=weights) as ensemble:
            for kind, prompts in tqdm(asked.items(), desc=label):
                found = compared(ensemble, prompts, given.tokens)
                rows.append({"weights": label, "prompts": kind, **found})
                print(rows[-1], flush=True)
    title = f"Time over {PAIR[0]} alone, {given.dtype}, with {PAIR[1]}"
    publish("weights_speed", title, rows, main=PAIR[0], other=PAIR[1], dtype=given.dtype, prompts=given.prompts)


if __name__ == "__main__":
    main()
