"""Wrong options and files: a clear `DeepenError` with the way out, before anything heavy is loaded."""

import json
import os
import shutil
import threading

import pytest
import tiny
import torch

from deepen_core import DeepenError, Ensemble, FusionConfig, MemberConfig, SamplingParams
from deepen_core.errors import ConfigurationError, ModelFilesError, NoCommonTokensError, SamplingError, TokenizerError


@pytest.fixture
def nothing_heavy(monkeypatch):
    """Fails the test if weights are loaded."""

    def loaded(*_, **__):
        pytest.fail("weights were loaded before the mistake was found")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", loaded)


@pytest.fixture
def broken(tmp_path, folders):
    """A copy of a model folder, to be damaged."""
    shutil.copytree(folders["beta"], tmp_path / "broken")
    return tmp_path / "broken"


def set_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(error, message, models, **options):
    with pytest.raises(error, match=message) as caught:
        Ensemble.load(models, progress=False, **options)
    assert isinstance(caught.value, DeepenError)
    assert not isinstance(caught.value, (RuntimeError, ValueError))  # LlamaIndex takes these for something else


@pytest.mark.usefixtures("nothing_heavy")
class TestOptions:
    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ([1.0, -0.5], r"beta: -0.5"),
            ([float("nan"), 1], r"alpha: nan"),
            ([float("inf"), 1], r"alpha: inf"),
            ([0, 0], r"at least one must be positive"),
            ([1], r"1 weights for 2 members"),
            ([1, 1, 1], r"3 weights for 2 members"),
            (["a", 1], r"one number per member"),
            (0.5, r"one number per member"),
            ("12", r"weights is '12': give one number per member"),
            (b"12", r"one number per member"),
            ({0: 1, 1: 1}, r"one number per member"),
            ({0.5, 1.0}, r"one number per member"),
            ([10**400, 1], r"one number per member"),
            (torch.ones(2, 2), r"one number per member"),
        ],
    )
    def test_weights(self, folders, weights, message):
        refused(ConfigurationError, message, [folders["alpha"], folders["beta"]], weights=weights)

    def test_weights_of_member_configs(self, folders):
        members = [MemberConfig(model=str(folders[n]), weight=0) for n in ("alpha", "beta")]
        refused(ConfigurationError, "at least one must be positive", members)
        refused(ConfigurationError, "Member 0: Option 'weight' is -1", [{"model": "x", "weight": -1}])

    @pytest.mark.parametrize("main", [2, -3, "delta", 1.5, True, None])
    def test_main(self, folders, main):
        refused(ConfigurationError, "main is", [folders["alpha"], folders["beta"]], main=main)

    def test_members(self):
        refused(ConfigurationError, "list of members is empty", [])
        refused(ConfigurationError, "give a list", "some/model")
        refused(ConfigurationError, "Member 0: 5 is not a member", [5])
        refused(ConfigurationError, r"Unknown option 'modl': did you mean 'model'\?", [{"modl": "x"}])
        refused(ConfigurationError, "Keys should be strings", [{5: "x"}])
        refused(ConfigurationError, "Member 0: Option 'model' is ''", [""])
        refused(ConfigurationError, "Member 0: Option 'name' is ''", [{"model": "x", "name": ""}])
        refused(ConfigurationError, "cannot be looked up as a path", ["a\0b"])
        refused(ConfigurationError, "cannot be looked up as a path", ["~no_such_user_here/model"])

    @pytest.mark.parametrize(
        ("fusion", "message"),
        [
            ("deep", r"Unknown fusion 'deep': choose 'deepen' or 'deepen-paper'"),
            (5, "fusion is a int"),
            ({"step": 5}, r"Unknown option 'step': did you mean 'steps'\?"),
            ({"steps": 0}, "Option 'steps' is 0"),
            ({"temperature": -1.0}, 'must be a positive number or "auto"'),
        ],
    )
    def test_fusion(self, folders, fusion, message):
        refused(ConfigurationError, message, [folders["alpha"]], fusion=fusion)

    def test_device_and_dtype(self, folders):
        refused(ConfigurationError, "Unknown device 'gpu'", [folders["alpha"]], device="gpu")
        refused(ConfigurationError, "'cuda:77' is not there", [folders["alpha"]], device="cuda:77")
        refused(ConfigurationError, r"Unknown device \[\]", [folders["alpha"]], device=[])
        refused(ConfigurationError, "cannot run on device 'meta'", [folders["alpha"]], device="meta")
        refused(ConfigurationError, "Unknown dtype 'int8'", [folders["alpha"]], dtype="int8")
        refused(ConfigurationError, "Unknown dtype 'float8_e4m3fn'", [folders["alpha"]], dtype="float8_e4m3fn")
        refused(ConfigurationError, "Unknown dtype 5", [folders["alpha"]], dtype=5)
        refused(ConfigurationError, "give a name, such as 'float32'", [folders["alpha"]], dtype=torch.float32)

    def test_a_device_of_another_machine(self, folders, monkeypatch):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        refused(ConfigurationError, "'mps' is not there: 0 MPS devices", [folders["alpha"]], device="mps")

    def test_no_common_tokens(self, tmp_path, folders):
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        odd = Tokenizer(models.WordLevel({"zzzzzzzz": 0, "</s>": 1}, unk_token="</s>"))
        wrapped = PreTrainedTokenizerFast(tokenizer_object=odd, eos_token="</s>")
        tiny.save_llama(tmp_path / "odd", wrapped, chat=False)
        refused(NoCommonTokensError, r"share no token \(alpha has", [folders["alpha"], tmp_path / "odd"])


@pytest.mark.usefixtures("nothing_heavy")
class TestFiles:
    @pytest.mark.parametrize(
        ("name", "message"),
        [("config.json", "no config.json"), ("tokenizer.json", "no tokenizer"), ("model.safetensors", "no weights")],
    )
    def test_missing(self, broken, folders, name, message):
        (broken / name).unlink()
        refused(ModelFilesError, message, [folders["alpha"], broken])

    def test_no_folder(self, tmp_path):
        refused(ModelFilesError, f"There is no folder {tmp_path / 'nothing'}", [tmp_path / "nothing"])
        (tmp_path / "file").write_text("x")
        refused(ModelFilesError, "is not a folder", [tmp_path / "file"])

    def test_unknown_hub_id_without_a_network(self, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        message = r"There is no folder /.*/someone/no-such-model, and as a hub id .* \(HF_HUB_OFFLINE is set"
        refused(ModelFilesError, message, ["someone/no-such-model"])

    def test_pickled_weights_are_refused(self, broken):
        (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
        refused(ModelFilesError, r"pickle files only \(pytorch_model.bin\)", [broken])

    def test_interrupted_download(self, broken, folders):
        weights = broken / "model.safetensors"
        os.truncate(weights, weights.stat().st_size - 100)
        refused(ModelFilesError, "the download is incomplete", [folders["alpha"], broken])

    def test_damaged_header(self, broken):
        weights = broken / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[20] = 0xFF
        weights.write_bytes(data)
        refused(ModelFilesError, "damaged safetensors header", [broken])

    @pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64])
    def test_no_safetensors_at_all(self, broken, content):
        (broken / "model.safetensors").write_bytes(content)
        refused(ModelFilesError, "too few|truncated", [broken])

    def test_missing_shard(self, broken):
        (broken / "model.safetensors").rename(broken / "model-00001-of-00002.safetensors")
        names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        refused(ModelFilesError, r"lacks 1 of the 2 weight files .*model-00002-of-00002", [broken])

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
    def test_broken_json(self, broken, name):
        (broken / name).write_text((broken / name).read_text()[:-20])
        refused(ModelFilesError, "cannot be read as JSON", [broken])

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
    @pytest.mark.parametrize(("content", "message"), [("{bad", "cannot be read as JSON"), ("[1]", "holds a JSON list")])
    def test_json_of_another_kind(self, broken, name, content, message):
        (broken / name).write_text(content)
        refused(ModelFilesError, f"{name} {message}", [broken])

    @pytest.mark.parametrize("value", ["</s>", [["x"]], [2, "x"], True])
    def test_stop_ids_that_are_no_ids(self, broken, value):
        (broken / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        refused(ModelFilesError, "generation_config.json has the eos_token_id", [broken])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([1], "holds a JSON list"),
            ({"weight_map": [1]}, '"weight_map" must give a file name'),
            ({"weight_map": {"a": 5}}, '"weight_map" must give a file name'),
            ({"weight_map": {"a": ["x"]}}, '"weight_map" must give a file name'),
            ({}, "lacks 0 of the 0 weight files"),
        ],
    )
    def test_damaged_index(self, broken, content, message):
        (broken / "model.safetensors").unlink()
        (broken / "model.safetensors.index.json").write_text(json.dumps(content))
        refused(ModelFilesError, message, [broken])

    @pytest.mark.parametrize(
        ("entry", "value"),
        [
            ("dtype", "F99"),
            ("dtype", "F16"),
            ("shape", [1, 1]),
            ("data_offsets", [0, "x"]),
            ("data_offsets", [0]),
            ("data_offsets", [4, 8]),
        ],
    )
    def test_damaged_tensor_entry(self, broken, entry, value):
        weights = broken / "model.safetensors"
        data = weights.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header[min(set(header) - {"__metadata__"})][entry] = value
        changed = json.dumps(header).encode()
        weights.write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + length :])
        refused(ModelFilesError, "damaged safetensors header", [broken])

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("hidden_size", "abc"),
            ("vocab_size", None),
            ("num_attention_heads", 0),
            ("num_attention_heads", 3),
            ("max_position_embeddings", "x"),
            ("rope_parameters", 5),
            ("dtype", "nope"),
        ],
    )
    def test_wrong_value_in_the_configuration(self, broken, field, value):
        set_config(broken, **{field: value})
        refused(ModelFilesError, "configuration of .* cannot be used", [broken])

    def test_tokenizer_that_does_not_parse(self, broken):
        (broken / "tokenizer.json").write_text("{}")
        refused(TokenizerError, "tokenizer of .* cannot be loaded", [broken])

    def test_unknown_architecture(self, broken):
        (broken / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
        refused(ModelFilesError, "configuration of .* cannot be used", [broken])

    def test_encoder_of_speech(self, broken):
        from transformers import WhisperConfig

        WhisperConfig(vocab_size=520, d_model=16, encoder_layers=1, decoder_layers=1).save_pretrained(broken)
        refused(ConfigurationError, r"encoder-decoder model \(whisper\) that AutoModelForSeq2SeqLM does not", [broken])


@pytest.mark.parametrize(("field", "value"), [("hidden_act", "nope"), ("head_dim", -1), ("dtype", "int8")])
def test_wrong_value_that_only_the_model_notices(broken, field, value):
    set_config(broken, **{field: value})
    refused(ModelFilesError, "weights of .* cannot be loaded", [broken])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, r"Unknown option 'temprature': did you mean 'temperature'\?"),
        ({"xyz": 1.0}, r"Unknown option 'xyz': known are .*max_new_tokens"),
        ({"stop": ""}, "an empty stop string"),
        ({"stop": ["a", ""]}, "an empty stop string"),
        ({"temperature": -1}, "Option 'temperature' is -1"),
        ({"temperature": float("nan")}, "Option 'temperature' is nan"),
        ({"max_new_tokens": 0}, "Option 'max_new_tokens' is 0"),
        ({"max_new_tokens": 5, "max_tokens": 5}, "not both"),
        ({"top_p": 1.5}, "Option 'top_p' is 1.5"),
        ({"timeout": 0}, "Option 'timeout' is 0"),
        ({"stop": 5}, "Option 'stop' is 5: give a string or a list of strings"),
        ({"stop": [1]}, "1 is not a string"),
        ({"stop": b"ab"}, "97 is not a string"),
        ({"stop": {"a": 1}}, "give a string or a list of strings"),
        ({"stop": ["\ud800x"]}, "lone surrogate"),
        ({"temperature": 1e-6}, r"use 0 for the most probable token, or at least 0\.0001"),
        ({"temperature": 1e30}, r"Option 'temperature' is 1e\+30: .* less than or equal to 100"),
        ({"repetition_penalty": 0.001}, "Option 'repetition_penalty' is 0.001: .* greater than or equal to 0.01"),
        ({"repetition_penalty": 1e30}, r"Option 'repetition_penalty' is 1e\+30: .* less than or equal to 100"),
    ],
)
def test_sampling_options(pair, options, message):
    for call in (pair.generate, pair.stream):
        with pytest.raises(SamplingError, match=message):
            call("The dog", **options)


@pytest.mark.parametrize("temperature", [1e-4, 100.0])
@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_the_outermost_values_sample(pair, temperature, penalty):
    answer = pair.generate("The dog", temperature=temperature, repetition_penalty=penalty, seed=1, max_new_tokens=3)
    assert answer.token_ids


def test_stop_strings_may_come_from_an_iterator():
    assert SamplingParams(stop=(s for s in ("a", "b"))).stop == ("a", "b")


def test_params_of_a_wrong_type(pair):
    with pytest.raises(SamplingError, match="params is a int"):
        pair.generate("The dog", 5)


def test_max_tokens_is_max_new_tokens(pair):
    assert len(pair.generate("The dog", max_tokens=3, ignore_eos=True).token_ids) == 3
    params = SamplingParams(max_new_tokens=9, ignore_eos=True)
    assert len(pair.generate("The dog", params, max_tokens=3).token_ids) == 3
    assert len(pair.generate("The dog", params).token_ids) == 9


def test_members_of_one_name(folders):
    with Ensemble.load([folders["alpha"], folders["alpha"]], progress=False, device="cpu") as ensemble:
        assert [m.name for m in ensemble.info.members] == ["alpha", "alpha-2"]
        with Ensemble.load([folders["alpha"]], progress=False, device="cpu") as one:
            expected = one.score("The dog", " sleeps; the fox")
        # Two equal members agree with themselves, as long as main spells as its tokenizer does.
        assert ensemble.score("The dog", " sleeps; the fox").logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def test_main_by_name(folders):
    with Ensemble.load([folders["alpha"], folders["beta"]], main="beta", progress=False, device="cpu") as ensemble:
        assert ensemble.main_name == "beta"


def test_nothing_in_the_process_is_changed(folders):
    from transformers.utils import logging

    def state():
        return (
            torch.random.get_rng_state().tolist(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            dict(os.environ),
            logging.is_progress_bar_enabled(),
            logging.get_verbosity(),
        )

    before, threads = state(), set(threading.enumerate())  # those of other tests may end meanwhile
    with Ensemble.load([folders["alpha"], folders["beta"]], progress=False, device="cpu") as ensemble:
        ensemble.generate("The dog", max_new_tokens=5, temperature=1.0, seed=3)
        ensemble.score("The dog", " sleeps")
    assert before == state()
    assert set(threading.enumerate()) <= threads


def test_a_tokenizer_in_use_elsewhere_is_left_alone(folders):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders["alpha"])
    before = tokenizer.backend_tokenizer.to_str()
    from deepen_core.members.tokenizer import MemberTokenizer

    MemberTokenizer(tokenizer, "m")
    assert tokenizer.backend_tokenizer.to_str() == before
    assert not tokenizer.backend_tokenizer.encode_special_tokens


def test_warnings_say_the_number_that_led_to_them(load, folders):
    with pytest.warns(UserWarning, match=r"an anchor keeps 0\.0\d\d of its mass"):
        ensemble = load("alpha", "beta", fusion=FusionConfig(temperature=0.01))
    assert len(ensemble.info.warnings) == 2
    ensemble.close()
