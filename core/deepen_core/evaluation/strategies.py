"""Strategies of an evaluation, each built once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deepen_core.config import PRESETS, StrategyOptions
from deepen_core.fusion import strategy_of
from deepen_core.fusion.base import Fusion
from deepen_core.fusion.main_alone import MainAlone
from deepen_core.members.base import Member
from deepen_core.progress import Steps


class Strategies:
    """Builds strategies by their names, each once for each main member; `MainAlone.name` fuses nothing.

    They are not those of the open ensemble, whose worker may be using them.

    Args:
        members: The members.
        options: Of each strategy, by its name.
    """

    def __init__(self, members: Sequence[Member], options: Mapping[str, StrategyOptions] = PRESETS) -> None:
        self._members = members
        self._options = options
        self._built: dict[tuple[str, int], Fusion] = {}

    def get(self, name: str, main: int) -> Fusion:
        """Returns a strategy.

        Args:
            name: Its name.
            main: The number of the main member.

        Raises:
            NoCommonTokensError: If it needs shared tokens, and there are none.
        """
        if (name, main) not in self._built:
            self._built[name, main] = MainAlone(main) if name == MainAlone.name else self._build(name, main)
        return self._built[name, main]

    def _build(self, name: str, main: int) -> Fusion:
        config = self._options[name]
        strategy = strategy_of(config)
        count = 1 + strategy.steps_of_member * len(self._members)
        with Steps("Preparing", config.label, count, shown=False) as steps:
            return strategy.build(self._members, main, config, steps)
