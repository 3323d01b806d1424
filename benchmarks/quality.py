"""How many of the demo's held-out questions are answered right: by each member alone and by the ensemble.

Run with `python -m benchmarks.quality`; `--help` lists the options.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.report import publish
from deepen_core import Ensemble, FusionConfig
from deepen_core.demo import MEMBERS
from deepen_core.demo.world import Question, questions

STRATEGIES: dict[str, str | FusionConfig] = {
    "deepen": "deepen",
    "weighted average (power 1)": FusionConfig(power=1.0),
    "soft rows": FusionConfig(rows="soft"),
    "soft rows, unshared tokens by embedding": FusionConfig(unshared="embedding"),
    "soft rows, AdamW search": FusionConfig(search="adamw"),
    "deepen-paper": "deepen-paper",
    "product": "product",
    "union": "union",
    "translate": "translate",
    "bytes": "bytes",
}


def is_right(text: str, question: Question) -> bool:
    """Exact match, white space and the full stop aside."""
    return text.strip().rstrip(".") == question.answer


def measure(asked: list[Question], **options: Any) -> dict[str, Any]:
    """Exact match over all questions and by who knows the answer, and the work of the listening member."""
    with Ensemble.demo(**options) as ensemble:
        answers = []
        for place in tqdm(range(0, len(asked), 32), desc=str(options), leave=False):
            prompts = [q.prompt for q in asked[place : place + 32]]
            answers += ensemble.generate(prompts, max_new_tokens=12, stop=["\n"])
        main = ensemble.main_name
    right = [is_right(a.text, q) for a, q in zip(answers, asked, strict=True)]
    row: dict[str, Any] = {"exact match": sum(right) / len(right)}
    for group in sorted({q.known_to for q in asked}):
        of_group = [r for r, q in zip(right, asked, strict=True) if q.known_to == group]
        row[f"known to {group}"] = sum(of_group) / len(of_group)
    listeners = [w for a in answers for w in a.member_work if w.name != main]
    own = sum(w.text_tokens for w in listeners)
    row["tokens run / own token"] = sum(w.tokens_run for w in listeners) / own if own else 0.0
    return row


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=len(questions()), help="ask so many of the held-out questions")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; the models are too small for more")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    step = max(1, len(questions()) // given.questions)
    asked = questions()[::step][: given.questions]
    rows = []
    for place, name in enumerate(MEMBERS):
        alone = [float(i == place) for i in range(len(MEMBERS))]
        rows.append({"who answers": f"{name} alone", "main": name, **measure(asked, main=place, weights=alone)})
    for strategy, config in STRATEGIES.items():
        for place, name in enumerate(MEMBERS):
            rows.append({"who answers": strategy, "main": name, **measure(asked, main=place, fusion=config)})
    best = max(row["exact match"] for row in rows[: len(MEMBERS)])
    for row in rows:
        row["against the best member"] = row["exact match"] - best
    publish("quality", f"Exact match on {len(asked)} held-out questions of the demo", rows, questions=len(asked))


if __name__ == "__main__":
    main()
