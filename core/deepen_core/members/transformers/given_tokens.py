"""How likely a model finds tokens that are given."""

from __future__ import annotations

import torch

_PLACES = 16  # at once: their log-probabilities stay in a core's cache, and those of a whole prompt take 250 MB


def logprobs_of(logits: torch.Tensor, token_ids: torch.Tensor) -> list[float]:
    """Returns the log-probability (nats) of a token at each place.

    Args:
        logits: [places, vocabulary], of any dtype; computed on as float32.
        token_ids: int64 [places].
    """
    parts = zip(logits.split(_PLACES), token_ids.split(_PLACES), strict=True)
    found = [torch.log_softmax(part.float(), dim=-1).gather(-1, ids[:, None])[:, 0] for part, ids in parts]
    values: list[float] = torch.cat(found).tolist() if found else []
    return values
