"""Writes a trained model and its tokenizer as a folder that `transformers` loads."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from demo_tokenizers import SPECIALS, write_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedModel


def write_member(model: PreTrainedModel, tokenizer: Tokenizer, kind: str, target: Path) -> None:
    """Writes a model folder beside its place, then moves it there: a reader never sees half of one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model.save_pretrained(fresh)
        write_tokenizer(tokenizer, kind, fresh)
        start, end = (tokenizer.token_to_id(token) for token in SPECIALS[kind])
        if kind == "t5":
            generation = {"decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": start}
        else:
            generation = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
        text = json.dumps(generation, indent=2) + "\n"
        (fresh / "generation_config.json").write_text(text, encoding="utf-8")
        fresh.chmod(0o755)
        for file in fresh.iterdir():
            file.chmod(0o644)
        old = None
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            target.replace(old)
        fresh.replace(target)
        if old is not None:
            shutil.rmtree(old)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
