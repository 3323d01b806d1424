"""Loads a user's list of members, each by the loader of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch

from deepen_core.config import MemberConfig, member_config
from deepen_core.config.members import KINDS, RAY
from deepen_core.config.prompts import forms_by_member
from deepen_core.errors import ConfigurationError, MemberError, brief
from deepen_core.members.base import Member, WeightBytes, closed_on_error
from deepen_core.members.collector import collector_paused
from deepen_core.members.memory import is_memory, more_room, return_freed
from deepen_core.members.model_path import model_path
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.progress import Steps


class DescribedMember(Protocol):
    """A member before its weights are loaded: everything that small files contain."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def tokenizer(self) -> MemberTokenizer:
        """Its tokenizer."""
        ...

    @property
    def context_window(self) -> int:
        """In its own tokens."""
        ...

    @property
    def device(self) -> torch.device:
        """The device that it will be loaded on."""
        ...

    @property
    def architecture(self) -> str:
        """Kind of model."""
        ...

    def weight_bytes(self) -> WeightBytes | None:
        """Returns how large its weights are; None if they are not on this machine yet.

        Raises:
            ModelFilesError: If files are missing or damaged.
        """
        ...

    def check_files(self) -> None:
        """Checks the weight files as far as possible without reading the weights.

        Raises:
            ModelFilesError: If files are missing or damaged.
        """
        ...

    def load(self, *, progress: bool) -> Member:
        """Loads the weights.

        Args:
            progress: Show progress bars.

        Raises:
            ConfigurationError: If the member does not fit on its device.
            ModelFilesError: If weights are missing, damaged or do not fit the configuration.
        """
        ...


def member_configs(models: Sequence[str | Path | MemberConfig | Mapping[str, Any]]) -> list[MemberConfig]:
    """Checks the list of members and gives each a unique name.

    Raises:
        ConfigurationError: If the list is empty or an entry is wrong.
    """
    if isinstance(models, (str, Path, MemberConfig, Mapping)):
        raise ConfigurationError(
            f"models is a single {type(models).__name__}: give a list, such as ['path/a', 'path/b']."
        )
    if not models:
        raise ConfigurationError("The list of members is empty: give at least one model folder or hub id.")
    configs = []
    for number, entry in enumerate(models):
        try:
            configs.append(member_config(entry))
        except ConfigurationError as problem:
            raise ConfigurationError(f"Member {number}: {problem}") from problem
    given = [model_path(c.model).resolve().name or c.model if c.name is None else c.name for c in configs]
    names: list[str] = []
    for place, name in enumerate(given):
        again = (f"{name}-{number}" for number in range(2, len(given) + 2))
        free = (n for n in again if n not in given and n not in names)
        names.append(next(free) if name in given[:place] else name)
    return [c.model_copy(update={"name": name}) for c, name in zip(configs, names, strict=True)]


def with_prompts(configs: Sequence[MemberConfig], prompts: object) -> list[MemberConfig]:
    """Returns members with the forms of prompts that are given for all of them; those without keep their own.

    Args:
        configs: The members.
        prompts: One form for each, or by the members' names; None for none.

    Raises:
        ConfigurationError: If there is not one for each, a name is none of theirs, or a form is wrong.
    """
    try:
        forms = forms_by_member(prompts, [str(config.name) for config in configs])
    except ValueError as problem:
        raise ConfigurationError(f"prompts: {problem}.") from problem
    return [
        config if form is None else config.model_copy(update={"prompt": form})
        for config, form in zip(configs, forms, strict=True)
    ]


def main_index(main: object, names: Sequence[str], models: Sequence[str] = (), *, option: str = "main") -> int:
    """Resolves the main member, or another, to an index.

    Args:
        main: Index, name, or what the member was loaded from.
        names: The members' names.
        models: What each was loaded from, if known.
        option: What the caller calls it, for error messages.

    Raises:
        ConfigurationError: If the index or name is not among the members.
    """
    if isinstance(main, str):
        places = [i % len(names) for i, known in enumerate([*names, *models]) if main == known]
        if not places:
            raise ConfigurationError(f"{option} is {main!r}, but the members are {', '.join(names)}.")
        return min(places)
    if isinstance(main, bool) or not isinstance(main, int) or not -len(names) <= main < len(names):
        raise ConfigurationError(
            f"{option} is {main!r}, but there are {len(names)} members ({', '.join(names)}): give an index from 0 to "
            f"{len(names) - 1} or a name."
        )
    return main % len(names)


def describe_member(
    config: MemberConfig, device: str | None, dtype: str | None, max_window: int | None = None, *, progress: bool
) -> DescribedMember:
    """Describes a member without its weights, with the loader of its kind.

    Args:
        config: The member.
        device: Used if the member does not set its own.
        dtype: Used if the member does not set its own.
        max_window: Caps its context window.
        progress: Show progress bars while files are downloaded.

    Raises:
        ConfigurationError: For a device or dtype that does not exist, or a model that cannot be a member or needs
            something that is not installed or not allowed.
        ModelFilesError: If files are missing, damaged or in another format.
        TokenizerError: If the tokenizer cannot be used.
    """
    place = KINDS[config.loaded_as] if config.ray is None else RAY
    module, _, name = place.partition(":")
    describe = getattr(import_module(module), name)
    with collector_paused:
        described: DescribedMember = describe(config, device, dtype, max_window, progress=progress)
    return described


def may_have_embeddings(member: DescribedMember | Member) -> bool:
    """Whether a member may have embeddings: all but those that say by `embedded` that they have none."""
    return bool(getattr(member, "embedded", True))


def given_members(models: Sequence[Any] | Mapping[str, Any], prompts: object, max_window: int | None) -> list[Member]:
    """Returns members of models and tokenizers of `transformers` that are in memory.

    Args:
        models: Pairs of a model and its tokenizer, by name or in order.
        prompts: See `with_prompts`.
        max_window: Caps their context windows.

    Raises:
        ConfigurationError: If there are none, one is no pair, or a model cannot be a member.
        TokenizerError: If a tokenizer cannot be used.
    """
    named = models.items() if isinstance(models, Mapping) else ((None, pair) for pair in models)
    entries: list[dict[str, Any]] = []
    pairs: list[tuple[Any, Any]] = []
    for number, (name, pair) in enumerate(named):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise ConfigurationError(
                f"Member {number} is a {type(pair).__name__}: give pairs of a loaded model and its tokenizer."
            )
        model, tokenizer = pair
        place = getattr(model, "name_or_path", "") or type(model).__name__
        entries.append({"model": place, "name": name})
        pairs.append((model, tokenizer))
    configs = with_prompts(member_configs(entries), prompts)
    given = import_module("deepen_core.members.transformers.given").given_member
    members: list[Member] = []
    with closed_on_error(members):
        for config, pair in zip(configs, pairs, strict=True):
            members.append(given(config, *pair, max_window))
    return members


def load_members(described: Sequence[DescribedMember], steps: Steps) -> list[Member]:
    """Checks the weight files of all members, then loads them one after the other, one step each."""
    for description in described:
        description.check_files()
    return_freed()  # reading a tokenizer takes several times what it is
    members: list[Member] = []
    with closed_on_error(members):
        for description in described:
            with steps.doing(f"{description.name}: loading weights"):
                members.append(description.load(progress=steps.shown))
    return_freed()
    return members


def try_member(member: Member) -> None:
    """Runs a member on made-up text to find out how it batches sequences, so that the first request need not wait.

    Raises:
        ConfigurationError: If there is no memory for a text of a few words.
        MemberError: If it fails in another way.
    """
    try:
        member.warm_up()
    except Exception as problem:  # models raise anything
        if is_memory(problem):
            raise ConfigurationError(
                f"{member.name} fits on {member.device}, but leaves no memory to run it. {more_room(member.dtype)} "
                f"({brief(problem)})."
            ) from problem
        raise MemberError(
            f"Member {member.name!r} failed when it was tried on a few tokens: {brief(problem)}. Run the model alone "
            "in transformers to see whether it works there, or leave it out."
        ) from problem
