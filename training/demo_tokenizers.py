"""The tokenizers of the demo: byte-level BPE as GPT-2 has it, unigram with byte fallback as Llama and T5 have it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

WINDOW = 2048
SENTENCE = 256
"""The window of the translator."""
SPECIALS = {"bpe": ("<|bos|>", "<|eos|>"), "unigram": ("<s>", "</s>"), "t5": ("<pad>", "</s>")}
"""The token that starts a text, for T5 in the decoder alone, and the one that ends it."""

_TURNS = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ message['content'] | trim }}{{ '<gap>' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ ' ' + (message['content'] | trim) + '<gap>' }}"
    "{%- else -%}{{ 'Question: ' + (message['content'] | trim) + '\\nAnswer:' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
# Every user turn already ends in `Answer:`, so nothing is left for add_generation_prompt to add.
CHAT_TEMPLATES = {"bpe": _TURNS.replace("<gap>", "\\n\\n"), "unigram": _TURNS.replace("<gap>", "\\n")}


def train_bpe(texts: list[str], size: int) -> Tokenizer:
    """Byte-level BPE over `size` tokens, with one BOS put before every text."""
    bos, eos = SPECIALS["bpe"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[bos, eos],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = _one_bos(tokenizer, bos)
    return tokenizer


def train_unigram(texts: list[str], size: int, kind: str = "unigram") -> Tokenizer:
    """Unigram over `size` pieces with byte fallback, newline included, as SentencePiece models have it.

    One BOS is put before every text, or for `t5` one EOS after it.

    The library's own unigram trainer only proposes pieces that occur in two different words, which in a
    corpus of few words leaves it without whole words. So the pieces come from a BPE, and what is learned
    here is their probabilities.
    """
    bos, eos = SPECIALS[kind]
    # Only printable ASCII: every other character is spelled in bytes.
    lines = [re.sub(r"[^ -~]", "", line) for text in texts for line in text.split("\n")]
    split = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation()])
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = split
    learner.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=size - 3 - 256, show_progress=False))
    pieces = sorted(learner.get_vocab())
    for _ in range(5):
        counts = Counter(piece for encoding in learner.encode_batch(lines) for piece in encoding.tokens)
        total = sum(counts.values()) + len(pieces)
        scores = [(piece, math.log((counts[piece] + 1) / total)) for piece in pieces]
        learner = Tokenizer(models.Unigram([("<unk>", 0.0), *scores], unk_id=0, byte_fallback=False))
        learner.pre_tokenizer = split
    scores.sort(key=lambda piece: (-piece[1], piece[0]))
    vocabulary = [("<unk>", 0.0), (bos, 0.0), (eos, 0.0)]
    vocabulary += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    vocabulary += scores

    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", bos, eos)])
    tokenizer.post_processor = _one_eos(tokenizer, eos) if kind == "t5" else _one_bos(tokenizer, bos)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, kind: str, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, chat template included."""
    bos, eos = SPECIALS[kind]
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "backend": "tokenizers",
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "model_max_length": WINDOW,
        "pad_token": eos,
        "tokenizer_class": "TokenizersBackend",
    }
    if kind == "t5":
        config |= {"pad_token": bos, "model_max_length": SENTENCE}
    else:
        config |= {"bos_token": bos, "chat_template": CHAT_TEMPLATES[kind]}
    if kind != "bpe":
        config |= {"unk_token": "<unk>"}
    config = dict(sorted(config.items()))
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def token_bytes(tokenizer: Tokenizer, kind: str) -> dict[int, bytes]:
    """The bytes of every token that is not special, byte tokens of the unigram model first."""
    specials = {*SPECIALS[kind], "<unk>"}
    pieces = sorted((token, piece) for piece, token in tokenizer.get_vocab().items() if piece not in specials)
    if kind != "bpe":
        spelled = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
        return {token: spelled.get(piece) or piece.replace("▁", " ").encode() for token, piece in pieces}
    table = {char: value for value, char in bytes_to_unicode().items()}
    return {token: bytes(table[char] for char in piece) for token, piece in pieces}


def _one_eos(tokenizer: Tokenizer, eos: str) -> processors.PostProcessor:
    return processors.TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, tokenizer.token_to_id(eos))])


def _one_bos(tokenizer: Tokenizer, bos: str) -> processors.PostProcessor:
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
