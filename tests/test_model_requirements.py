"""Models that lack something on this machine, or whose tokenizer does: the error names it."""

import base64
import sys

import pytest
import torch
import transformers
from folder_parts import SPM, answer, set_json, there

from deepen_core import Ensemble, MemberConfig
from deepen_core.errors import ConfigurationError, ModelFilesError, TokenizerError, brief

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
