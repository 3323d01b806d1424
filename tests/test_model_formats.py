"""Folders, files and hub ids in other formats than that of transformers: the error names the format and the way out."""

import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from folder_parts import answer, only, saved, set_json, without_weights
from safetensors.torch import load_file, save_file

from deepen_core import Ensemble
from deepen_core.errors import ModelFilesError
from deepen_core.members.transformers import hub

ORIGINAL = (
    "is in the format of its authors ({}), not in that of transformers. Fetch its config.json and model*.safetensors, "
    "which most hub repositories have as well, or convert it with convert_llama_weights_to_hf.py or "
    "convert_mistral_weights_to_hf.py of the transformers repository."
)
RUNTIME = (
    "has its weights for {} only ({}), and they cannot be turned back: give the model that they were exported from."
)
UNKNOWN = (
    "has no model.safetensors, but files that transformers does not load ({}): load them with the program that wrote "
    "them, and save the model with model.save_pretrained(folder)."
)
SHARDS = (
    "has weight files (model-00001-of-00002.safetensors, model-00002-of-00002.safetensors), but no "
    "model.safetensors.index.json, which says what is in which: fetch it again."
)
RENAMED = (
    "has no model.safetensors, but model.fp16.safetensors: if that is the whole model, rename it to model.safetensors; "
    "if not, save the model with model.save_pretrained(folder)."
)
OLD = "has its weights for {0} only ({1}): convert them once, with transformers 4 and {0} installed: "


@pytest.mark.parametrize(
    ("change", "names", "told"),
    [
        (only, ["a.Q4_K_M.gguf", "README.md"], lambda f: f"(a.Q4_K_M.gguf): give the file, such as {f}/a.Q4_K_M.gguf."),
        (
            without_weights,
            ["b.gguf", "a.gguf", "c.gguf", "d.gguf", "mmproj-a.gguf"],
            lambda f: f"(a.gguf, b.gguf, c.gguf, ...): give the file, such as {f}/a.gguf.",
        ),
    ],
)
def test_gguf_in_a_folder(folder, refused, change, names, told):
    change(folder, *names)
    error = refused(folder, ModelFilesError)
    assert str(error) == f"{folder} has its weights as GGUF only {told(folder)}"


def test_a_gguf_file(folder, refused):
    only(folder, "a.gguf")
    error = refused({"model": str(folder / "a.gguf"), "kind": "transformers"}, ModelFilesError)
    told = f"{folder}/a.gguf is a GGUF file, and kind is 'transformers': leave it out, or give kind='gguf'."
    assert str(error) == told


def test_the_weights_in_place_of_their_folder(folder, refused):
    error = refused(folder / "model.safetensors", ModelFilesError)
    assert str(error) == f"{folder}/model.safetensors is a file: give the folder that it is in, {folder}."


@pytest.mark.parametrize(
    ("change", "names", "told"),
    [
        (
            only,
            ["model_index.json", "unet/"],
            "belongs to diffusers (model_index.json), not to a language model: give one.",
        ),
        (
            without_weights,
            ["diffusion_pytorch_model.safetensors"],
            "belongs to diffusers (diffusion_pytorch_model.safetensors), not to a language model: give one.",
        ),
        (
            only,
            ["params.json", "consolidated.00.pth", "tokenizer.model"],
            ORIGINAL.format("params.json, consolidated.00.pth"),
        ),
        (without_weights, ["consolidated.safetensors"], ORIGINAL.format("consolidated.safetensors")),
        (without_weights, ["model.onnx", "model.onnx_data"], RUNTIME.format("ONNX", "model.onnx")),
        (without_weights, ["onnx/"], RUNTIME.format("ONNX", "onnx/")),
        (
            without_weights,
            ["openvino_model.xml", "openvino_model.bin"],
            RUNTIME.format("OpenVINO", "openvino_model.xml"),
        ),
        (without_weights, ["model.tflite"], RUNTIME.format("TensorFlow Lite", "model.tflite")),
        (without_weights, ["Model.mlpackage/"], RUNTIME.format("Core ML", "Model.mlpackage/")),
        (without_weights, ["rank0.engine"], RUNTIME.format("TensorRT", "rank0.engine")),
        (without_weights, ["weights.pth", "optimizer.pt"], UNKNOWN.format("weights.pth")),
        (without_weights, ["model.bin", "vocabulary.json"], UNKNOWN.format("model.bin")),
        (
            without_weights,
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            SHARDS,
        ),
        (
            without_weights,
            ["model.fp16.safetensors"],
            RENAMED,
        ),
        (
            without_weights,
            ["optimizer.pt", "training_args.bin", "rng_state.pth", "scheduler.pt"],
            "has no weights (model.safetensors): save the model there with model.save_pretrained(folder).",
        ),
        (only, [], "has no config.json: save the model there with model.save_pretrained(folder)."),
    ],
)
def test_other_formats(folder, refused, change, names, told):
    change(folder, *names)
    assert str(refused(folder, ModelFilesError)) == f"{folder} {told}"


@pytest.mark.parametrize(
    ("name", "framework", "option"),
    [("tf_model.h5", "TensorFlow", ", from_tf=True"), ("flax_model.msgpack", "Flax", ", from_flax=True")],
)
def test_weights_of_older_frameworks(folder, refused, name, framework, option):
    without_weights(folder, name)
    error = refused(folder, ModelFilesError)
    assert str(error) == f"{folder} {OLD.format(framework, name)}{saved(folder, option)}"


@pytest.mark.parametrize("sign", ["config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/"])
def test_sentence_transformers(folder, refused, sign):
    (folder / "modules.json").write_text("[]")
    (folder / sign).mkdir() if sign.endswith("/") else (folder / sign).touch()
    assert str(refused(folder, ModelFilesError)) == (
        f"{folder} is a sentence-transformers model (modules.json), which turns texts into vectors: members must "
        "predict the next token. Give a causal language model."
    )


@pytest.mark.filterwarnings("ignore")
def test_pickled_weights_and_their_conversion(folder, refused, weights_read, monkeypatch):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    expected = answer(folder)
    without_weights(folder)
    weights_read.clear()
    error = str(refused(folder, ModelFilesError))
    told, advice = error.split("convert them once with transformers: ")
    assert told == (
        f"{folder} has its weights as pickle files only (pytorch_model.bin), which can run code when they are loaded. "
        "If you trust their author, "
    )
    assert advice == saved(folder)
    monkeypatch.chdir(folder.parent)
    exec(advice.rstrip(".").replace(" and ", "; "), vars(transformers))  # noqa: S102 (it is what we tell users to run)
    assert answer(folder.parent / "converted") == expected


def test_folders_with_models_inside(tmp_path, folder, refused):
    shutil.copytree(folder, tmp_path / "other")
    assert str(refused(tmp_path, ModelFilesError)) == (
        f"{tmp_path} has no config.json: give {tmp_path}/model or {tmp_path}/other."
    )
    cached = shutil.copytree(folder, tmp_path / "models--a--b" / "snapshots" / "c0ffee")
    error = refused(cached.parents[1], ModelFilesError)
    assert str(error) == f"{cached.parents[1]} has no config.json: give {cached}."


# Adapters


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_adapters(folder, refused, monkeypatch, installed, prompt, beside):
    """Whether peft is installed decides whether `transformers` applies an adapter; here it makes no difference."""
    monkeypatch.setattr("transformers.models.auto.auto_factory.is_peft_available", lambda: installed)
    if not beside:
        only(folder)
    settings = {"num_virtual_tokens": 8} if prompt else {"peft_type": "LORA", "r": 4}
    set_json(folder / "adapter_config.json", base_model_name_or_path="org/base", **settings)
    save_file({"base_model.model.lora": torch.ones(2)}, folder / "adapter_model.safetensors")
    told = {
        (False, False): (
            f"{folder} is an adapter of 'org/base' (adapter_config.json), not a whole model. Give both: "
            f"MemberConfig(model='org/base', adapter='{folder}')."
        ),
        (False, True): (
            f"{folder} is an adapter of 'org/base' (adapter_config.json), not a whole model. It is a learned prompt, "
            "which cannot be merged into weights: give a model without one."
        ),
        (True, False): (
            f"{folder} has an adapter (adapter_config.json) beside its weights, which transformers applies only where "
            "peft is installed. Separate the two: move adapter_config.json and adapter_model.safetensors to a folder "
            "of their own. What remains is the model without the adapter. For the model with it, give "
            f"MemberConfig(model='{folder}', adapter='that folder')."
        ),
        (True, True): (
            f"{folder} has an adapter (adapter_config.json) beside its weights, which transformers applies only where "
            "peft is installed. Separate the two: move adapter_config.json and adapter_model.safetensors to a folder "
            "of their own. What remains is the model without the adapter."
        ),
    }
    assert str(refused(folder, ModelFilesError)) == told[beside, prompt]


def test_what_remains_without_the_adapter_loads(folder, tmp_path, weights_read):
    set_json(folder / "adapter_config.json", base_model_name_or_path="org/base")
    (folder / "adapter_config.json").rename(tmp_path / "adapter_config.json")
    assert answer(folder)


# The hub


@pytest.fixture
def on_hub(monkeypatch, folder):
    """Puts files on a hub, of which the small ones are those of the folder."""
    fetched = []

    def put(*names):
        def fetch(_model, *, allow_patterns, **_):
            fetched.append(allow_patterns)
            return str(folder)

        reply = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: reply)
        monkeypatch.setattr(hub, "snapshot_download", fetch)
        return fetched

    for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(switch, raising=False)
    return put


def test_formats_on_the_hub_are_found_before_weights_are_fetched(folder, on_hub, refused):
    without_weights(folder)
    fetched = on_hub("config.json", "tokenizer.json", "a.gguf", "images/logo.png")
    assert str(refused("someone/a-GGUF", ModelFilesError)) == (
        "someone/a-GGUF has its weights as GGUF only (a.gguf): fetch a file, such as with `hf download someone/a-GGUF "
        "a.gguf --local-dir .`, and give its path."
    )
    on_hub("config.json", "tokenizer.json", "onnx/model.onnx")
    assert str(refused("someone/a", ModelFilesError)) == f"someone/a {RUNTIME.format('ONNX', 'onnx/')}"
    set_json(folder / "adapter_config.json", base_model_name_or_path="org/base")
    on_hub("adapter_config.json", "adapter_model.safetensors", "config.json", "model.safetensors")
    assert str(refused("someone/a", ModelFilesError)).startswith(
        "someone/a has an adapter (adapter_config.json) beside"
    )
    assert not [patterns for patterns in fetched if "*.safetensors" in patterns]


@pytest.mark.parametrize(
    ("offline", "where"),
    [
        (False, "on the hub"),
        (True, "on this machine, and the hub cannot be asked (HF_HUB_OFFLINE is set, and it is not in the cache)"),
    ],
)
def test_a_model_without_weights_on_the_hub(folder, on_hub, weights_read, monkeypatch, offline, where):
    without_weights(folder)
    on_hub("config.json", "tokenizer.json")
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelFilesError) as caught:
        Ensemble.load(["someone/a"], device="cpu", progress=False)
    assert str(caught.value) == f"someone/a has no model.safetensors {where}. Give a model that has."
    assert weights_read == []
