"""The embedded demo: a small invented world, and two real models that each know a part of it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from deepen_core.demo.world import MEMBERS, Document, Question, documents, questions

__all__ = ["MEMBERS", "Document", "Question", "documents", "member_paths", "questions"]


def member_paths() -> list[Path]:
    """Returns the folders of the two models in transformers format, in the order of `MEMBERS`."""
    models = Path(str(files("deepen_core.demo"))) / "models"
    return [models / name for name in MEMBERS]
