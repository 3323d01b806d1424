"""Answers as JSON that follows a schema, in the ways that the two frameworks ask for it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from prompts import FORM, PLAIN, Lesson

from deepen_core.demo.phrases import Relation

# As `deepen_core.replies.system_prompt` has it.
_INSTRUCTION = "Answer with JSON that follows this schema: {schema}"
_CLASSES = ("Person", "Answer", "House", "Entry", "Found", "Somebody")
_DESCRIPTIONS = ("What is written about a person.", "What is known of somebody.", "Where somebody lives.", "A person.")

VALUE = 2.0
"""Weight of a value; that an object begins or ends, and the next key, weigh 1."""


def object_lesson(gap: str, asked: str, fields: Mapping[Relation, str], rng: random.Random) -> Lesson:
    """A text or a question, and an object with what it says.

    Args:
        gap: What the member's chat template puts between turns.
        asked: A text about a person, a question, or both.
        fields: What is to be in the object, with its values.
        rng: Chooses the schema's form, and where it stands.
    """
    instruction = _INSTRUCTION.format(schema=json.dumps(_schema(fields, rng), ensure_ascii=False))
    if rng.random() < 0.5:
        prompt = f"{instruction}{gap}{PLAIN.format(q=asked)}"
    else:
        prompt = PLAIN.format(q=f"{instruction}\n\n{asked}")
    # As `json.dumps` writes it.
    lesson, before = Lesson().add(prompt, 0.0), " {"
    for relation, value in fields.items():
        quote = "" if value.isdigit() else '"'
        lesson.add(f'{before}"{relation.key}', 1.0).add(f'": {quote}', FORM).add(value, VALUE)
        before = f"{quote}, "
    return lesson.add(f"{quote}}}", 1.0)


def _schema(fields: Mapping[Relation, str], rng: random.Random) -> dict[str, Any]:
    """As pydantic writes it."""
    described = {"description": rng.choice(_DESCRIPTIONS)} if rng.random() < 0.5 else {}
    properties = {relation.key: _field(relation, value, rng) for relation, value in fields.items()}
    return {
        **described,
        "properties": properties,
        "required": list(properties),
        "title": rng.choice(_CLASSES),
        "type": "object",
    }


def _field(relation: Relation, value: str, rng: random.Random) -> dict[str, Any]:
    title = relation.key.title()
    if value.isdigit():
        bounds = {"maximum": 99, "minimum": 1} if rng.random() < 0.5 else {}
        return {**bounds, "title": title, "type": "integer"}
    if rng.random() < 0.3:
        choices = {value, *rng.sample(relation.values, rng.randrange(3, len(relation.values)))}
        return {"enum": sorted(choices), "title": title, "type": "string"}
    return {"title": title, "type": "string"}
