"""Members with an adapter: what it answers is what `peft` answers, and what is wrong with one is said at once."""

import builtins
import json
import shutil
import sys

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepen_core import Ensemble, MemberConfig
from deepen_core.errors import ConfigurationError, ModelFilesError

TEXT = "The quick brown fox jumps over the lazy dog"
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


def adapter_of(folder, path, settings, tokens=None):
    """Saves an adapter with random weights, and returns the logits of `TEXT` that `peft` gives."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    if tokens:
        tokenizer.add_tokens(tokens)
        model.resize_token_embeddings(len(tokenizer))
        tokenizer.save_pretrained(path)
    torch.manual_seed(3)
    wrapped = get_peft_model(model, settings).eval()
    for name, weights in wrapped.named_parameters():
        if "lora" in name or "ia3" in name:
            weights.data = torch.randn_like(weights) / 2
    wrapped.save_pretrained(path, save_embedding_layers=bool(tokens))
    return path, logits(wrapped, tokenizer)


@torch.inference_mode()
def logits(model, tokenizer):
    return model(**tokenizer(TEXT, return_tensors="pt")).logits


@pytest.fixture
def base(folders):
    return folders["beta"]


@pytest.fixture
def lora(base, tmp_path):
    return adapter_of(base, tmp_path / "lora", LoraConfig(task_type="CAUSAL_LM", **LORA))


def refused(error, base, adapter, **options):
    with pytest.raises(error) as caught:
        Ensemble.load([MemberConfig(model=str(base), adapter=str(adapter), **options)], device="cpu", progress=False)
    return str(caught.value)


def member_logits(base, adapter):
    with Ensemble.load([MemberConfig(model=str(base), adapter=str(adapter))], device="cpu", progress=False) as ensemble:
        model = ensemble._engine.members[0].model
        assert not isinstance(model, PeftModel)
        place = adapter if (adapter / "tokenizer_config.json").is_file() else base
        assert ensemble.generate(TEXT, max_new_tokens=3).token_ids
        return logits(model, AutoTokenizer.from_pretrained(place))


@pytest.mark.parametrize(
    "settings",
    [
        LoraConfig(task_type="CAUSAL_LM", **LORA),
        LoraConfig(task_type="CAUSAL_LM", use_dora=True, use_rslora=True, **LORA),
        LoraConfig(task_type="CAUSAL_LM", modules_to_save=["down_proj"], **LORA),
        LoraConfig(**LORA),
        IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
    ],
    ids=["lora", "dora", "whole", "no task", "ia3"],
)
def test_merged_adapters_say_what_peft_says(base, tmp_path, settings):
    adapter, expected = adapter_of(base, tmp_path / "adapter", settings)
    torch.testing.assert_close(member_logits(base, adapter), expected, atol=2e-4, rtol=1e-4)
    alone = logits(AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base))
    assert (alone - expected).abs().max() > 0.05


def test_an_adapter_with_tokens_of_its_own(base, tmp_path):
    adapter, expected = adapter_of(
        base, tmp_path / "adapter", LoraConfig(task_type="CAUSAL_LM", **LORA), tokens=["<tool>", "fox jumps"]
    )
    found = member_logits(base, adapter)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_the_random_state_is_kept(base, lora):
    before = torch.get_rng_state()
    Ensemble.load([MemberConfig(model=str(base), adapter=str(lora[0]))], device="cpu", progress=False).close()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_adapter_of_another_model(folders, lora, weights_read):
    told = refused(ModelFilesError, folders["alpha"], lora[0])
    assert told.startswith(f"The adapter {lora[0]} does not fit {folders['alpha']} (")
    assert f"It was trained on {folders['beta']}: give that model, or fetch the adapter again." in told


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("missing", [True, False])
def test_tensors_that_are_missing_or_have_no_place(base, lora, missing):
    weights = load_file(lora[0] / "adapter_model.safetensors")
    name = sorted(weights)[0]
    if missing:
        del weights[name]
    else:
        weights["base_model.model.elsewhere.lora_A.weight"] = weights[name].clone()
    save_file(weights, lora[0] / "adapter_model.safetensors")
    told = refused(ModelFilesError, base, lora[0])
    assert f"(1 of its tensors {'are missing' if missing else 'have no place in the model'}: base_model.model." in told


def test_a_damaged_file(base, lora):
    path = lora[0] / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert "does not fit" in refused(ModelFilesError, base, lora[0])


# What is said before any weights are read


def test_what_is_no_adapter(base, tmp_path, weights_read):
    assert refused(ModelFilesError, base, base) == (
        f"{base} is not an adapter: it has no adapter_config.json. Save it there with "
        "peft_model.save_pretrained(folder)."
    )
    assert f"There is no folder {tmp_path / 'none'}" in refused(ModelFilesError, base, tmp_path / "none")
    assert weights_read == []


def test_pickled_weights(base, lora, weights_read):
    (lora[0] / "adapter_model.safetensors").rename(lora[0] / "adapter_model.bin")
    told = refused(ModelFilesError, base, lora[0])
    assert told.startswith(
        f"{lora[0]} has adapter_model.bin, a pickle file, which can run code when it is loaded: save"
    )
    (lora[0] / "adapter_model.bin").unlink()
    assert "has no adapter_model.safetensors: save" in refused(ModelFilesError, base, lora[0])
    assert weights_read == []


def test_learned_prompts(base, tmp_path, weights_read):
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(tmp_path / "prompt")
    weights_read.clear()
    assert "is a learned prompt, which cannot be merged" in refused(ModelFilesError, base, tmp_path / "prompt")
    assert weights_read == []


def test_without_peft(base, lora, monkeypatch, weights_read):
    real = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr(
        "deepen_core.members.transformers.adapter.find_spec", lambda name: None if name == "peft" else real(name)
    )
    assert refused(ConfigurationError, base, lora[0]) == (
        f"The adapter {lora[0]} needs peft, which is not installed: pip install 'deepen-integrations[peft]'."
    )
    assert weights_read == []


def test_peft_is_imported_only_for_adapters(base, monkeypatch):
    imported, load = [], builtins.__import__

    def watched(name, *rest):
        imported.append(name.partition(".")[0])
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", watched)
    monkeypatch.setattr("transformers.modeling_utils.is_peft_available", lambda *_: False, raising=False)
    Ensemble.load([base], device="cpu", progress=False).close()
    assert "deepen_core.members.transformers.adapter" in sys.modules
    assert "peft" not in imported


@pytest.mark.parametrize("where", ["config", "kwargs"])
def test_quantised_weights(base, lora, tmp_path, where, monkeypatch, weights_read):
    folder, options = base, {}
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    if where == "kwargs":
        options = {"model_kwargs": {"quantization_config": settings}}
    else:
        folder = shutil.copytree(base, tmp_path / "quantised")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
        monkeypatch.setattr("deepen_core.members.transformers.pretrained.check_quantisation", lambda *_, **__: None)
    told = refused(ConfigurationError, folder, lora[0], **options)
    assert told.startswith(f"The weights of {folder} are quantised, and an adapter cannot be merged into such weights")
    assert weights_read == []


def test_an_adapter_on_the_hub(base, lora, monkeypatch):
    from types import SimpleNamespace

    from deepen_core.members.transformers import hub

    fetched, tokens = [], set()
    names = [path.name for path in lora[0].iterdir()]
    reply = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def fetch(_model, *, allow_patterns, token, **_):
        fetched.append(allow_patterns)
        tokens.add(token)
        return str(lora[0])

    for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(switch, raising=False)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, token, **__: tokens.add(token) or reply)
    monkeypatch.setattr(hub, "snapshot_download", fetch)
    config = MemberConfig(model=str(base), adapter="someone/lora", token="hf_secret")
    with Ensemble.load([config], device="cpu", progress=False) as ensemble:
        found = logits(ensemble._engine.members[0].model, AutoTokenizer.from_pretrained(base))
    torch.testing.assert_close(found, lora[1], atol=2e-4, rtol=1e-4)
    assert any("adapter_model.safetensors" in patterns for patterns in fetched)
    assert tokens == {"hf_secret"}
    assert "hf_secret" not in repr(config)
    assert "hf_secret" not in config.model_dump_json()
