"""Conversations and readers of them for tests of prompts."""

import tiny

from deepen_core.chat.prompt_encoder import PromptReader
from deepen_core.tokenization.fast_tokenizer import Backend

CALL = {"function": {"name": "add", "arguments": {"a": 1}}}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is the dog? 你好"},
    {"role": "assistant", "content": "By the sea."},
    {"role": "user", "content": "And the fox?"},
]


def with_template(tokenizer, template=tiny.CHAT_TEMPLATE):
    tokenizer.chat_template = template
    return tokenizer


def reader_of(tokenizer):
    return PromptReader(tokenizer, Backend(tokenizer), "m")
