"""Runs tasks of lm-evaluation-harness on an open ensemble."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, make_table

from deepen_core.chat.messages import TextStart
from deepen_core.errors import DeepenError, EvaluationError, brief
from deepen_core.members.tokenizer import SAMPLE_TEXT
from deepen_integrations.harness.model import DeepenHarnessLM

if TYPE_CHECKING:
    from deepen_core import Ensemble


@dataclass(frozen=True)
class HarnessPlan:
    """What to run.

    Attributes:
        tasks: Names of tasks, groups or tags of the harness, or paths of YAML files.
        manager: Knows them.
        few_shot: Examples shown before each question; what the task says if None.
        limit: At most so many items of each task; all if None.
        chat: Ask in conversations.
        cache: A folder that keeps answers: the same run goes on from there. None keeps nothing.
    """

    tasks: tuple[str, ...]
    manager: Any
    few_shot: int | None = None
    limit: int | None = None
    chat: bool = False
    cache: Path | None = None

    @classmethod
    def checked(cls, tasks: Sequence[str], folder: Path | None, **options: Any) -> HarnessPlan:
        """Returns a plan for tasks that there are.

        Args:
            tasks: As in the plan.
            folder: Holds more tasks as YAML; the harness's own are not looked at if all are found there.
            options: The other attributes.

        Raises:
            EvaluationError: If there is no such folder or task.
        """
        if folder is not None and not folder.is_dir():
            raise EvaluationError(f"There is no folder {folder} of tasks.")
        names = [name for name in tasks if not _is_file(name)]
        manager = TaskManager(include_path=folder and str(folder), include_defaults=False)
        if _unknown(names, manager.all_tasks):
            manager = TaskManager(include_path=folder and str(folder))  # reads ten thousand files
        if unknown := _unknown(names, manager.all_tasks):
            near = get_close_matches(unknown[0], manager.all_tasks)
            raise EvaluationError(
                f"The harness has no task {unknown[0]!r}: "
                + (f"is it {' or '.join(near)}? " if near else "")
                + "Give a name of `lm_eval ls tasks`, the path of a YAML file, or a folder of such files."
            )
        return cls(tuple(tasks), manager, **options)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _unknown(names: Sequence[str], known: Collection[str]) -> list[str]:
    return [name for name in names if name not in known]


def run_harness(ensemble: Ensemble, plan: HarnessPlan) -> dict[str, Any]:
    """Runs tasks.

    Args:
        ensemble: The ensemble.
        plan: What to run.

    Returns:
        The harness's results, with the single answers as `samples`.

    Raises:
        EvaluationError: If the harness cannot run a task, or its data is not there.
        DeepenError: If a member cannot answer.
    """
    model = DeepenHarnessLM(ensemble)
    cache = None if plan.cache is None else str(plan.cache / f"answers-{_fingerprint(ensemble)}")
    try:
        found: dict[str, Any] = simple_evaluate(
            model,
            tasks=list(plan.tasks),
            num_fewshot=plan.few_shot,
            limit=plan.limit,
            use_cache=cache,
            apply_chat_template=plan.chat,
            task_manager=plan.manager,
        )
    except DeepenError:
        raise
    except Exception as problem:
        raise EvaluationError(f"The harness cannot run {', '.join(plan.tasks)}: {brief(problem)}") from problem
    found["config"]["model"] = "deepen"
    return found


def _fingerprint(ensemble: Ensemble) -> str:
    """Returns what tells an ensemble from others, whatever makes the difference: how likely it finds a sample text."""
    score = ensemble.score(TextStart(), SAMPLE_TEXT[:40])
    return f"{'+'.join(member.name for member in ensemble.info.members)}-{-score.total:.3f}"


def table(results: dict[str, Any]) -> str:
    """Returns the harness's own table of results, and of groups of tasks where there are some."""
    tables = [make_table(results), *([make_table(results, "groups")] if results.get("groups") else [])]
    return "\n".join(tables)


def to_json(results: Any) -> str:
    """Returns results as JSON, as the harness writes them."""
    return json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False) + "\n"
