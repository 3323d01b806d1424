"""How a model is tried: rounding is told from faults by the model's own measure, and our own faults from refusals."""

import pytest
import torch
from architectures import WINDOW, build
from ids_parts import IdsSequence, check, made_up, member_of

from deepen_core.members.transformers.capabilities import probe
from deepen_core.members.transformers.kv_cache import RaggedCache, cache_option
from deepen_core.members.transformers.kv_layer import RaggedLayer
from deepen_core.members.transformers.rounding import Rounding

HALF = {torch.bfloat16: 2**-8, torch.float16: 2**-11}


def rough(model, dtype, layers_of_noise=3.0):
    """Lets a model round as real ones do: each product is off by what depends on how many sequences and ids it is of.

    Kernels of other shapes add up in another order. In tiny models that is next to nothing, and in deep ones it grows
    until logits are off by as much as a wrong mask may make them.
    """

    def off(_module, inputs, output):
        generator = torch.Generator().manual_seed(inputs[0].shape[:-1].numel())
        wave = torch.randn(output.shape[-1], generator=generator)
        return (output.float() * (1 + layers_of_noise * HALF[dtype] * wave)).to(output.dtype)

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(off)
    return model


def logits_off(model):
    """How far the logits of one place are from themselves, by how many ids are run, as a share of their size."""
    with torch.inference_mode():
        ids = torch.arange(5, 25)[None]
        short, long = (model(ids[:, :n], use_cache=False).logits[0, 8].float() for n in (9, 20))
    return float((short - long).norm() / (long - long.mean()).norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
def test_rounding_as_large_as_in_real_models_is_no_fault(name, dtype):
    layers = {"num_hidden_layers": 6}
    if name == "gemma3":
        layers["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"] * 2
    model = rough(build(name, dtype=dtype, **layers), dtype)
    assert logits_off(model) > 4 * HALF[dtype]  # a fixed bound below which wrong masks are found would refuse it
    found = probe(model, WINDOW)
    assert found.keeps_cache
    assert found.masks is not None, found.why_not


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("said", "true"), [(12, 7), (7, 12), (40, 9)])
def test_a_wrong_mask_is_found_in_spite_of_rounding(said, true, dtype):
    model = build("mistral", dtype=dtype, sliding_window=true, num_hidden_layers=6)
    config = type(model.config).from_dict({**model.config.to_dict(), "sliding_window": said})
    config._attn_implementation = model.config._attn_implementation
    model.config = config  # the model below it keeps its own
    found = probe(rough(model, dtype), WINDOW)
    assert found.keeps_cache
    assert found.masks is None
    assert "where its own rounding is" in found.why_not


def test_the_reason_names_the_place_and_both_numbers():
    rounding = Rounding(torch.bfloat16)
    one = [torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    rounding.learn([state * 1.01 for state in one], one)
    assert rounding.problem([state * 0.95 for state in one], one) == ""
    assert rounding.problem(one[:2], one[:2]) == "2 layers where there were 3"
    assert rounding.problem([one[0], one[1] * 1.5, one[2]], one).startswith("the output of layer 1 by")
    assert rounding.problem([*one[:2], one[2] * 1.5], one).startswith("its logits by")
    assert rounding.problem([one[0], one[1] * float("nan"), one[2]], one)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 0.01), (torch.float16, 0.3), (torch.bfloat16, 0.9)])
def test_a_model_that_is_far_from_itself_is_not_trusted_with_everything(dtype, off):
    """One that sees what comes later changes all it has said with each id: that is no rounding."""
    rounding = Rounding(dtype)
    one = [torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    rounding.learn([state + 5.0 for state in one], one)
    assert rounding.problem([state * (1 + off) for state in one], one)


def test_a_model_of_experts_that_changes_its_mind_once_is_tried_again(monkeypatch):
    """Rounding may decide between two experts in one trial; a fault shows in every one."""
    tried = []
    judge = Rounding.problem

    def once(self, found, expected):
        tried.append(True)
        return "another expert" if len(tried) == 1 else judge(self, found, expected)

    monkeypatch.setattr(Rounding, "problem", once)
    assert probe(build("llama"), WINDOW).masks is not None


@pytest.mark.parametrize("broken", [lambda: None, None])
def test_errors_of_our_own_code_are_no_refusals(monkeypatch, broken):
    """A method that another version of transformers asks for must not silently make every model slow."""
    monkeypatch.setattr(RaggedLayer, "fit", broken)
    with pytest.raises(TypeError):
        probe(build("llama"), WINDOW)
    monkeypatch.delattr(RaggedLayer, "fit")
    with pytest.raises(AttributeError, match="fit"):
        probe(build("llama"), WINDOW)


def test_a_cache_class_that_cannot_be_made_is_no_refusal(monkeypatch):
    monkeypatch.setattr(RaggedLayer, "__abstractmethods__", frozenset({"some_new_method"}))
    with pytest.raises(TypeError, match="some_new_method"):
        probe(build("llama"), WINDOW)


@pytest.mark.parametrize("problem", [TypeError, AttributeError, ValueError, RuntimeError, KeyError])
def test_errors_of_a_model_are_refusals(problem):
    model = build("llama")

    def picky(_module, arguments, options):
        if isinstance(options.get(cache_option(model)), RaggedCache):
            raise problem("I know no such cache")

    model.register_forward_pre_hook(picky, with_kwargs=True)
    found = probe(model, WINDOW)
    assert found.keeps_cache
    assert found.masks is None
    assert "I know no such cache" in found.why_not


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "xlnet"])
def test_nothing_is_left_that_listens(name):
    model = build(name)
    before = [len(module._forward_hooks) for module in model.modules()]
    probe(model, WINDOW)
    assert [len(module._forward_hooks) for module in model.modules()] == before


def every_tensor(model):
    return {**model.state_dict(), **dict(model.named_buffers(remove_duplicate=False))}


def test_a_trial_leaves_everything_as_it_is():
    model = build("dynamic")
    before = {name: value.clone() for name, value in every_tensor(model).items()}
    random = torch.random.get_rng_state()
    assert member_of(model).batching.startswith("ragged")
    after = every_tensor(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(random, torch.random.get_rng_state())


@pytest.mark.parametrize(("said", "true"), [(70, 71), (71, 70), (None, 80), (80, None), (7, 8), (None, 9)])
def test_a_configuration_that_lies_about_the_window_is_found_out(said, true):
    """Also where the window is too long to be tried with text."""
    model = build("mistral", sliding_window=true)
    config = type(model.config).from_dict({**model.config.to_dict(), "sliding_window": said})
    config._attn_implementation = model.config._attn_implementation
    model.config = config  # the model below it keeps its own
    assert model.model.config.sliding_window == true
    member = member_of(model)
    works = said is not None and true is None  # one of the readings is that there is no window
    assert (member.batching == "ragged") == works
    sequences = [IdsSequence(made_up(n, n)) for n in (85, 17)]
    with torch.inference_mode():
        check(model, sequences, member.next_logits(sequences))
