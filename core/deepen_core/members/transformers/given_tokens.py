"""How likely a model finds tokens that are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deepen_core.members.sequence import WORTH_SHARING
from deepen_core.members.text_tree import common_length

_PLACES = 16  # at once: a prompt of 250 tokens has 65 million log-probabilities in a vocabulary of 262,144
_LOGITS = 2**26  # of one forward: 256 MiB in float32; pieces of 64 ids took Gemma 3 nearly twice as long
_LEAST = 16  # ids of a forward


@dataclass(frozen=True)
class ReadText:
    """What a model has found of a text.

    Attributes:
        ids: The text.
        start: Number of ids that were only given.
        logprobs: Log-probabilities (nats) of the ids after these.
    """

    ids: list[int]
    start: int
    logprobs: list[float]

    def shared(self, ids: Sequence[int], start: int) -> int:
        """Returns how many ids at the beginning of another text need not be read again; 0 if it does not pay off.

        Args:
            ids: The other text.
            start: Number of its ids that are only given.
        """
        length = common_length(self.ids, ids) if start == self.start else 0
        return length if length >= max(WORTH_SHARING, start + 1) else 0


def pieces(first: int, ids: int, vocabulary_size: int) -> list[range]:
    """Returns the places of the ids that one forward after the other runs, so that all its logits fit into 256 MiB.

    Args:
        first: The first place to run.
        ids: Number of ids of a text.
        vocabulary_size: Logits of a place.

    Returns:
        Adjacent ranges up to the last place; all but the first have the same size, at least 16.
    """
    most = max(_LEAST, _LOGITS // vocabulary_size)
    return [range(max(first, stop - most), stop) for stop in range(ids, first, -most)][::-1]


def places_kept(piece: range, start: int) -> int:
    """Returns after how many places at the end of a piece a token is asked about; at least 1, as models do.

    Args:
        piece: The places of the piece.
        start: The first token that is asked about.
    """
    return max(1, piece.stop - max(piece.start, start - 1))


def logprobs_in_piece(logits: torch.Tensor, ids: Sequence[int], piece: range, start: int) -> list[float]:
    """Returns the log-probabilities (nats) of the ids from `start` on that follow a piece's places.

    Args:
        logits: At the last `places_kept` places of the piece, [places, vocabulary].
        ids: The text.
        piece: The places of the piece.
        start: The first token that is asked about.
    """
    asked = ids[max(piece.start + 1, start) : piece.stop + 1]  # nothing follows the last id of the text
    return logprobs_of(logits[: len(asked)], torch.tensor(asked, dtype=torch.int64, device=logits.device))


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
