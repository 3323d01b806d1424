"""The places of the largest scores, against `torch.argmax`."""

import pytest
import torch

from deepen_core.sampling.largest import places_of_largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (3, 7), (2, 3, 50)])
def test_the_first_of_the_largest(shape, dtype):
    for seed in range(20):
        scores = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        found = places_of_largest(scores)
        assert torch.equal(found, scores.argmax(-1))
        assert torch.equal((scores == scores.amax(-1, keepdim=True)).int().argmax(-1), found)


def test_of_a_part_and_of_what_is_no_number():
    scores = torch.randn(4, 20)
    assert torch.equal(places_of_largest(scores[:, 3:15:2]), scores[:, 3:15:2].argmax(-1))
    scores[1, 5], scores[2, 7] = torch.nan, -torch.inf
    assert torch.equal(places_of_largest(scores), scores.argmax(-1))
    assert int(places_of_largest(torch.full((9,), -torch.inf))) == 0
