"""A member of any kind that is to run in an actor: its small files are read here, its weights only there."""

from __future__ import annotations

from pathlib import Path

import torch

from deepen_core.config import MemberConfig
from deepen_core.config.ray import RayConfig
from deepen_core.errors import ConfigurationError, brief
from deepen_core.members.base import WeightBytes
from deepen_core.members.loading import DescribedMember, describe_member
from deepen_core.members.model_path import model_path
from deepen_core.members.ray.actor import check_same, digest
from deepen_core.members.ray.cluster import Connection, RayLink
from deepen_core.members.ray.link import LoadedActor
from deepen_core.members.ray.member import RayMember
from deepen_core.members.tokenizer import MemberTokenizer

_READ_HERE = ("ray", "prompt", "system", "chat_template")
"""Options that the actor does without."""


class RayStarter:
    """Starts actors for a member, see `Starter`.

    Args:
        config: The member.
        options: Its place.
        device: See `describe_member`, as the others.
        dtype: Used if the member does not set its own.
        max_window: Caps its context window.
        vocabulary: The digest of its tokenizer.

    Raises:
        ConfigurationError: If there is no cluster.
    """

    def __init__(
        self,
        config: MemberConfig,
        options: RayConfig,
        device: str | None,
        dtype: str | None,
        max_window: int | None,
        vocabulary: str,
    ) -> None:
        self._name = str(config.name)
        self._given = (_as_there(config), device, dtype, max_window)
        self._options = options
        self._vocabulary = vocabulary
        self._connection = Connection(options.address)
        self._placed: RayLink | None = None

    def place(self) -> None:
        """Starts an actor, which checks the member's files where it runs.

        Raises:
            DeepenError: If there is no machine for it, or the files cannot be used.
        """
        try:
            link = RayLink(self._options)
        except Exception as problem:  # Ray raises anything, such as for a wrong runtime_env or a lost connection
            raise ConfigurationError(
                f"Ray cannot start an actor for member {self._name!r} ({brief(problem)}): check its ray options, and "
                "whether the cluster still runs."
            ) from problem
        try:
            link.wait_for_place(self._name, may_grow=not self._connection.is_own)
            link.ask(self._name, "reading its files", self._options.load_timeout, "check", *self._given)
        except BaseException:
            link.kill()
            raise
        self._placed = link

    def start(self) -> LoadedActor:
        """See `Starter.start`."""
        if self._placed is None:
            self.place()
        link, self._placed = self._placed, None
        assert link is not None, "just placed"
        try:
            given = (self._name, "loading its weights", self._options.load_timeout, "load")
            facts = link.ask(*given, self._options.top_k)
            check_same(facts, self._vocabulary, self._name)
        except BaseException:
            link.kill()
            raise
        return LoadedActor(link, facts)

    def close(self) -> None:
        """See `Starter.close`."""
        self._connection.close()


class RayDescription:
    """A `DescribedMember` whose weights are loaded by an actor.

    Args:
        config: The member.
        options: Its place.
        here: The same member as this process would load it.
        given: Device, dtype and cap of the context window, for the actor.
    """

    def __init__(
        self,
        config: MemberConfig,
        options: RayConfig,
        here: DescribedMember,
        given: tuple[str | None, str | None, int | None],
    ) -> None:
        self.config = config
        self._options = options
        self._here = here
        self._given = given
        self._starter: RayStarter | None = None  # with an actor that has checked the files

    @property
    def name(self) -> str:
        """The member's name."""
        return str(self.config.name)

    @property
    def tokenizer(self) -> MemberTokenizer:
        """The member's tokenizer."""
        return self._here.tokenizer

    @property
    def context_window(self) -> int:
        """See `DescribedMember.context_window`."""
        return self._here.context_window

    @property
    def device(self) -> torch.device:
        """See `Member.device`: where its logits arrive."""
        return RayMember.device

    @property
    def architecture(self) -> str:
        """See `DescribedMember.architecture`."""
        return self._here.architecture

    def weight_bytes(self) -> WeightBytes | None:
        """See `DescribedMember.weight_bytes`; they take no memory of this process."""
        return None

    def check_files(self) -> None:
        """See `DescribedMember.check_files`: starts the actor, which checks the files on its machine.

        Raises:
            ConfigurationError: If there is no cluster, or no machine in it with the resources.
            DeepenError: If the files cannot be used there.
        """
        vocabulary = digest(self.tokenizer.vocabulary)
        starter = RayStarter(self.config, self._options, *self._given, vocabulary)
        try:
            starter.place()
        except BaseException:
            starter.close()
            raise
        self._starter = starter

    def load(self, *, progress: bool) -> RayMember:  # noqa: ARG002 (the actor has no terminal)
        """See `DescribedMember.load`."""
        if self._starter is None:
            self.check_files()
        starter, self._starter = self._starter, None
        assert starter is not None, "just checked"
        try:
            return RayMember(self.name, self.tokenizer, self.context_window, self._options, starter)
        except BaseException:
            starter.close()
            raise


def describe(
    config: MemberConfig,
    device: str | None,
    dtype: str | None,
    max_window: int | None = None,
    *,
    progress: bool = False,
) -> RayDescription:
    """Reads the configuration and tokenizer of a member with ray options; see `describe_member`."""
    assert config.ray is not None, "it has ray options"
    here = config.model_copy(update={"ray": None, "device": None})
    described = describe_member(here, "cpu", dtype, max_window, progress=progress)
    return RayDescription(config, config.ray, described, (device, dtype, max_window))


def _as_there(config: MemberConfig) -> MemberConfig:
    """Returns a member as its actor loads it, with paths that do not depend on the working directory."""
    paths = {"model": config.model, "tokenizer": config.tokenizer, "adapter": config.adapter}
    placed = {name: _absolute(path) for name, path in paths.items() if path is not None}
    return config.model_copy(update={**dict.fromkeys(_READ_HERE), **placed})


def _absolute(given: str) -> str:
    path: Path = model_path(given)
    return str(path.absolute()) if path.exists() else given
