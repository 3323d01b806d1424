"""What is known about an ensemble before its models are loaded, read from the members' small files."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen_core.chat.template import default_template, given_template
from deepen_core.chat.thoughts import marks_of
from deepen_core.config import MemberConfig
from deepen_core.config.prompts import is_template
from deepen_core.demo import member_paths
from deepen_core.errors import ModelFilesError
from deepen_core.members.transformers.checkpoint import declared_window
from deepen_core.members.transformers.json_file import small_text
from deepen_integrations.load_options import DEMO, LoadOptions

_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates", "tekken.json")
"""Where a chat template may be, other than in tokenizer_config.json."""


@dataclass(frozen=True)
class ModelFacts:
    """What frameworks ask of a model at its construction."""

    main_window: int | None
    """Tokens in main's context window; None if main's configuration is not on this machine."""
    has_chat_template: bool
    """Whether every member that takes part is known to have a chat template."""
    thinks: bool = False
    """Whether main's chat template knows thoughts before an answer; before loading, by the marks in its text."""
    without_template: tuple[str, ...] = ()
    """The members that take part and certainly have none."""


def facts_from_files(options: LoadOptions) -> ModelFacts:
    """Reads the facts of an ensemble that is not loaded. Uses no network."""
    if isinstance(options.models, str) and options.models != DEMO:
        return ModelFacts(None, has_chat_template=False)
    members = (
        [MemberConfig(model=str(path)) for path in member_paths()]
        if isinstance(options.models, str)
        else list(options.models)
    )
    main = _main(options, members)
    shares = [member.weight for member in members]
    weights = shares if options.weights is None or isinstance(options.weights, str) else options.weights
    window, thinks = None, False
    templates: dict[str, bool | None] = {}
    forms = options.prompts or [None] * len(members)
    for number, (member, name, weight) in enumerate(zip(members, options.names, weights, strict=True)):
        if number == main or weight > 0:
            folder = _folder(member.model, member.revision)
            texts = folder if member.tokenizer is None else _folder(member.tokenizer, None)
            shown_texts = is_template(member.prompt if forms[number] is None else forms[number])
            templates[name] = shown_texts or _has_encoder(folder) or _has_chat_template(texts, member)
            if number == main and folder is not None:
                window = member.context_window or _context_window(folder)
            if number == main and not shown_texts:
                thinks = marks_of(_chat_template(texts, member)) is not None
    if window is not None and options.max_context_window is not None:
        window = min(window, options.max_context_window)
    without = tuple(name for name, has in templates.items() if has is False)
    return ModelFacts(window, all(templates.values()), thinks, without)


def _main(options: LoadOptions, members: list[MemberConfig]) -> int:
    """Returns the number of the main member; 0 if there is none of that name, which loading reports."""
    if not isinstance(options.main, str):
        return options.main % len(members)
    known = [*options.names, *(member.model for member in members)]
    return known.index(options.main) % len(members) if options.main in known else 0


def _folder(model: str, revision: str | None) -> Path | None:
    """Returns the folder of a model, or its GGUF file; None for a hub id that was never downloaded, and for others."""
    try:
        folder = Path(model).expanduser()
        if folder.is_dir() or (_is_gguf(folder) and folder.is_file()):
            return folder
    except (OSError, ValueError, RuntimeError):  # no path: loading raises the error
        return None
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 (only for hub ids)
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        config = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:  # neither a folder nor a hub id: loading raises the error
        return None
    return Path(config).parent if isinstance(config, str) else None


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _gguf_facts(path: Path) -> tuple[int | None, str]:
    """Returns the window and the chat template of a GGUF file; nothing of one that loading refuses."""
    from deepen_core.members.llama_cpp.header import check_model, read_header  # noqa: PLC0415 (needs an extra)

    try:
        header = read_header(path)
        check_model(header)
    except (ModelFilesError, ImportError):
        return None, ""
    return header.number("context_length"), str(header.values.get("tokenizer.chat_template", ""))


def _has_encoder(folder: Path | None) -> bool:
    """Whether a member has an encoder, which reads the last message of a conversation without a template."""
    return folder is not None and bool(_json(folder / "config.json").get("is_encoder_decoder"))


def _context_window(folder: Path) -> int | None:
    """Returns the window as loading finds it: the configuration's, that of its class, or the tokenizer's."""
    if _is_gguf(folder):
        return _gguf_facts(folder)[0]
    config = _json(folder / "config.json")
    declared = declared_window(config.get("text_config", config))
    if declared is not None or not config:
        return declared
    tokens = _json(folder / "tokenizer_config.json").get("model_max_length")
    return _window_of_class(folder) or (tokens if isinstance(tokens, int) and 0 < tokens < 10**9 else None)


def _chat_template(folder: Path | None, member: MemberConfig) -> str:
    """The template for plain conversations; empty if there is none in a form that can be read here.

    Args:
        folder: That of the member's tokenizer, if it is on this machine.
        member: The member.
    """
    if member.chat_template is not None:
        with suppress(ModelFilesError):  # which loading reports
            return given_template(member.chat_template)
    if folder is None:
        return ""
    if _is_gguf(folder):
        return _gguf_facts(folder)[1]
    try:
        return small_text(folder / _TEMPLATE_FILES[0])
    except (OSError, ValueError):
        return default_template(_json(folder / "tokenizer_config.json").get("chat_template")) or ""


def _window_of_class(folder: Path) -> int | None:
    from transformers import AutoConfig  # noqa: PLC0415 (rarely needed, and slow)

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # noqa: BLE001 (anything may be wrong with it, which loading reports)
        return None
    return declared_window(config.get_text_config().to_dict())


def _has_chat_template(folder: Path | None, member: MemberConfig) -> bool | None:
    """Whether a member has a chat template; None if that cannot be told from its files. Arguments as above."""
    if member.chat_template is not None:
        return True
    if folder is None:
        return None
    if _is_gguf(folder):
        return bool(_gguf_facts(folder)[1])
    tokenizer = _json(folder / "tokenizer_config.json")
    if tokenizer.get("chat_template") or (folder / _TEMPLATE_FILES[0]).is_file():
        return True
    certain = tokenizer and not member.trust_remote_code and (member.tokenizer or member.model) == str(folder)
    return False if certain and not any((folder / name).exists() for name in _TEMPLATE_FILES) else None


def _json(path: Path) -> dict[str, Any]:
    """The content of a file; empty if it is missing or damaged, which loading reports."""
    try:
        content = json.loads(small_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
