"""The embedded demo: a small invented world, two real models that each know a part of it, and a translator."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from deepen_core.demo.tasks import write_tasks
from deepen_core.demo.world import MEMBERS, TRANSLATOR, Document, Question, documents, questions
from deepen_core.errors import ConfigurationError

__all__ = [
    "MEMBERS",
    "TRANSLATOR",
    "Document",
    "Question",
    "documents",
    "member_paths",
    "questions",
    "unread",
    "write_tasks",
]


def member_paths(members: Sequence[str] = MEMBERS) -> list[Path]:
    """Returns the folders of models in transformers format.

    Args:
        members: Which, among `MEMBERS` and `TRANSLATOR`.

    Raises:
        ConfigurationError: If there is no such model.
    """
    known = (*MEMBERS, TRANSLATOR)
    if unknown := [name for name in members if name not in known]:
        raise ConfigurationError(f"The demo has no member {unknown[0]!r}: choose among {', '.join(known)}.")
    models = Path(str(files("deepen_core.demo"))) / "models"
    return [models / name for name in members]


def unread(prompt: object) -> str:  # noqa: ARG001 (a form of prompts takes one)
    """Returns no prompt: beside the translator, members that cannot read its language only say what is true.

    Args:
        prompt: A sentence in a foreign language.
    """
    return ""
