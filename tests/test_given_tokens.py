"""Log-probabilities of tokens that are given."""

import pytest
import torch

from deepen_core.members.transformers.given_tokens import logprobs_of


@pytest.mark.parametrize("places", [0, 1, 15, 16, 17, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_those_of_all_places_at_once(places, dtype):
    made = torch.Generator().manual_seed(places)
    logits = (10 * torch.randn(places, 300, generator=made)).to(dtype)
    ids = torch.randint(300, (places,), generator=made)
    expected = torch.log_softmax(logits.double(), dim=-1)[torch.arange(places), ids]
    assert logprobs_of(logits, ids) == pytest.approx(expected.tolist(), abs=1e-5)
