"""Log-probabilities of tokens that are given."""

import pytest
import torch

from deepen_core.members.transformers.given_tokens import logprobs_in_piece, logprobs_of, pieces, places_kept


@pytest.mark.parametrize("places", [0, 1, 15, 16, 17, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_those_of_all_places_at_once(places, dtype):
    made = torch.Generator().manual_seed(places)
    logits = (10 * torch.randn(places, 300, generator=made)).to(dtype)
    ids = torch.randint(300, (places,), generator=made)
    expected = torch.log_softmax(logits.double(), dim=-1)[torch.arange(places), ids]
    assert logprobs_of(logits, ids) == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("start", range(1, 41))
def test_each_token_is_looked_up_in_one_piece(start):
    """Whatever is known of a token is its own."""
    ids = list(range(40))
    logits = torch.randn(40, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for piece in pieces(0, len(ids), 2**22):
        kept = places_kept(piece, start)
        assert 1 <= kept <= len(piece) == 16 or piece == range(8)
        found += logprobs_in_piece(logits[piece.stop - kept : piece.stop], ids, piece, start)
    known = torch.log_softmax(logits.float(), -1)
    assert found == [float(known[place - 1, place]) for place in range(start, 40)]
