"""Ensembles of models that are in memory, that are spread over devices, and that see."""

import pytest
import tiny_vision
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from deepen_core import Ensemble, MemberConfig
from deepen_core.errors import ConfigurationError, DeepenError, MemberError
from deepen_core.members.transformers.causal import CausalMember
from deepen_core.members.transformers.loader import Description
from deepen_core.members.transformers.model_member import ModelMember

TEXT = "The quick brown fox jumps"


def pair(folder, kind=AutoModelForCausalLM):
    return kind.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def answers(ensemble):
    with ensemble:
        generated = ensemble.generate([TEXT, TEXT + " over"], max_new_tokens=8, logprobs=True)
        return [(g.token_ids, [token.logprob for token in g.logprobs]) for g in generated]


def test_given_models_answer_as_their_folders_do(folders):
    chosen = [folders["alpha"], folders["beta"]]
    expected = answers(Ensemble.load(chosen, device="cpu", progress=False))
    assert answers(Ensemble.from_models([pair(folder) for folder in chosen])) == expected
    named = {"one": pair(chosen[0]), "two": pair(chosen[1])}
    with Ensemble.from_models(named, main="two", weights=[1, 3], max_context_window=40) as ensemble:
        assert [m.name for m in ensemble.info.members] == ["one", "two"]
        assert ensemble.info.context_window <= 40
        assert ensemble.main_name == "two"
    with Ensemble.from_models([pair(folder) for folder in chosen], prompts=[None, "Say: {prompt}"]) as ensemble:
        assert [m.name for m in ensemble.info.members] == ["alpha", "beta"]


def test_weights_are_shared_and_unchanged(folders):
    model, tokenizer = pair(folders["beta"])
    before = {name: weights.clone() for name, weights in model.named_parameters()}
    with Ensemble.from_models([(model, tokenizer)]) as ensemble:
        assert ensemble._engine.members[0].model is model
        ensemble.generate(TEXT, max_new_tokens=3)
    for name, weights in model.named_parameters():
        assert torch.equal(weights, before[name])
        assert weights.requires_grad


def test_the_generation_config_of_a_given_model_holds(folders):
    """The ids that end its texts are those that it has in memory."""
    model, tokenizer = pair(folders["beta"])
    with Ensemble.from_models([(model, tokenizer)]) as ensemble:
        third = ensemble.generate(TEXT, max_new_tokens=3).token_ids[2]
    stop = tokenizer.add_special_tokens({"additional_special_tokens": ["<stop>"]}) and len(tokenizer) - 1
    model.generation_config.eos_token_id = [stop, tokenizer.eos_token_id]
    model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():  # as likely as the third token, and a little likelier
        model.get_output_embeddings().weight[stop] = model.get_output_embeddings().weight[third] * 1.5
    with Ensemble.from_models([(model, tokenizer)]) as ensemble:
        found = ensemble.generate(TEXT, max_new_tokens=8)
    assert found.finish_reason == "stop"


def test_given_encoder_decoder_models(seq2seq_folders):
    folder = seq2seq_folders["t5"]
    expected = answers(Ensemble.load([folder], device="cpu", progress=False))
    assert answers(Ensemble.from_models([pair(folder, AutoModelForSeq2SeqLM)])) == expected


def test_what_cannot_be_a_member(folders):
    model, tokenizer = pair(folders["beta"])
    for models, told in (
        ([], "The list of members is empty"),
        ([model], "Member 0 is a "),
        ([(model.train(), tokenizer)], "Member 'beta' is in training mode, in which answers are random: call its eval"),
        ([(torch.nn.Linear(2, 2), tokenizer)], "Member 'Linear' is a Linear, not a model of transformers: give one"),
        ([pair(folders["beta"], AutoModel)], "which gives no probabilities of tokens: load it with"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            Ensemble.from_models(models)
        assert told in str(caught.value)


def test_models_of_peft_say_how_to_merge(folders):
    from peft import LoraConfig, get_peft_model

    model, tokenizer = pair(folders["beta"])
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"])).eval()
    with pytest.raises(ConfigurationError, match=r"merge the adapter into it first, with merge_and_unload\(\)"):
        Ensemble.from_models([(wrapped, tokenizer)])


# Spread over devices


def test_models_that_are_spread_and_offloaded(folders, tmp_path):
    expected = answers(Ensemble.load([folders["alpha"], folders["beta"]], device="cpu", progress=False))
    model = AutoModelForCausalLM.from_pretrained(folders["beta"])
    inner = model.base_model_prefix
    places = {f"{inner}.{name}": "cpu" for name, _ in getattr(model, inner).named_children() if name != "layers"}
    count = model.config.num_hidden_layers
    places |= {f"{inner}.layers.{n}": "disk" if n else "cpu" for n in range(count)}
    for kwargs in (
        {"device_map": "auto"},
        {"device_map": {**places, "lm_head": "cpu"}, "offload_folder": str(tmp_path / "offload")},
    ):
        spread = MemberConfig(model=str(folders["beta"]), model_kwargs=kwargs)
        assert answers(Ensemble.load([folders["alpha"], spread], progress=False)) == expected
    with pytest.raises(ConfigurationError, match="Device is 'cpu', and model_kwargs has a device_map: give one"):
        Ensemble.load([{"model": "a", "device": "cpu", "model_kwargs": {"device_map": "auto"}}])


@pytest.mark.parametrize("name", ["tp_plan", "torch_compile", "variant", "token"])
def test_what_has_another_way(name):
    with pytest.raises(ConfigurationError, match=rf"{name} (needs one process|cannot be chosen|has a field)"):
        Ensemble.load([{"model": "a", "model_kwargs": {name: "auto"}}])


# Models that see


@pytest.mark.parametrize("family", tiny_vision.FAMILIES)
def test_models_that_see_answer_to_text(family, tmp_path):
    """As `transformers` does, whole text by whole text."""
    model, tokenizer = tiny_vision.make(family)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with Ensemble.load([tmp_path], device="cpu", progress=False) as ensemble:
        member = ensemble._engine.members[0]
        ids = [*member.tokenizer.reader.read_text(TEXT).ids, *member.tokenizer.encode(TEXT)]
        allowed = sorted(member.tokenizer.vocabulary.tokens.values())
        expected = []
        with torch.inference_mode():
            for _ in range(12):
                last = model(input_ids=torch.tensor([ids + expected])).logits[0, -1]
                expected.append(allowed[int(last[allowed].argmax())])
        found = ensemble.generate([TEXT, TEXT + " over"], max_new_tokens=12, ignore_eos=True)[0]
    assert found.token_ids == expected


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_a_given_model_is_as_before_once_the_ensemble_is_closed(folders, name, monkeypatch):
    """Its attention, and its output layer, also on CPUs that run that in another way; also if nothing came of it."""
    monkeypatch.setattr("deepen_core.members.transformers.output_layer._multiplied_by_mkl", lambda _: True)
    model, tokenizer = pair(folders[name])
    layer = model.get_output_embeddings()

    def changed():
        return model.config._attn_implementation, dict(vars(layer)), dict(layer._forward_pre_hooks)

    before = changed()
    with Ensemble.from_models([(model, tokenizer)]) as ensemble:
        assert vars(layer).keys() != before[1].keys()
        assert layer._forward_pre_hooks
        attention = model.config._attn_implementation
        assert (attention == before[0]) is (name != "beta")
        ensemble.generate(TEXT, max_new_tokens=3)
    assert changed() == before
    for models, options in (
        ([(model, tokenizer), (model, None)], {}),  # the second one is none
        ([(model, tokenizer)], {"fusion": "nothing"}),  # nothing is tried
    ):
        with pytest.raises(DeepenError):
            Ensemble.from_models(models, **options)
        assert changed() == before
    with Ensemble.from_models([(model, tokenizer)]):
        assert model.config._attn_implementation == attention
    assert changed() == before


def test_members_that_were_loaded_are_closed_if_loading_fails(folders, monkeypatch):
    """They may hold something elsewhere, which the error that a caller keeps would keep too."""
    closed = []
    monkeypatch.setattr(ModelMember, "close", lambda member: closed.append(member.name))
    chosen, options = [folders["alpha"], folders["beta"]], {"device": "cpu", "progress": False}
    warm_up, load = CausalMember.warm_up, Description.load

    def fails(what, name):
        def work(one, *rest, **given):
            if one.name == name:
                raise MemberError("none")
            return what(one, *rest, **given)

        return work

    with monkeypatch.context() as patch:
        patch.setattr(CausalMember, "warm_up", fails(warm_up, "beta"))
        with pytest.raises(MemberError):
            Ensemble.load(chosen, **options)
    assert closed == ["alpha", "beta"]
    closed.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Description, "load", fails(load, "beta"))
        with pytest.raises(MemberError):
            Ensemble.load(chosen, **options)
    assert closed == ["alpha"]
    closed.clear()
    with Ensemble.load(chosen, **options):
        assert not closed
    assert closed == ["alpha", "beta"]
