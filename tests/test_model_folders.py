"""Folders, files and hub ids that are no model in transformers format: the error names the kind and the way out."""

import base64
import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from deepen_core import Ensemble, MemberConfig
from deepen_core.errors import ConfigurationError, ModelFilesError, TokenizerError, brief
from deepen_core.members.transformers import hub


def there(package):
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


SPM = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"  # how a SentencePiece model begins
PLAIN_GGUF = ", quantization_config=GgufConfig(dequantize=True)" if hasattr(transformers, "GgufConfig") else ""
GGUF_PACKAGES = " ".join(package for package in ("gguf", "accelerate") if not there(package))
GGUF_FIRST = f", after `pip install {GGUF_PACKAGES}`" if GGUF_PACKAGES else ""


@pytest.fixture
def folder(tmp_path, folders):
    """A copy of a model folder, to be changed."""
    return shutil.copytree(folders["beta"], tmp_path / "model")


@pytest.fixture
def weights_read(monkeypatch):
    """The models whose weights are loaded."""
    loaded, load = [], transformers.AutoModelForCausalLM.from_pretrained

    def spy(place, **options):
        loaded.append(place)
        return load(place, **options)

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", spy)
    return loaded


@pytest.fixture
def refused(folders, weights_read):
    """Loads a member beside one that is in order, and returns the error, before which no weights were read."""

    def refuse(model, error):
        with pytest.raises(error) as caught:
            Ensemble.load([folders["alpha"], model], device="cpu", progress=False)
        assert type(caught.value) is error
        assert weights_read == []
        return caught.value

    return refuse


def set_json(path, **fields):
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **fields}))


def only(folder, *names):
    """Leaves nothing of a folder, and puts empty files in it; a name with a slash at its end is a folder."""
    for path in folder.iterdir():
        path.unlink()
    for name in names:
        (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()


def without_weights(folder, *names):
    """Puts other files in place of the weights."""
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()


def saved(place, options="", tokenizer_options=""):
    return (
        f"AutoModelForCausalLM.from_pretrained('{place}'{options}).save_pretrained('converted') and "
        f"AutoTokenizer.from_pretrained('{place}'{tokenizer_options}).save_pretrained('converted')."
    )


def converted_gguf(place, name):
    file = f", gguf_file='{name}'"
    lines = saved(place, file + PLAIN_GGUF, file)
    return f"which members are not loaded from yet. Convert it once with transformers{GGUF_FIRST}: {lines}"


# Other formats


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
        (only, ["a.Q4_K_M.gguf", "README.md"], lambda f: f"(a.Q4_K_M.gguf), {converted_gguf(f, 'a.Q4_K_M.gguf')}"),
        (
            without_weights,
            ["b.gguf", "a.gguf", "c.gguf", "d.gguf", "mmproj-a.gguf"],
            lambda f: f"(a.gguf, b.gguf, c.gguf, ...), {converted_gguf(f, 'a.gguf')}",
        ),
    ],
)
def test_gguf_in_a_folder(folder, refused, change, names, told):
    change(folder, *names)
    error = refused(folder, ModelFilesError)
    assert str(error) == f"{folder} has its weights as GGUF only {told(folder)}"


def test_a_gguf_file(folder, refused):
    only(folder, "a.gguf")
    error = refused(folder / "a.gguf", ModelFilesError)
    assert str(error) == f"{folder}/a.gguf is a GGUF file, {converted_gguf(folder, 'a.gguf')}"


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


def answer(folder):
    with Ensemble.load([folder], device="cpu", progress=False) as ensemble:
        return ensemble.generate("The quick", max_new_tokens=6).text


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
            f"{folder} is an adapter of 'org/base' (adapter_config.json), not a whole model. Merge the two once with "
            "peft, and give the result: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('org/base'), "
            f"'{folder}').merge_and_unload().save_pretrained('merged') and "
            "AutoTokenizer.from_pretrained('org/base').save_pretrained('merged')."
        ),
        (False, True): (
            f"{folder} is an adapter of 'org/base' (adapter_config.json), not a whole model. It is a learned prompt, "
            "which cannot be merged into weights: give a model without one."
        ),
        (True, False): (
            f"{folder} has an adapter (adapter_config.json) beside its weights, which transformers applies only where "
            "peft is installed. Separate the two: move adapter_config.json and adapter_model.safetensors to a folder "
            "of their own. What remains is the model without the adapter. For the model with it, merge them once: "
            f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('{folder}'), 'that folder')"
            ".merge_and_unload().save_pretrained('merged')."
        ),
        (True, True): (
            f"{folder} has an adapter (adapter_config.json) beside its weights, which transformers applies only where "
            "peft is installed. Separate the two: move adapter_config.json and adapter_model.safetensors to a folder "
            "of their own. What remains is the model without the adapter."
        ),
    }
    assert str(refused(folder, ModelFilesError)) == told[beside, prompt]


def test_an_adapter_with_a_tokenizer_of_its_own(folder, refused):
    without_weights(folder)
    set_json(folder / "adapter_config.json", base_model_name_or_path=None)
    error = str(refused(folder, ModelFilesError))
    assert error.startswith(f"{folder} is an adapter of 'its base model' (adapter_config.json), not a whole model.")
    assert error.endswith(f" and AutoTokenizer.from_pretrained('{folder}').save_pretrained('merged').")


def test_what_remains_without_the_adapter_loads(folder, tmp_path, weights_read):
    set_json(folder / "adapter_config.json", base_model_name_or_path="org/base")
    (folder / "adapter_config.json").rename(tmp_path / "adapter_config.json")
    assert answer(folder)


# Quantised weights


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "accelerate"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "accelerate"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "accelerate"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "hqq", "quant_config": {}}, "hqq"),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "torchao"),
        ({"quant_method": "mxfp4"}, "accelerate"),
        ({"quant_method": "quanto", "weights": "int8"}, "optimum-quanto"),
        ({"quant_method": "auto-round"}, "auto-round"),
        ({"quant_method": "spqr"}, "GPU"),
    ],
)
def test_quantised_weights_name_what_transformers_lacks(folder, refused, settings, missing):
    if torch.cuda.is_available() if missing == "GPU" else there(missing):
        pytest.skip(f"{missing} is there")
    set_json(folder / "config.json", quantization_config=settings)
    error = refused(folder, ConfigurationError)
    assert missing in str(error.__cause__)
    assert str(error) == (
        f"{folder} is quantised with {settings['quant_method']}, and transformers cannot load that here "
        f"({brief(error.__cause__)}). Provide what it asks for (it names one thing at a time), or give the model in "
        "its original weights."
    )


def test_quantised_weights_of_an_unknown_kind(folder, refused):
    set_json(folder / "config.json", quantization_config={"quant_method": "exl2", "bits": 4.0})
    assert str(refused(folder, ModelFilesError)) == (
        f"{folder} is quantised with exl2, which transformers {transformers.__version__} does not know: give the model "
        'in its original weights. If its weights are not quantised, remove "quantization_config" from its config.json.'
    )


@pytest.mark.parametrize("both", [False, True])
def test_weights_for_mlx(folder, refused, both):
    settings = {"group_size": 64, "bits": 4, "mode": "affine"}
    set_json(folder / "config.json", quantization=settings, **({"quantization_config": settings} if both else {}))
    assert str(refused(folder, ModelFilesError)) == (
        f"{folder} is quantised for MLX (4 bits in groups of 64), which transformers cannot read: give the model in "
        f"its original weights, or convert it with `mlx_lm.convert --dequantize --hf-path {folder}`. If its weights "
        'are not quantised, remove "quantization" from its config.json.'
    )


def test_quantisation_that_names_no_method(folder, refused):
    set_json(folder / "config.json", quantization_config={"bits": 4})
    error = refused(folder, ConfigurationError)
    assert str(error).startswith(f"{folder} is quantised with a method that it does not name, and transformers cannot")


# Packages, code and versions


@pytest.mark.skipif(there("flash-attn"), reason="flash-attn is there")
@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_attention_that_is_not_installed(folder, refused, name):
    set_json(folder / "config.json", **{name: "flash_attention_2"})
    error = refused(folder, ConfigurationError)
    assert isinstance(error.__cause__, ImportError)
    assert str(error) == (
        f'{folder} cannot be built here ({brief(error.__cause__)}). Remove "{name}": "flash_attention_2" from its '
        "config.json, or install flash-attn, which needs a GPU."
    )


@pytest.mark.parametrize(
    ("model_type", "code"),
    [
        ("no_such_model", {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}),
        ("vit", {"AutoModelForCausalLM": "own.Model"}),
    ],
)
def test_code_of_its_own(folder, refused, model_type, code):
    set_json(folder / "config.json", model_type=model_type, auto_map=code)
    assert str(refused(folder, ConfigurationError)) == own_code(folder)


def test_a_tokenizer_with_code_of_its_own(folder, refused):
    set_json(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})
    assert str(refused(folder, ConfigurationError)) == own_code(folder)


def own_code(folder):
    return (
        f"{folder} cannot be loaded without the Python code that comes with it, which is not run unless you say so: "
        "read it, and if you trust its author, give MemberConfig(model=..., trust_remote_code=True)."
    )


@pytest.fixture
def code_cache(tmp_path, monkeypatch):
    """A folder for the code of models in place of the one in the user's home."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.mark.usefixtures("code_cache")
def test_code_that_needs_a_package(folder, refused):
    (folder / "own.py").write_text(
        "import no_such_package\nfrom transformers import LlamaForCausalLM\n\nclass Model(LlamaForCausalLM): ...\n"
    )
    set_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "own.Model"})
    error = refused(MemberConfig(model=str(folder), trust_remote_code=True), ConfigurationError)
    assert "pip install no_such_package" in str(error)
    assert str(error) == f"{folder} cannot be built here ({brief(error.__cause__)}). Install what it names."


def test_a_model_type_that_transformers_does_not_know(folder, refused):
    set_json(folder / "config.json", model_type="no_such_model")
    assert str(refused(folder, ModelFilesError)) == (
        f"The configuration of {folder} cannot be used: transformers {transformers.__version__} does not know its "
        "model_type 'no_such_model'. A newer one may: pip install --upgrade transformers."
    )


def test_an_unknown_error_is_quoted(folder):
    set_json(folder / "config.json", hidden_act="nope")
    with pytest.raises(ModelFilesError) as caught:
        Ensemble.load([folder], device="cpu", progress=False)
    assert str(caught.value) == (
        f"The weights of {folder} cannot be loaded ({brief(caught.value.__cause__)}): check what that names in its "
        "config.json, or try the model alone with AutoModelForCausalLM.from_pretrained."
    )


# Tokenizers


@pytest.mark.parametrize(
    ("kind", "name"),
    [("LlamaTokenizer", "tokenizer.model"), ("XLNetTokenizer", "spiece.model"), ("GPTSw3Tokenizer", "spiece.model")],
)
def test_a_sentencepiece_model_without_tokenizer_json(folder, refused, kind, name):
    missing = [package for package in ("sentencepiece", "protobuf") if not there(package)]
    if not missing:
        pytest.skip("sentencepiece and protobuf are there")
    (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(SPM)
    set_json(folder / "tokenizer_config.json", tokenizer_class=kind)
    assert str(refused(folder, TokenizerError)) == (
        f"The tokenizer of {folder} is a SentencePiece model ({name}) without a tokenizer.json, and transformers needs "
        f"sentencepiece and protobuf to read it: pip install {' '.join(missing)}."
    )


@pytest.mark.skipif(not there("tiktoken"), reason="tiktoken is not installed")
@pytest.mark.parametrize("name", ["tokenizer.model", "tiktoken.model"])
def test_a_tiktoken_file_is_no_sentencepiece_model(folder, weights_read, name):
    """It is read by the tokenizer, and the words that are missing in it are an error of their own."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    lines = [base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)]
    (folder / name).write_bytes(b"".join(lines))
    assert answer(folder)


@pytest.mark.skipif(there("mistral-common"), reason="mistral-common is there")
def test_a_tokenizer_that_needs_a_package(folder, refused):
    set_json(folder / "tokenizer_config.json", tokenizer_class="MistralCommonBackend")
    error = refused(folder, TokenizerError)
    assert "pip install mistral-common" in str(error)
    assert str(error) == (
        f"The tokenizer of {folder} cannot be loaded ({brief(error.__cause__)}). Install what it names."
    )


def test_mistral_common_is_never_preferred_to_tokenizer_json(folder, folders, monkeypatch):
    """`transformers` prefers it, where it is installed, for models of Mistral."""

    class MistralCommonBackend:
        pass

    with Ensemble.load([folder], device="cpu", progress=False) as ensemble:
        expected = ensemble.generate("The quick", max_new_tokens=6).text
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: MistralCommonBackend())
    assert answer(folder) == expected


@pytest.mark.parametrize("name", ["vocab.txt", "spiece.model"])
def test_a_tokenizer_without_a_vocabulary(folder, refused, name):
    """`transformers` makes one of its special tokens alone if a class does not find its files."""
    (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(SPM)
    set_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    assert str(refused(folder, TokenizerError)) == (
        f"The tokenizer of {folder} has 3 tokens where its model has 520: transformers found no vocabulary for "
        "LlamaTokenizer in its files. Fetch its tokenizer.json as well."
    )


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
        f"someone/a-GGUF has its weights as GGUF only (a.gguf), {converted_gguf('someone/a-GGUF', 'a.gguf')}"
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
