"""How one member is shown prompts in a form of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

PROMPT = "{prompt}"
"""Stands for the prompt in a template: the text, or the last message of a conversation."""
CHAT = "chat"
"""Shows a text as a conversation of one message, by the member's chat template."""

FormOption = str | Callable[[Any], Any]
"""`CHAT`, a template with `PROMPT` in it, or a function from prompts to prompts."""


def is_template(form: FormOption | None) -> bool:
    """Whether a form shows a text in place of a conversation."""
    return isinstance(form, str) and form != CHAT


def check_form(option: object) -> FormOption | None:
    """Checks a form as callers give it.

    Raises:
        ValueError: If it is a text without a place for the prompt, or something else.
    """
    if option is None or callable(option):
        return option
    if not isinstance(option, str):
        raise ValueError(f"{option!r} is not a template such as 'Question: {PROMPT}', {CHAT!r} or a function")
    if option != CHAT and PROMPT not in option:
        raise ValueError(f"{option!r} has no {PROMPT} where the prompt belongs; or give {CHAT!r}")
    return option


def forms_by_member(given: object, names: Sequence[str]) -> list[FormOption | None]:
    """Returns one form per member from a list, or from a mapping by their names.

    Args:
        given: None for none.
        names: The members' names.

    Raises:
        ValueError: If there is not one for each, a name is none of theirs, or a form is wrong.
    """
    if given is None:
        return [None] * len(names)
    if isinstance(given, Mapping):
        if unknown := [name for name in given if name not in names]:
            raise ValueError(f"{unknown[0]!r} is none of the members {', '.join(names)}")
        return [check_form(given.get(name)) for name in names]
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != len(names):
        raise ValueError(f"give one for each of the members {', '.join(names)}, None for those without")
    return [check_form(option) for option in given]
