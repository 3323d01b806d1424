"""The numbers kept of traced steps, against loops in float64."""

import pytest
import torch

from deepen_core.engine.step_numbers import Compared, Spelled, TopTokens, l1_distances


def test_another_member_s_columns_replace_main_s():
    main = torch.tensor([0.2, 0.2, 0.9, 0.0, 0.3, 0.3])
    theirs = torch.tensor([0.1, 0.6, 0.8, 0.4, 0.5, 0.5])
    ours = torch.tensor([0.4, 0.3, 0.5, 0.0, 0.2, 0.2])
    known = torch.tensor([True, True, True, True, False, True])
    lines = torch.tensor([0, 1, 2, 3, 4, -1])
    found = Compared(theirs, ours, known, lines).probabilities(main)
    # A share, a larger one, at most 1, a column without main's mass, one that not all can know, and main alone.
    expected = torch.tensor([0.05, 0.4, 1.0, 0.4, 0.3, torch.nan])
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_a_token_that_a_member_lacks_has_no_probability():
    found = Spelled(torch.tensor([0.5, 0.25]).log(), [True, False]).probabilities(torch.ones(2))
    torch.testing.assert_close(found, torch.tensor([0.5, torch.nan]), equal_nan=True)


@pytest.mark.parametrize("vocabulary", [30, 8192, 8193])
def test_distances_of_small_and_large_vocabularies(vocabulary):
    first, second = (torch.randn(3, vocabulary).log_softmax(-1) for _ in range(2))
    kept = first.clone(), second.clone()
    expected = (first.double().exp() - second.double().exp()).abs().sum(-1)
    torch.testing.assert_close(l1_distances(first, second).double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(first, kept[0])
    assert torch.equal(second, kept[1])


@pytest.mark.parametrize("logs", [False, True])
def test_the_most_probable_tokens_are_read_as_probabilities(logs):
    probabilities = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]])
    found = TopTokens.of(probabilities.log() if logs else probabilities, logs=logs).lines
    assert [ids for ids, _ in found] == [[1, 2, 0], [0, 2, 1]]
    torch.testing.assert_close(torch.tensor([p for _, p in found]), torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.3, 0.2]]))
