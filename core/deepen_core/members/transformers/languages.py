"""The languages of a translation model: tokens of its tokenizer, around what its encoder reads and decoder writes."""

from __future__ import annotations

from typing import Any

from deepen_core.errors import ConfigurationError

_SPELLINGS = ("{}", "__{}__")  # NLLB and mBART; M2M100
_SHOWN = 5


def set_source_language(tokenizer: Any, language: str | None, place: str) -> None:
    """Makes a tokenizer mark texts as written in a language.

    Args:
        tokenizer: A `transformers` tokenizer; it is changed.
        language: Such as "eng_Latn"; the tokenizer's own default if None.
        place: The model, for error messages.

    Raises:
        ConfigurationError: If the tokenizer has no such language, or does not mark languages.
    """
    if language is None:
        return
    if not hasattr(tokenizer, "src_lang"):
        raise ConfigurationError(
            f"source_language is {language!r}, but {type(tokenizer).__name__} of {place} does not mark the language of "
            "texts: leave it out, or say it in the text, such as prompt='translate English to German: {prompt}'."
        )
    language_id(tokenizer, language, place, "source_language")
    tokenizer.src_lang = language


def language_id(tokenizer: Any, language: str, place: str, option: str) -> int:
    """Returns the id of the token of a language.

    Args:
        tokenizer: A `transformers` tokenizer.
        language: Such as "fra_Latn".
        place: The model, for error messages.
        option: The option that names the language, for error messages.

    Raises:
        ConfigurationError: If there is no such token.
    """
    tokens = tokenizer.get_vocab()
    found = [tokens[spelling] for form in _SPELLINGS if (spelling := form.format(language)) in tokens]
    special = set(tokenizer.all_special_tokens) | {t.content for t in tokenizer.added_tokens_decoder.values()}
    if found and tokenizer.convert_ids_to_tokens(found[0]) in special:
        return int(found[0])
    named = {getattr(tokenizer, f"{kind}_token", None) for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
    known = sorted(special - named)
    shown = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "") or "none"
    raise ConfigurationError(
        f"{option} is {language!r}, which is not a token of {place} that marks a language. Tokens of that kind: "
        f"{shown}."
    )
