"""What is compared: strategies, each with the weights of the members."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from deepen_core.config import PRESETS
from deepen_core.evaluation.strategies import Strategies
from deepen_core.fusion import strategy_of
from deepen_core.fusion.base import Fusion, StepInputs
from deepen_core.fusion.comparison import Comparison
from deepen_core.fusion.gates import Gate, gate_of
from deepen_core.fusion.mixing import GivenSteps, Mixer
from deepen_core.fusion.policies import StaticWeights, WeightPolicy, policy_named
from deepen_core.fusion.weights import policy_and_shares
from deepen_core.members.base import Member, asks_by_token
from deepen_core.sampling.largest import places_of_largest


@dataclass(frozen=True)
class Setting:
    """A strategy with weights.

    Attributes:
        fusion: The name of the strategy.
        weights: One number per member, summing to one, or the name of a policy, which shares may follow as in
            "perplexity:0.9,0.1"; they are equal otherwise.
        gate: Asks the other members only where main's top probability is below this; None for everywhere.
    """

    fusion: str
    weights: tuple[float, ...] | str
    gate: float | None = None

    @property
    def label(self) -> str:
        """Its name in tables, which nothing else has."""
        weights = self.weights if isinstance(self.weights, str) else " ".join(f"{w:.3g}" for w in self.weights)
        gate = "" if self.gate is None else f" gate {self.gate:g}"
        return f"{self.fusion} {weights}{gate}"

    @property
    def options(self) -> str:
        """The options of the command line that ask for it, but for the main member."""
        weights = self.weights if isinstance(self.weights, str) else ",".join(f"{w:.3g}" for w in self.weights)
        gate = "" if self.gate is None else f" --gate {self.gate:g}"
        return f"--fusion {self.fusion} --weights {weights}{gate}"


def equal(members: int) -> tuple[float, ...]:
    """Returns equal weights."""
    return (1.0 / members,) * members


def default_weights(fusion: str, members: Sequence[Member]) -> tuple[float, ...] | str:
    """Returns the weights that an ensemble has by default with some strategy.

    Args:
        fusion: The name of the strategy.
        members: The members.
    """
    policy = strategy_of(PRESETS[fusion]).default_policy(asks_by_token=any(map(asks_by_token, members)))
    return equal(len(members)) if policy == "static" else policy


def grid_of_weights(members: int, parts: int) -> list[tuple[float, ...]]:
    """Returns all weights that are multiples of a part of one, positive for at least two members.

    Args:
        members: Number of members.
        parts: Number of parts that one is divided into.
    """
    counts = (c for c in itertools.product(range(parts + 1), repeat=members) if sum(c) == parts)
    return [tuple(n / parts for n in count) for count in counts if sum(n > 0 for n in count) > 1]


def grid_of_shares(members: int, steps: int) -> list[tuple[float, ...]]:
    """Returns shares of which none is more than a thousand times another one, equal ones first.

    Args:
        members: Number of members.
        steps: Number of steps in which a member's share grows from that of another one to a thousand times as much.
    """
    counts = [count for count in itertools.product(range(steps + 1), repeat=members) if min(count) == 0]
    raised = [[1000 ** (number / steps) for number in count] for count in counts]
    return [tuple(value / sum(values) for value in values) for values in raised]


class Settings:
    """Settings for the members of an open ensemble, with one strategy object for all that share it.

    Args:
        members: The members.
        main: The number of the member whose vocabulary is used.
        settings: The settings.
        strategies: Builds the strategies; those of `PRESETS` if None.
    """

    def __init__(
        self,
        members: Sequence[Member],
        main: int,
        settings: Sequence[Setting],
        strategies: Strategies | None = None,
    ) -> None:
        self._members = members
        self._main = main
        self._strategies = strategies or Strategies(members)
        self._settings = list(settings)
        thresholds = dict.fromkeys(s.gate for s in settings if s.gate is not None)
        self.gates = {f"{value:g}": gate for value in thresholds if (gate := gate_of(value)) is not None}

    @cached_property
    def fusions(self) -> dict[str, Fusion]:
        """The strategies by their names."""
        names = dict.fromkeys(setting.fusion for setting in self._settings)
        return {name: self._strategies.get(name, self._main) for name in names}

    @cached_property
    def mixers(self) -> dict[str, dict[Setting, Mixer]]:
        """For each strategy by its name, what fuses in each of its settings."""
        return {name: {s: self._mixer(s) for s in self._settings if s.fusion == name} for name in self.fusions}

    def _mixer(self, setting: Setting) -> Mixer:
        policy = policy_for(setting, len(self._members))
        return Mixer(self.fusions[setting.fusion], policy, self._main, gate_for(setting))

    @property
    def read_prompts(self) -> bool:
        """Whether a setting weighs the members by the prompts."""
        return any(mixer.reads_prompts for mixers in self.mixers.values() for mixer in mixers.values())

    def comparison(self, name: str, steps: GivenSteps) -> Comparison | None:
        """Compares what the members say, once for all settings of a strategy; None if it does not compare tokens.

        Args:
            name: Of the strategy.
            steps: The steps.
        """
        return self.fusions[name].compare(StepInputs(steps.logprobs, steps.speaking.float(), steps.heard))

    @property
    def main_name(self) -> str:
        """The name of the main member."""
        return self._members[self._main].name

    def main_chooses(self, steps: GivenSteps) -> list[bool]:
        """Returns for each step whether main alone finds the token that follows the most probable one."""
        return (places_of_largest(self._own(steps)).cpu() == torch.tensor(steps.token_ids)).tolist()

    def _own(self, steps: GivenSteps) -> torch.Tensor:
        main = steps.logprobs[self._main]
        assert main is not None, "main never abstains"
        return main

    def opened(self, steps: GivenSteps) -> dict[str, list[bool]]:
        """Returns for each gate, by its threshold, in which steps the other members are asked."""
        return {label: gate.opens(self._own(steps)).tolist() for label, gate in self.gates.items()}


def gate_for(setting: Setting) -> Gate | None:
    """Returns the gate of a setting."""
    return gate_of(setting.gate)


def policy_for(setting: Setting, members: int) -> WeightPolicy:
    """Returns what weighs the members in a setting.

    Args:
        setting: The setting.
        members: Number of members.
    """
    if isinstance(setting.weights, str):
        name, shares = policy_and_shares(setting.weights)
        return policy_named(name, shares or equal(members))
    return StaticWeights(setting.weights)
