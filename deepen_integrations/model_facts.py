"""What is known about an ensemble before its models are loaded, read from the members' small files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen_core.chat.template import default_template
from deepen_core.chat.thoughts import marks_of
from deepen_core.config import MemberConfig
from deepen_core.demo import member_paths
from deepen_core.members.transformers.checkpoint import declared_window
from deepen_integrations.load_options import DEMO, LoadOptions

_TEMPLATE_TOKENS = 128
"""Allowance for the text that chat templates add: their own system prompts and the turns of a short conversation."""
_TEMPLATE_SHARE = 8
_TOKENIZER_SHARE = 4
"""Fractions of the window to allow for: at most 1/8 for templates, 1/4 for members with other tokenizers."""


@dataclass(frozen=True)
class ModelFacts:
    """What a framework plans prompts with."""

    context_window: int | None
    """Tokens in the smallest context window of all members; None if no member's configuration is on this machine."""
    planning_window: int | None
    """Tokens of the main model that a prompt's text and its answer may have together so that they fit every member.

    After loading, this is `Ensemble.planning_window`. Before, it is the smallest window of all members minus
    allowances: 128 tokens (at most 1/8) for chat templates, and a quarter of the rest if there are several members,
    because another tokenizer may need more tokens than main's. None if no member's configuration is on this machine.
    """
    has_chat_template: bool
    """Whether every member has a chat template."""
    thinks: bool
    """Whether main's chat template knows thoughts before an answer; before loading, by the marks in its text."""


def facts_from_files(options: LoadOptions) -> ModelFacts:
    """Reads the facts of an ensemble that is not loaded. Uses no network."""
    folders = list(_folders(options))
    windows = [window for folder in folders if folder and (window := _context_window(folder))]
    templates = [None if folder is None else _chat_template(folder) for folder in folders]
    has_chat_template = bool(templates) and None not in templates
    window = min(windows, default=None)
    plans = None if window is None else _less_allowances(window, len(folders), has_chat_template)
    main = options.main_index
    template = templates[main] if main is not None and main < len(templates) else None
    return ModelFacts(window, plans, has_chat_template, thinks=marks_of(template or "") is not None)


def _less_allowances(window: int, members: int, has_chat_template: bool) -> int:
    room = window - (min(_TEMPLATE_TOKENS, window // _TEMPLATE_SHARE) if has_chat_template else 1)  # 1 is for BOS
    return room - room // _TOKENIZER_SHARE if members > 1 else room


def _folders(options: LoadOptions) -> Iterator[Path | None]:
    """Yields each member's folder, or None for a hub id that was never downloaded."""
    if options.models == DEMO:
        yield from member_paths()
    elif not isinstance(options.models, str):
        yield from map(_folder, options.models)


def _folder(member: MemberConfig) -> Path | None:
    if (folder := Path(member.model).expanduser()).is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 (only for hub ids)
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        config = try_to_load_from_cache(member.model, "config.json", revision=member.revision)
    except HFValidationError:  # neither a folder nor a hub id: loading raises the error
        return None
    return Path(config).parent if isinstance(config, str) else None


def _context_window(folder: Path) -> int | None:
    config = _json(folder / "config.json")
    return declared_window(config.get("text_config", config))


def _chat_template(folder: Path) -> str | None:
    """The template for plain conversations; empty if it is not in a form that can be read here."""
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, ValueError):
        tokenizer = _json(folder / "tokenizer_config.json")
    if "chat_template" not in tokenizer:
        return "" if (folder / "chat_template.jinja").is_file() else None
    return default_template(tokenizer["chat_template"]) or ""


def _json(path: Path) -> dict[str, Any]:
    """The content of a file; empty if it is missing or damaged, which loading reports."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
