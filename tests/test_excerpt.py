"""The part of a model on which trials run."""

import pytest
import torch
from architectures import build

from deepen_core.members.transformers.excerpt import excerpt, layer_list


def test_only_what_repeats_and_the_head_are_left_out():
    model = build("llama", num_hidden_layers=6)
    layers, head, ids = model.model.layers, model.lm_head, torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    with excerpt(model):
        assert list(model.model.layers) == list(layers)[:2]
        assert model(ids, use_cache=False).logits.shape == (1, 3, model.config.hidden_size)
    assert model.model.layers is layers
    assert model.lm_head is head
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize(
    ("name", "kept"), [("mamba", 2), ("mamba2", 2), ("falcon-mamba", 2), ("rwkv", 2), ("zamba", 3)]
)
def test_recurrent_models_are_tried_on_their_first_layers_too(name, kept):
    model = build(name, num_hidden_layers=6)
    _, attribute = layer_list(model)
    head = model.get_output_embeddings()
    with excerpt(model):
        assert len(getattr(layer_list(model)[0], attribute)) == kept
        assert model(torch.tensor([[1, 2, 3]]), use_cache=False).logits.shape == (1, 3, model.config.hidden_size)
    assert model.get_output_embeddings() is head


def test_every_kind_of_layer_is_kept():
    """One that differs in a number, and one in the class of a part."""
    for change in (
        lambda layer: setattr(layer.self_attn, "scaling", 0.5),
        lambda layer: setattr(layer, "mlp", torch.nn.Identity()),
    ):
        model = build("llama", num_hidden_layers=6)
        change(model.model.layers[3])
        with excerpt(model):
            assert len(model.model.layers) == 4


def test_a_model_that_needs_all_its_layers_keeps_them():
    model = build("llama", num_hidden_layers=4)
    layers, head, forward = model.model.layers, model.lm_head, model.forward

    def all_or_nothing(*given, **options):
        assert len(model.model.layers) == 4
        return forward(*given, **options)

    model.forward = all_or_nothing
    with excerpt(model):
        assert model.model.layers is layers
        assert model.lm_head is head


def test_the_model_is_whole_again_after_an_error():
    model = build("llama", num_hidden_layers=4)
    layers, head = model.model.layers, model.lm_head
    with pytest.raises(KeyError), excerpt(model):
        raise KeyError
    assert model.model.layers is layers
    assert model.lm_head is head
