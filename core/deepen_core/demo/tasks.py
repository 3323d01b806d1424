"""The four tasks of the demo, and their validation splits, as items that `deepen eval` reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deepen_core.demo.ferry import translations
from deepen_core.demo.passages import passages
from deepen_core.demo.sums import sums
from deepen_core.demo.world import Split, questions

TaskItem = dict[str, Any]
"""One line of a task, in the form that `deepen_core.evaluation.task_file.read_task` describes."""


def facts_task(split: Split = "held-out") -> list[TaskItem]:
    """480 questions, one about each fact of the world; for validation as many in wordings that training has too."""
    asked = questions() if split == "held-out" else questions("training")[::4]
    return [{"question": one.text, "answers": [one.answer]} for one in asked]


def passages_task(split: Split = "held-out") -> list[TaskItem]:
    """500 questions about passages that contradict the world."""
    return [{"question": f"{one.text}\n{one.question}", "answers": [one.answer]} for one in passages(split)]


def sums_task(split: Split = "held-out") -> list[TaskItem]:
    """500 sums, half of them with house numbers of the world."""
    return [{"question": one.text, "answers": [str(one.result)], "solution": one.steps} for one in sums(split)]


def translation_task(split: Split = "held-out") -> list[TaskItem]:
    """500 sentences to translate from Ferrish, see `ferry`."""
    return [{"source": one.source, "translation": one.target} for one in translations(split)]


TASKS: Mapping[str, Callable[[Split], list[TaskItem]]] = {
    "facts": facts_task,
    "passages": passages_task,
    "sums": sums_task,
    "translation": translation_task,
}
"""The tasks by their names."""


def write_tasks(folder: str | Path, split: Split = "held-out") -> list[Path]:
    """Writes the tasks as files of JSON lines, `facts.jsonl` and so on, and returns their paths.

    Args:
        folder: Where to; made if it is missing.
        split: `held-out` is for results, `validation` for fitting weights and choosing settings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, items in TASKS.items():
        path = folder / f"{name}.jsonl"
        lines = (json.dumps(item, ensure_ascii=False) for item in items(split))
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        written.append(path)
    return written
