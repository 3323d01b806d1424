"""Ensembles that are described in YAML files, and by name in the user's own file.

The file holds plain data: it is read by YAML's safe loader, so it can name models but not run code.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from deepen_core.config.base import nearest_or_all
from deepen_core.errors import ConfigurationError

FILE_VARIABLE = "DEEPEN_ENSEMBLES"
"""The environment variable with the path of the file of named ensembles."""
OPTIONS = (
    "models",
    "main",
    "weights",
    "fusion",
    "gate",
    "prompts",
    "device",
    "dtype",
    "max_batch_size",
    "max_context_window",
    "on_member_error",
    "max_waiting",
    "step_timeout",
)
"""The arguments of `Ensemble.load` that describe an ensemble; the others say how it is loaded this time."""
_SUFFIXES = (".yaml", ".yml")
_PATHS = ("tokenizer", "chat_template")
"""Options of a member, other than `model`, that may be paths."""


def ensembles_file() -> Path:
    """Returns the file of named ensembles, which need not exist.

    It is `$DEEPEN_ENSEMBLES`, or else `deepen/ensembles.yaml` in `$XDG_CONFIG_HOME` or `~/.config`.
    """
    if named := os.environ.get(FILE_VARIABLE):
        return Path(named).expanduser()
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "deepen" / "ensembles.yaml"


def ensemble_options(config: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `Ensemble.load` that a description holds; their values are checked when it is loaded.

    Args:
        config: A name in `ensembles_file()`; the path of a YAML file with one ensemble (a `Path`, or a string that
            contains a separator or ends in .yaml or .yml); or the arguments themselves. In a file, paths are relative
            to its folder.

    Raises:
        ConfigurationError: If there is no such ensemble, its file cannot be read, or it has unknown options.
    """
    if isinstance(config, Mapping):
        return _checked(config, "The ensemble")
    if not isinstance(config, (str, os.PathLike)):
        raise ConfigurationError(f"{config!r} is not an ensemble: give a name, the path of a YAML file, or a mapping.")
    if isinstance(config, str) and not config.endswith(_SUFFIXES) and Path(config).name == config:
        path = ensembles_file()
        return _relative_to(path.parent, _checked(_named(config, path), f"Ensemble {config!r} in {path}"))
    try:
        path = Path(config).expanduser()
    except RuntimeError as problem:
        raise ConfigurationError(f"{config} cannot be read ({problem}): give the path of a YAML file.") from problem
    return _relative_to(path.parent, _checked(_single(path), str(path)))


def ensemble_names() -> list[str]:
    """Returns the names in `ensembles_file()`; none if there is no file.

    Raises:
        ConfigurationError: If the file cannot be read.
    """
    path = ensembles_file()
    return list(_read(path)) if path.exists() else []


def _named(name: str, path: Path) -> Any:
    if not path.exists():
        raise ConfigurationError(
            f"There is no ensemble {name!r}, because there is no file {path}: write it, set {FILE_VARIABLE} to another "
            "file, or name the members."
        )
    known = _read(path)
    if name not in known:
        raise ConfigurationError(f"There is no ensemble {name!r} in {path}: {nearest_or_all(name, list(known))}")
    return known[name]


def _single(path: Path) -> Any:
    """Returns the ensemble that a file describes, with or without a name."""
    content = _read(path)
    if len(content) == 1 and isinstance(next(iter(content.values())), Mapping):
        return next(iter(content.values()))
    if content and all(isinstance(entry, Mapping) for entry in content.values()):
        raise ConfigurationError(
            f"{path} describes several ensembles ({', '.join(content)}): set {FILE_VARIABLE} to this file and give one "
            "of the names."
        )
    return content


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (derived from SafeLoader)
    except (OSError, ValueError) as problem:
        raise ConfigurationError(f"{path} cannot be read ({problem}): give the path of a YAML file.") from problem
    except (yaml.YAMLError, RecursionError) as problem:
        raise ConfigurationError(f"{path} is not YAML that can be read safely: {problem}.") from problem
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ConfigurationError(
            f"{path} is not a mapping of names to ensembles: see 'Named ensembles' in docs/command_line.md."
        )
    return content


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML comes without types
    """The safe loader, which also refuses to overwrite one ensemble, or option, with another of the same name."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Constructs a mapping whose keys are all different.

        Raises:
            ConstructorError: If a key is given twice.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
                seen.add(key.value)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return found


def _checked(config: Any, where: str) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        raise ConfigurationError(f"{where} is {config!r}: give the options of an ensemble, of which 'models' is one.")
    unknown = [name for name in config if name not in OPTIONS]
    if unknown:
        raise ConfigurationError(f"{where}: unknown option {unknown[0]!r}: {nearest_or_all(str(unknown[0]), OPTIONS)}")
    if "models" not in config:
        raise ConfigurationError(f"{where} has no 'models': list the members.")
    return dict(config)


def _relative_to(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Returns options whose members' paths do not depend on the working directory."""
    models = options["models"]
    if isinstance(models, (list, tuple)):
        models = [_placed_member(folder, entry) for entry in models]
    return {**options, "models": models}


def _placed_member(folder: Path, entry: Any) -> Any:
    if isinstance(entry, str):
        return _placed(folder, entry)
    if not isinstance(entry, Mapping):
        return entry  # which loading reports
    paths = {name: entry[name] for name in ("model", *_PATHS) if isinstance(entry.get(name), str)}
    return {**entry, **{name: _placed(folder, text) for name, text in paths.items()}}


def _placed(folder: Path, text: str) -> str:
    """Returns a path in a folder if it is one, or is written as one, and any other text (a hub id) as it is."""
    if "\n" in text or text.startswith("~"):
        return text
    path = folder.absolute() / text
    try:
        is_path = text.startswith(("./", "../")) or path.exists()
    except (OSError, ValueError):  # no path: loading reports it
        return text
    return os.path.normpath(path) if is_path else text
