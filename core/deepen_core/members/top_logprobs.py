"""Logits of a member of which only the most probable tokens are known."""

from __future__ import annotations

import torch

_LEAST_REST = 1e-12
"""Of probability: what rounding leaves of the rest."""


def dense_logits(ids: torch.Tensor, logprobs: torch.Tensor, size: int) -> torch.Tensor:
    """Returns logits in which unknown tokens share what the known ones leave, evenly: `log((1 - sum p) / unknown)`.

    None of them is more probable than a known token, whatever rounding does. At full length nothing is left to share,
    and the logits are the log-probabilities themselves.

    Args:
        ids: The most probable tokens, int64 [sequences, known], each once.
        logprobs: Their log-probabilities in nats [sequences, known].
        size: Number of logits.

    Returns:
        Float32 [sequences, vocabulary].

    Raises:
        ValueError: If no token is known, or more than there are.
    """
    known = ids.shape[-1]
    if not 1 <= known <= size:
        raise ValueError(f"{known} tokens are known of a vocabulary of {size}: from 1 to {size} are possible")
    values = logprobs.double()
    rest = (1.0 - values.exp().sum(-1)).clamp_min(_LEAST_REST) / max(1, size - known)
    share = torch.minimum(rest.log(), values.amin(-1))  # [sequences]
    dense = share.float()[:, None].repeat(1, size)  # [sequences, vocabulary]
    return dense.scatter_(1, ids, values.float())
