"""How likely a model finds tokens that are given."""

from __future__ import annotations

import torch

_PLACES = 16  # at once: a prompt of 250 tokens has 65 million log-probabilities in a vocabulary of 262,144


def logprobs_of(logits: torch.Tensor, token_ids: torch.Tensor) -> list[float]:
    """Returns the log-probability (nats) of a token at each place.

    Args:
        logits: [places, vocabulary], of any dtype. They are converted to float32.
        token_ids: int64 [places].
    """
    parts = zip(logits.split(_PLACES), token_ids.split(_PLACES), strict=True)
    found = [torch.log_softmax(part.float(), dim=-1).gather(-1, ids[:, None])[:, 0] for part, ids in parts]
    values: list[float] = torch.cat(found).tolist() if found else []
    return values
