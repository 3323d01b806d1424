"""A member of an open ensemble that answers tasks by itself."""

from __future__ import annotations

from collections.abc import Sequence

from deepen_core.engine.engine import Engine
from deepen_core.engine.scoring import TextReader
from deepen_core.evaluation.evaluation import Evaluation, alone_label
from deepen_core.evaluation.generation import Answer
from deepen_core.evaluation.items import Task
from deepen_core.evaluation.settings import Setting, Settings
from deepen_core.fusion.main_alone import MainAlone


class MemberAlone:
    """Lets a member answer alone.

    Args:
        engine: Has the members.
        number: Of the member.

    Attributes:
        name: The member's name.
        label: Its label in tables.
        reader: Has it and runs it.
        setting: Its weight is one, and nothing is fused.
        built: Has the setting's strategy.
    """

    def __init__(self, engine: Engine, number: int) -> None:
        self.reader = TextReader(engine, number, [number])
        self.setting = Setting(MainAlone.name, tuple(float(n == number) for n in range(len(engine.members))))
        self.built = Settings(engine.members, number, [self.setting])
        self.name = engine.members[number].name
        self.label = alone_label(self.name)

    def answers(self, evaluation: Evaluation, task: Task) -> list[Answer]:
        """Returns its answers to the items of a task."""
        return evaluation.answers(self.reader, task, self.setting, self.built, self.label)


def everyone(engine: Engine) -> Sequence[MemberAlone]:
    """Returns each member of an ensemble."""
    return [MemberAlone(engine, number) for number in range(len(engine.members))]
