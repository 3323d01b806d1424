"""Whether a server has the tokenizer of a folder, by the ids of fifty texts."""

from __future__ import annotations

import asyncio

from deepen_core.errors import TokenizerError
from deepen_core.members.server.model_server import ModelServer
from deepen_core.members.tokenizer import SAMPLE_TEXT, MemberTokenizer

# All composed (NFC) and without control characters, which llama.cpp reads otherwise than the original tokenizers of
# some models do: a difference there would not mean another vocabulary. Ids are sent, so it would not matter either.
_TEXTS = (
    "a",
    " a",
    "Hello",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "THE QUICK BROWN FOX",
    "don't can't we'll they've I'm",
    "internationalisation antidisestablishmentarianism",
    "supercalifragilisticexpialidocious",
    "x = y + z * (w - 1) / 2",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "for (int i = 0; i < n; ++i) { a[i] = b[i] << 2; }",
    "SELECT name, COUNT(*) FROM people WHERE age >= 18 GROUP BY name;",
    '{"name": "Mira", "ages": [1, 2, 3], "ok": true, "none": null}',
    "<div class='a'>&nbsp;&amp;</div>",
    "\\begin{equation} e^{i\\pi} + 1 = 0 \\end{equation}",
    "https://example.com/a/b?c=d&e=f#g",
    "someone@example.com",
    "C:\\Users\\name\\file.txt",
    "0 1 2 3 4 5 6 7 8 9",
    "1234567890 3.14159 1,000,000 1e-9 0xFF",
    "12 123 1234 12345 123456",
    "2026-11-28T01:02:03Z",
    "!?.,;:-_()[]{}<>@#$%^&*+=|~`'\"",
    "... --- ___ ***",
    "a  b   c    d",
    "line\nline",
    "line\n\nline",
    "\tindented\twith\ttabs",
    "ends with a blank ",
    "camelCase PascalCase snake_case kebab-case SCREAMING_CASE",
    "Der Hund schläft, die Füchsin läuft über die Straße.",
    "Où est la bibliothèque? Ça va très bien, merci.",
    "El niño comió piñas en mañanas frías.",
    "Zażółć gęślą jaźń",
    "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "Η γρήγορη καφέ αλεπού",
    "العربية لغة جميلة",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "你好，世界。今天天气很好。",
    "こんにちは世界。カタカナ",
    "안녕하세요 세계",
    "🙂 👍🏽 👨‍👩‍👧 🇩🇪",
    "∑ ∫ √ ≤ ≥ ≠ ∞ → ⇒ α β γ",
    "“quoted” ‘single’ – en — em … €",
    "mixed 中文 and English و عربي 123",
    SAMPLE_TEXT,
)


async def check_tokenizer(server: ModelServer, tokenizer: MemberTokenizer, place: str) -> None:
    """Refuses a server whose tokenizer is not that of the folder.

    Args:
        server: The server.
        tokenizer: Of the folder.
        place: What errors call the folder.

    Raises:
        ServerError: If the server does not answer.
        TokenizerError: If it has other ids, or fewer than the tokenizer has tokens.
    """
    tokens, size = max(tokenizer.vocabulary.tokens.values(), default=-1) + 1, server.served.vocabulary_size
    if size is not None and size < tokens:
        raise TokenizerError(
            f"The tokenizer of {place} has {tokens} tokens, and the model of {server.connection.url} "
            f"({server.served.name}) gives probabilities of {size}: name the folder of the model that it serves."
        )
    theirs = await asyncio.gather(*(server.api.encode(server, text) for text in _TEXTS))
    for text, ids in zip(_TEXTS, theirs, strict=True):
        if ids != (own := tokenizer.encode(text)):
            raise TokenizerError(
                f"The tokenizer of {place} is not that of {server.connection.url} ({server.served.name}): {text!r} is "
                f"{own} here and {ids} there. Name the folder of the model that it serves."
            )
