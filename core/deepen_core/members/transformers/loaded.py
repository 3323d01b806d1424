"""The member of a loaded model: its kind follows from what reads the prompt."""

from __future__ import annotations

from typing import Any

from deepen_core.members.transformers.causal import CausalMember
from deepen_core.members.transformers.model_member import ModelMember
from deepen_core.members.transformers.seq2seq import Seq2SeqMember
from deepen_core.members.transformers.text_side import TextSide


def loaded_member(name: str, model: Any, text: TextSide) -> ModelMember:
    """Returns a member.

    Args:
        name: Its name.
        model: The model of `transformers`.
        text: The rest of it.
    """
    if text.source_window is None:
        return CausalMember(name, model, text.tokenizer, text.context_window)
    return Seq2SeqMember(name, model, text.tokenizer, text.context_window, text.source_window, text.ruled_out)
