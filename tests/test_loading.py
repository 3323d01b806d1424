"""Loading members: whole weights or none, paths and hub ids, names, and models that predict the next token."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from deepen_core import Ensemble, MemberConfig
from deepen_core.errors import ConfigurationError, ModelFilesError
from deepen_core.members.loading import main_index, member_configs
from deepen_core.members.transformers import hub as module
from deepen_core.members.transformers.checkpoint import declared_window
from deepen_core.members.transformers.loader import describe, load_member


@pytest.fixture
def copy_of(tmp_path, folders):
    """Copies a model folder, to be changed."""

    def copied(name):
        return Path(shutil.copytree(folders[name], tmp_path / name))

    return copied


@pytest.fixture
def no_network(monkeypatch):
    """Fails the test if the hub is asked for anything."""

    def asked(*_, **__):
        pytest.fail("the hub was asked")

    monkeypatch.setattr(module, "snapshot_download", asked)
    monkeypatch.setattr(module.HfApi, "model_info", asked)


@pytest.fixture
def hub(monkeypatch, folders):
    """A hub that answers any id with member alpha; the requests to it."""
    requests = []

    def fetched(model, **options):
        requests.append((model, options))
        return str(folders["alpha"])

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=None))
    monkeypatch.setattr(module, "snapshot_download", fetched)
    return requests


def described(model, **options):
    (config,) = member_configs([model])
    return describe(config, "cpu", options.get("dtype", "auto"))


def loaded(model):
    return load_member(described(model), progress=False)


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def set_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# Whole weights or none


def test_missing_tensors_are_named(copy_of):
    folder = copy_of("beta")
    gone = ["model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"]

    def drop(weights):
        for name in gone:
            del weights[name]

    change_weights(folder, drop)
    with pytest.raises(ModelFilesError, match=rf"3 of its 21 tensors are missing \({', '.join(gone)}\)"):
        loaded(folder)


def test_more_layers_than_were_saved(copy_of):
    folder = copy_of("beta")
    set_config(folder, num_hidden_layers=4)
    with pytest.raises(ModelFilesError, match=r"18 of its 39 tensors are missing \(model\.layers\.2\..*, \.\.\.\)"):
        loaded(folder)


def test_tensors_of_another_shape_are_named(copy_of):
    folder = copy_of("beta")
    change_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(7)}))
    with pytest.raises(
        ModelFilesError,
        match=r"1 of its 21 tensors have another shape \(model\.norm\.weight \[7\] where \[32\] is needed",
    ):
        loaded(folder)


def test_configuration_of_another_width(copy_of):
    folder = copy_of("beta")
    set_config(folder, hidden_size=64)
    with pytest.raises(ModelFilesError, match="tensors have another shape"):
        loaded(folder)


def test_the_head_of_an_untied_model_is_not_drawn_at_random(copy_of):
    folder = copy_of("beta")
    set_config(folder, tie_word_embeddings=False)
    with pytest.raises(ModelFilesError, match=r"1 of its 21 tensors are missing \(lm_head\.weight\)"):
        loaded(folder)


def test_tied_heads_are_not_missing_and_other_tensors_do_no_harm(copy_of, folders):
    folder = copy_of("beta")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    change_weights(folder, lambda weights: weights.update({"something.else": torch.ones(3)}))
    model, expected = loaded(folder).model, loaded(folders["beta"]).model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("whole", [True, False])
def test_the_global_random_state_is_kept(copy_of, whole):
    folder = copy_of("beta")
    if not whole:
        change_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    before = torch.random.get_rng_state()
    try:
        loaded(folder)
    except ModelFilesError:
        assert not whole
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize(
    ("saved", "dtype", "smaller"),
    [
        ("float32", "auto", True),
        ("float32", "float64", True),
        ("float32", "float16", False),
        ("bfloat16", "auto", False),
        ("bfloat16", "float32", True),
        (None, "auto", True),
    ],
)
def test_a_member_that_does_not_fit_its_device(copy_of, monkeypatch, saved, dtype, smaller):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    folder = copy_of("alpha")
    set_config(folder, dtype=saved)
    description = described(folder, dtype=dtype)
    monkeypatch.setattr("torch.nn.Module.to", full)
    advice = "Use another device" + (", or a smaller dtype such as 'bfloat16'" if smaller else "")
    with pytest.raises(
        ConfigurationError, match=rf"alpha does not fit on cpu: its weight files have 0 MiB\. {advice} \(OutOfMemory"
    ):
        load_member(description, progress=False)


# Windows and stops


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"max_position_embeddings": 256}, 256),
        ({"max_position_embeddings": 256, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 1024),
        ({"max_position_embeddings": 256, "rope_scaling": {"type": "dynamic", "factor": 4.0}}, 1024),
        ({"max_position_embeddings": 1024, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 1024),
        (
            {"max_position_embeddings": 300, "rope_parameters": {"factor": 4, "original_max_position_embeddings": 256}},
            1024,
        ),
        (
            {
                "max_position_embeddings": 8192,
                "rope_scaling": {"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 2048},
            },
            8192,
        ),
        ({"max_sequence_length": 64, "original_max_position_embeddings": 32, "rope_scaling": {"factor": 4.0}}, 128),
        ({"max_position_embeddings": 64, "rope_parameters": {"full": {"rope_type": "yarn", "factor": 2.0}}}, 128),
        ({}, None),
    ],
)
def test_scaled_positions_reach_further(config, window):
    assert declared_window(config) == window


def test_a_member_of_scaled_positions_has_its_whole_window(copy_of):
    folder = copy_of("beta")
    set_config(folder, rope_parameters={"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0})
    assert described(folder).context_window == 1024
    assert describe(MemberConfig(model=str(folder), name="a", context_window=300), "cpu", None).context_window == 300
    with Ensemble.load([folder], progress=False, device="cpu") as ensemble:
        long = ensemble.generate("one two three " * 100, max_new_tokens=3, ignore_eos=True)
    assert long.usage.prompt_tokens > 256


def test_an_ordinary_piece_is_never_a_stop(copy_of):
    """LlamaConfig's default is 2, which is a piece like any other in many vocabularies."""
    folder = copy_of("alpha")
    stops = described(folder).tokenizer.vocabulary.stop_ids
    (folder / "generation_config.json").unlink(missing_ok=True)
    set_config(folder, eos_token_id=70)
    assert 70 not in described(folder).tokenizer.vocabulary.special_ids
    assert described(folder).tokenizer.vocabulary.stop_ids == stops
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": max(stops)}))
    set_config(folder, eos_token_id=min(stops))
    assert described(folder).tokenizer.vocabulary.stop_ids >= {max(stops)}


# Paths and hub ids


@pytest.mark.usefixtures("no_network")
def test_home_folders(folders, monkeypatch):
    monkeypatch.setenv("HOME", str(folders["alpha"].parent))
    with Ensemble.load(["~/alpha", "~/beta"], progress=False, device="cpu") as ensemble:
        assert [m.name for m in ensemble.info.members] == ["alpha", "beta"]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("model", ["alpha", "./alpha", "../models/alpha", "here/../alpha"])
def test_relative_folders(folders, tmp_path, monkeypatch, model):
    (tmp_path / "models" / "here").mkdir(parents=True)
    shutil.copytree(folders["alpha"], tmp_path / "models" / "alpha")
    monkeypatch.chdir(tmp_path / "models")
    assert described(model).local
    assert loaded(model).name == "alpha"


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("model", ["./models/typo", "../models/typo", "./typo", "/no/typo", "~/typo", "a/b/typo"])
def test_paths_never_ask_the_hub(model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFilesError, match=r"^There is no folder /.*typo: give a model folder"):
        described(model)


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_asks_only_the_cache(hub, monkeypatch, switch):
    monkeypatch.setenv(switch, "1")
    monkeypatch.setattr(module.HfApi, "model_info", lambda *_, **__: pytest.fail("the hub was asked"))
    assert not described("someone/alpha").local
    assert [options["local_files_only"] for _, options in hub] == [True]


def test_a_dead_network_is_noticed_at_once(hub, monkeypatch):
    waited = []

    def dead(_api, model, *, revision, timeout):
        waited.append(timeout)
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(module.HfApi, "model_info", dead)
    assert described("someone/alpha").name == "alpha"
    assert [options["local_files_only"] for _, options in hub] == [True]
    assert sum(waited) <= 10


def test_a_typo_says_first_that_there_is_no_folder(hub, monkeypatch, tmp_path):
    def unknown(*_, **__):
        raise FileNotFoundError("not in the cache\nand more")

    def dead(*_, **__):
        raise ConnectionError("Name or service not known")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "snapshot_download", unknown)
    start = rf"^There is no folder {tmp_path}/models/typo, and as a hub id 'models/typo' could not be fetched "
    with pytest.raises(ModelFilesError, match=start + r"\(FileNotFoundError: not in the cache\)\. Check the path"):
        described("models/typo")
    monkeypatch.setattr(module.HfApi, "model_info", dead)
    with pytest.raises(ModelFilesError, match=start + r"\(ConnectionError: Name or service not known\)"):
        described("models/typo")


def test_only_the_files_that_are_loaded_are_fetched(hub):
    load_member(described({"model": "someone/alpha", "revision": "v2"}), progress=False)
    (_, small), (model, all_files) = hub
    assert model == "someone/alpha"
    assert (small["revision"], all_files["revision"], all_files["local_files_only"]) == ("v2", "v2", False)
    files = [
        "config.json",
        "tokenizer.json",
        "tokenizer.model",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "consolidated.safetensors",
        "consolidated-00001-of-00002.safetensors",
        "consolidated.safetensors.index.json",
        "original/params.json",
        "original/consolidated.00.pth",
        "original/model.safetensors",
        "pytorch_model.bin",
    ]

    def taken(options):
        patterns = {key: options[key] for key in ("allow_patterns", "ignore_patterns")}
        return list(filter_repo_objects(files, **patterns))

    assert taken(all_files) == files[:5]
    assert taken(small) == [*files[:3], "model.safetensors.index.json"]


# Names


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a", "a", "a-2"], ["a", "a-3", "a-2"]),
        (["a-2", "a", "a"], ["a-2", "a", "a-3"]),
        (["a", "a", "a"], ["a", "a-2", "a-3"]),
        (["a", "a-2", "a", "a-2"], ["a", "a-2", "a-3", "a-2-2"]),
    ],
)
def test_names_are_unique(given, expected):
    configs = member_configs([MemberConfig(model="x", name=name) for name in given])
    assert [c.name for c in configs] == expected
    assert [main_index(name, [c.name for c in configs]) for name in expected] == list(range(len(expected)))


def test_the_name_is_the_last_part_of_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [c.name for c in member_configs([".", "org/name", "~/name"])] == [tmp_path.name, "name", "name-2"]


# Options


@pytest.mark.parametrize(
    ("dtype", "expected"), [(None, "auto"), ("auto", "auto"), ("bfloat16", torch.bfloat16), ("float64", torch.float64)]
)
def test_dtypes(folders, dtype, expected):
    assert described(folders["alpha"], dtype=dtype).dtype == expected


def test_mps_where_there_is_one(folders, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert described({"model": str(folders["alpha"]), "device": "mps"}).device.type == "mps"
    with pytest.raises(ConfigurationError, match="'mps:1' is not there: 1 MPS devices"):
        described({"model": str(folders["alpha"]), "device": "mps:1"})


# Models that predict the next token


ENCODERS = "Bert Roberta XLMRoberta Camembert Electra BigBird RemBert RoFormer BertGeneration MegatronBert Reformer"
DECODERS = """
    GPT2 Llama Falcon Mamba Mamba2 Bloom OPT GPTNeoX GPTNeoXJapanese GPTNeo GPTJ GPTBigCode Phi Phi3 Qwen2
    Qwen3 Gemma Gemma2 Gemma3Text Mistral Mixtral Mpt StableLm Olmo2 CTRL OpenAIGPT Starcoder2 CodeGen
    ModernBertDecoder
"""


def save_configuration(folder, config):
    tokenizer = tiny.wordpiece()
    config.vocab_size = len(tokenizer)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def configuration(name, **options):
    return getattr(transformers, f"{name}Config")(**options)


@pytest.mark.parametrize("name", ENCODERS.split())
def test_encoders_are_refused_unless_made_decoders(tmp_path, name):
    folder = save_configuration(tmp_path / name, configuration(name))
    with pytest.raises(ConfigurationError, match=rf"{name} is an encoder \(.*\) that looks at both sides"):
        described(folder)
    save_configuration(folder, configuration(name, is_decoder=True))
    assert described(folder).name == name


@pytest.mark.parametrize(("name", "kind"), [("DistilBert", "distilbert"), ("ModernBert", "modernbert"), ("ViT", "vit")])
def test_models_without_a_causal_class_are_refused(tmp_path, name, kind):
    folder = save_configuration(tmp_path / name, configuration(name))
    with pytest.raises(ConfigurationError, match=rf"is not a causal language model \({kind}\)"):
        described(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DECODERS.split())
def test_decoders_are_taken(tmp_path, name):
    assert described(save_configuration(tmp_path / name, configuration(name))).name == name


def test_a_masked_language_model_is_refused_and_a_decoder_of_its_kind_loads(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tokenizer = tiny.wordpiece()
    config = transformers.BertConfig(vocab_size=len(tokenizer), **sizes)
    with torch.random.fork_rng(devices=[]):
        masked = transformers.BertForMaskedLM(config)
        config = transformers.BertConfig(vocab_size=len(tokenizer), is_decoder=True, **sizes)
        decoder = transformers.BertLMHeadModel(config)
    for model, name in ((masked, "masked"), (decoder, "decoder")):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    with pytest.raises(ConfigurationError, match="masked is an encoder"):
        loaded(tmp_path / "masked")
    assert loaded(tmp_path / "decoder").name == "decoder"


def test_a_gpt2_with_wordpiece_loads(folders):
    assert loaded(folders["wordpiece"]).name == "wordpiece"


def test_loading_leaves_the_environment(folders):
    before = dict(os.environ)
    loaded(folders["alpha"])
    assert dict(os.environ) == before
