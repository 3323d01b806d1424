"""The output layer of a model for a few places: both ways to multiply give the same logits."""

import gc

import pytest
import torch

from deepen_core.members.collector import collector_paused
from deepen_core.members.transformers import output_layer

SHAPES = [(1, 1), (1, 2), (3, 1), (2, 2), (5, 1), (2, 3), (8, 1), (3, 3)]  # sequences and places


@pytest.fixture
def used(monkeypatch):
    """The numbers of places that were multiplied token by token, on a machine where that is faster."""
    found, multiply = [], output_layer._token_by_token

    def noted(hidden, weight):
        found.append(len(hidden))
        return multiply(hidden, weight)

    monkeypatch.setattr(output_layer, "_token_by_token", noted)
    monkeypatch.setattr(output_layer, "_token_by_token_is_faster", lambda: True)
    return found


@pytest.mark.parametrize("bias", [False, True])
def test_a_few_places_are_multiplied_in_the_faster_way(used, bias):
    layer = torch.nn.Linear(16, 40, bias=bias).requires_grad_(False)
    bare = torch.nn.Linear(16, 40, bias=bias, dtype=torch.float64)
    bare.load_state_dict(layer.state_dict())
    output_layer.prepare(layer)
    for shape in SHAPES:
        hidden = torch.randn(*shape, 16)
        logits = layer(hidden)
        assert logits.is_contiguous()
        torch.testing.assert_close(logits.double(), bare(hidden.double()), atol=1e-5, rtol=1e-5)
    assert used == ([2, 3, 4, 5, 6, 8] if torch.backends.mkl.is_available() else [])


def test_the_usual_way_stays_where_it_is_faster(used, monkeypatch):
    monkeypatch.setattr(output_layer, "_token_by_token_is_faster", lambda: False)
    layer = torch.nn.Linear(16, 40, bias=False)
    output_layer.prepare(layer)
    hidden = torch.randn(1, 2, 16)
    assert torch.equal(layer(hidden), hidden @ layer.weight.T)
    assert not used


def test_layers_of_other_kinds_are_left_as_they_are(used):
    class Scaled(torch.nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    for layer in (Scaled(16, 40), torch.nn.Linear(16, 40, dtype=torch.bfloat16)):
        output_layer.prepare(layer)
        layer(torch.randn(1, 2, 16, dtype=layer.weight.dtype))
    later = torch.nn.Linear(16, 40)
    output_layer.prepare(later)
    later.to(torch.float64)(torch.randn(1, 2, 16, dtype=torch.float64))
    assert not used


@pytest.mark.parametrize(
    ("described", "processor", "faster"),
    [
        ("processor : 0\nvendor_id : AuthenticAMD\n", "", True),
        ("processor : 0\nvendor_id : GenuineIntel\n", "", False),
        (None, "AMD64 Family 25 Model 1 Stepping 1, AuthenticAMD", True),
        (None, "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel", False),
        (None, "", False),
    ],
)
def test_the_vendor_decides(tmp_path, monkeypatch, described, processor, faster):
    file = tmp_path / "cpuinfo"
    if described:
        file.write_text(described)
    monkeypatch.setattr(output_layer, "_CPU", file)
    monkeypatch.setattr(output_layer.platform, "processor", lambda: processor)
    assert output_layer._token_by_token_is_faster.__wrapped__() is faster


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was_after_a_pause(enabled):
    before = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        with collector_paused:
            with collector_paused:
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        gc.enable() if before else gc.disable()
