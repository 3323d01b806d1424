"""The tokenizer in a GGUF file, as `transformers` makes it, checked against llama.cpp's own."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from deepen_core.chat.template import given_template
from deepen_core.errors import TokenizerError, brief, is_failure
from deepen_core.members.llama_cpp.header import TOKENS, GgufHeader
from deepen_core.members.llama_cpp.model import LlamaModel
from deepen_core.members.tokenizer import MemberTokenizer

_OTHER = "give the folder of its tokenizer, from the model that was converted: MemberConfig(tokenizer=...)"
_SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""How llama.cpp calls pre-tokenizers that take digits one by one, and else are those of GPT-2."""

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")

PROBES = (
    "Hello world",
    " leading",
    "   three before",
    "trailing ",
    "a  b   c    d",
    "\n",
    "\n\n\n",
    "line\nline\r\nline\rline",
    "\ttab\t\ttabs",
    "x\n  y\n    z\n\t\tw",
    "12345 67 8 90,000.00",
    "1st 22nd 333rd 4444",
    "3.14159e-10 0xFF 1_000",
    "I'm you're they've he'd she'll it's DON'T WE'LL",
    "don’t “quote” ‘single’",
    "café naïve Ångström Straße",
    "cafe\u0301 n\u0303",
    "Привет, мир! Ещё раз.",
    "你好，世界。今天天气很好",
    "こんにちは カタカナ 漢字",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "🎉🚀 😀👍🏽 👩‍👩‍👧",
    "\u200b\u200c\u200d\ufeff",
    "\u00a0\u2003\u3000",
    "def f(x):\n    return x ** 2  # square\n",
    "for(int i=0;i<10;++i){a[i]+=b[i]*c;}",
    "<html><body class='x'>&amp;</body></html>",
    '{"key": [1, 2.5, null, true], "nested": {"a": "b"}}',
    "https://example.com/path?q=1&r=2#top",
    "user@example.org",
    "C:\\Users\\me\\file.txt",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "-----=====*****#####.....",
    "?!?!... --> <-- == != <= >= && || ::",
    "<tag></tag> <|x|> [INST] <<SYS>>",
    "<think>thought</think>",
    "The the THE tHe",
    "supercalifragilisticexpialidocious",
    "[1] (2) {3} <4>",
    "Ġ Ċ ĉ",
    "½ ² ³ Ⅳ ①",
    "x² + y² = z²; ∑ ∫ √ ≈ ≠",
    "€100 £20 ¥3000 $5",
    "\x01\x02\x7f",
    "one\u2028two\u2029three",
    " \n \n  \t mixed \t\n",
    "été\tà  la\nplage 2024-05-01T12:30:00Z",
)
"""Texts on which two implementations of a tokenizer differ if they differ at all."""


def read_tokenizer(header: GgufHeader, template: str | None) -> Any:
    """Makes a `transformers` tokenizer of what is in a GGUF file.

    Args:
        header: The header of the file.
        template: A chat template in place of its own.

    Raises:
        TokenizerError: If `transformers` cannot.
    """
    path = header.path
    try:
        tokenizer: Any = PreTrainedTokenizerFast(name_or_path=str(path.parent), gguf_file=path.name)
    except BaseException as problem:  # a wrong value in it raises anything that the conversion raises
        if not is_failure(problem):
            raise
        kind = header.values["tokenizer.ggml.model"]
        raise TokenizerError(
            f"The tokenizer in {path} (of the kind {kind!r}) cannot be used ({brief(problem)}): {_OTHER}."
        ) from problem
    tokenizer = _without_foreign(tokenizer, header.lengths[TOKENS])
    _correct(tokenizer.backend_tokenizer, header)
    if template is not None:
        tokenizer.chat_template = given_template(template)
    return tokenizer


def _without_foreign(tokenizer: Any, size: int) -> Any:
    """Returns a tokenizer without the tokens that `transformers` has added to those of the file, such as GPT-2's end.

    Args:
        tokenizer: A `transformers` tokenizer.
        size: Number of the file's tokens.
    """
    if len(tokenizer) <= size:
        return tokenizer
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < size]
    own = {name: token for name in _NAMED if (token := getattr(tokenizer, name)) in tokenizer.get_vocab()}
    named = {name: token for name, token in own.items() if tokenizer.convert_tokens_to_ids(token) < size}
    flags = {name: getattr(tokenizer, name) for name in ("add_bos_token", "add_eos_token")}
    backend = Tokenizer.from_str(json.dumps(spec))
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=tokenizer.chat_template, **named, **flags)


def _correct(backend: Any, header: GgufHeader) -> None:
    """Mends what `transformers` decides by the architecture, or does not know, although the file says it."""
    if header.values["tokenizer.ggml.model"] == "llama":
        blanks = [normalizers.Replace(" ", "▁")]
        prefix = header.values.get("tokenizer.ggml.add_space_prefix", True)
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *blanks] if prefix else blanks)
        backend.pre_tokenizer = None
    elif header.values.get("tokenizer.ggml.pre") in _SINGLE_DIGITS:
        digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])


def check_tokenizer(tokenizer: MemberTokenizer, model: LlamaModel, place: str) -> None:
    """Compares a tokenizer with llama.cpp's.

    Args:
        tokenizer: The member's tokenizer.
        model: The model, or its vocabulary alone.
        place: What errors call it.

    Raises:
        TokenizerError: If they disagree on a text.
    """
    for text in PROBES:
        ours, theirs = tokenizer.encode(text), model.tokenize(text)
        if ours != theirs:
            raise TokenizerError(
                f"The tokenizer of {place} is not that of its model: it turns {text!r} into {ours[:12]}, and llama.cpp "
                f"into {theirs[:12]}. To be sure of the right ids, {_OTHER}."
            )


def stop_ids(tokenizer: Any, model: LlamaModel) -> list[int]:
    """Returns the ids that end a text or a turn.

    They are those of llama.cpp, which also knows them by their names, if the file marks them as control tokens.
    """
    control = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [number for number in model.stop_ids() if number in control]
