"""Validation items of the demo's causal members, by which their training is judged."""

from __future__ import annotations

import torch
from lessons import Kind, Teacher
from prompts import PLAIN
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from deepen_core.demo.passages import passages
from deepen_core.demo.sums import sums
from deepen_core.demo.world import questions


def validation(member: int) -> dict[str, list[tuple[str, str]]]:
    """Prompts and answers by which training is judged; what is published is measured on others.

    Args:
        member: 0 or 1, which reads its own chat template.
    """
    known: dict[str, list[tuple[str, str]]] = {}
    for question in questions("training")[::4]:
        known.setdefault(f"known to {question.known_to}", []).append((question.prompt, question.answer))
    told = [(PLAIN.format(q=f"{one.text}\n{one.question}"), one.answer) for one in passages("validation", count=100)]
    added = [(PLAIN.format(q=one.text), one.steps) for one in sums("validation", count=200)]
    formed = {kind: _formed(member, kind) for kind in _FORMED}
    return {**known, "passages": told, "sums": added, **formed}


_FORMED: tuple[Kind, ...] = ("quotes", "steps", "objects")


def _formed(member: int, kind: Kind) -> list[tuple[str, str]]:
    """Steps of agents and objects, from a teacher whose lessons nobody was trained on."""
    teacher = Teacher(member, seed=10**6)
    lessons = [teacher.lesson(kind) for _ in range(100)]
    # What does not count is given.
    ends = [max(end for _, end, weight in lesson.spans if not weight) for lesson in lessons]
    return [(one.text[:end].rstrip(" "), one.text[end:].strip()) for one, end in zip(lessons, ends, strict=True)]


@torch.inference_mode()
def exact_match(model: PreTrainedModel, tokenizer: Tokenizer, member: int) -> dict[str, float]:
    """Share of each kind of validation items answered exactly by greedy decoding."""
    model.eval()
    eos = model.config.eos_token_id
    by_length: dict[int, list[tuple[list[int], str, str]]] = {}
    for kind, items in validation(member).items():
        for prompt, answer in items:
            ids = tokenizer.encode(prompt).ids
            by_length.setdefault(len(ids), []).append((ids, answer, kind))
    right: dict[str, list[bool]] = {}
    for group in by_length.values():
        ids, cache = torch.tensor([prompt for prompt, _, _ in group]), None
        said, most = ids[:, :0], 2 + max(len(tokenizer.encode(answer).ids) for _, answer, _ in group)
        while said.shape[1] < most and not (said == eos).any(dim=1).all():
            output = model(input_ids=ids, past_key_values=cache, use_cache=True)
            ids, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
            said = torch.cat([said, ids], dim=1)
        for row, (_, answer, kind) in zip(said.tolist(), group, strict=True):
            ended = row[: row.index(eos)] if eos in row else row
            right.setdefault(kind, []).append(tokenizer.decode(ended).strip() == answer)
    return {key: sum(hits) / len(hits) for key, hits in sorted(right.items())}
