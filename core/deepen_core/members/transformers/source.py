"""Finds the files of a member's model, in a folder or on the hub, and rejects what is no model folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepen_core.config import MemberConfig
from deepen_core.members.model_path import model_path
from deepen_core.members.transformers.adapter import WEIGHTS, Adapter, check_adapter
from deepen_core.members.transformers.checkpoint import check_description, check_tokenizer
from deepen_core.members.transformers.formats import CAUSAL, SEQ2SEQ, check_format, folder_names
from deepen_core.members.transformers.hub import fetch_description, fetch_file
from deepen_core.members.transformers.json_file import read_object
from deepen_core.members.transformers.limits import check_files

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class ModelSource:
    """Where a model's small files are."""

    place: str
    """What errors call it: the folder, or the hub id."""
    folder: Path
    """The folder with the small files."""
    local: bool
    """Whether `folder` is the user's own; otherwise it is in the hub's cache and has no weights yet."""
    names: Sequence[str]
    """The names of all its files, weights included, as `formats.top_names` returns them."""


def find_source(config: MemberConfig) -> ModelSource:
    """Finds a model, fetches its small files if it is on the hub, and checks what it is.

    Raises:
        ModelFilesError: If files are missing, or it is recognised as something else than a model in transformers
            format.
    """
    source = _locate(config)
    check_format(source.place, source.names, _class_name(source.folder))
    check_adapter(source.place, source.folder, source.names)
    check_description(source.folder, tokenizer=config.tokenizer is None)
    return source


def find_small_files(config: MemberConfig) -> ModelSource:
    """Finds the configuration and the tokenizer of a model whose weights are elsewhere.

    Raises:
        ModelFilesError: If files are missing or damaged.
    """
    source = _locate(config)
    check_description(source.folder, tokenizer=config.tokenizer is None)
    return source


def _class_name(folder: Path) -> str:
    """Returns the name of the class that loads the model in a folder, by its configuration if there is one."""
    path = folder / "config.json"
    return SEQ2SEQ if path.is_file() and read_object(path).get("is_encoder_decoder") else CAUSAL


def find_tokenizer(config: MemberConfig, model: ModelSource) -> ModelSource:
    """Finds a model's tokenizer, and fetches its files if it is another one on the hub.

    Raises:
        ModelFilesError: If they cannot be found.
    """
    if config.tokenizer is not None:
        source = _locate(config.model_copy(update={"model": config.tokenizer, "revision": None}))
        check_tokenizer(source.folder)
        return source
    if config.adapter is None:
        return model
    adapter = _locate(_of_adapter(config))
    return adapter if "tokenizer_config.json" in adapter.names else model


def find_adapter(config: MemberConfig) -> Adapter | None:
    """Finds the adapter of a member, and fetches it if it is on the hub; None if it has none.

    Raises:
        ConfigurationError: If `peft` is not installed.
        ModelFilesError: If files are missing, or it cannot be merged.
    """
    if config.adapter is None:
        return None
    given = _of_adapter(config)
    source = _locate(given)
    if not source.local and WEIGHTS in source.names:
        fetch_file(given, WEIGHTS)
    return Adapter.checked(source.place, source.folder, source.names)


def _of_adapter(config: MemberConfig) -> MemberConfig:
    return config.model_copy(update={"model": config.adapter, "revision": None})


def _locate(config: MemberConfig) -> ModelSource:
    path = model_path(config.model)
    if path.exists() or not _HUB_ID.fullmatch(config.model):
        if path.is_dir():
            check_files(path)
        return ModelSource(str(path), path, local=True, names=folder_names(path))
    folder, names = fetch_description(config)
    check_files(folder)
    return ModelSource(config.model, folder, local=False, names=names)
