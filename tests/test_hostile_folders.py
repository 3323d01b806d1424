"""A model folder that was made to do harm is refused by name, before it costs memory or time."""

import json
import os
import re
import resource
import shutil
import struct
import sys
from dataclasses import replace

import pytest
from folder_parts import answer, set_json
from panic_parts import panics
from transformers import AutoTokenizer

from deepen_core import Ensemble
from deepen_core.errors import ModelFilesError, TokenizerError
from deepen_core.members.transformers.blueprint import Blueprint
from deepen_core.members.transformers.limits import MAX_BYTES, MAX_EXPERTS, MAX_HEADER_BYTES, MAX_LAYERS
from deepen_core.tokenization.vocabulary import MAX_IDS
from deepen_integrations.langchain import DeepenLLM

DEEP = "[" * 100_000 + "]" * 100_000


def config(**fields):
    return lambda folder: set_json(folder / "config.json", **fields)


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def header(length):
    def write(folder):
        with (folder / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", length))
            file.truncate(length + 8)

    return write


def sparse(name, size):
    def write(folder):
        with (folder / name).open("ab") as file:
            file.truncate(size)

    return write


def index(*names):
    def write(folder):
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        listed = {f"t{number}": name for number, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))

    return write


def two_sets(folder):
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    index("other.safetensors")(folder)
    (folder / "a.safetensors").rename(folder / "model.safetensors")


def token_id(number):
    def write(folder):
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        content["model"]["vocab"]["zqzqzq"] = number
        path.write_text(json.dumps(content))

    return write


def template_without_tokens(folder):
    """On which the Rust code of `tokenizers` panics: no `Exception` in Python."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    pieces = [{"SpecialToken": {"id": "nobody", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    content["post_processor"] = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": {}}
    path.write_text(json.dumps(content))


FIT = "do not fit its config.json: .* have another shape"
HOSTILE = {
    "a large vocabulary": (config(vocab_size=4_000_000), FIT + r".*where \[4000000, "),
    "wide states": (config(hidden_size=2**40), FIT),
    "wide layers": (config(intermediate_size=10**12), FIT),
    "wide heads": (config(head_dim=2**20), FIT),
    "too many layers": (config(num_hidden_layers=10**9), f"num_hidden_layers 1000000000, and at most {MAX_LAYERS:,}"),
    "too many inside": (
        config(text_config={"n_layer": 10**9}),
        f"n_layer 1000000000, and at most {MAX_LAYERS:,} layers",
    ),
    "experts": (config(num_local_experts=10**9), f"num_local_experts 1000000000, and at most {MAX_EXPERTS:,} experts"),
    "a deep configuration": (text("config.json", DEEP), "cannot be read as JSON"),
    "deep settings": (text("generation_config.json", DEEP), "cannot be read as JSON"),
    "a deep index": (text("model.safetensors.index.json", DEEP), "cannot be read as JSON"),
    "other weights": (config(transformers_weights="b.safetensors"), r"names the weights 'b.safetensors'"),
    "a long header": (header(2**40), rf"a header of 1,099,511,627,776 bytes, and at most {MAX_HEADER_BYTES:,}"),
    "a large small file": (sparse("generation_config.json", 2**33), f"8,589,934,592 bytes, and at most {MAX_BYTES:,}"),
    "a large tokenizer": (sparse("tokenizer.json", 2**33), "tokenizer.json has 8,589,934,592 bytes, and at most"),
    "a shard outside": (index("../a.safetensors"), r"names the weight file '../a.safetensors', which is outside"),
    "an absolute shard": (index("/etc/passwd"), "names the weight file '/etc/passwd', which is outside"),
    "a shard with a NUL": (index("a\0"), "which is outside"),
    "a long name": (index("a" * 5000), "lacks 1 of the 1 weight files"),
    "the folder as a shard": (index("."), "lacks 1 of the 1 weight files"),
    "two sets of weights": (two_sets, r"two sets of weights: model.safetensors, .* and 1 files that"),
}
TOKENIZERS = {
    "a large id": (token_id(2**31), f"has the id 2,147,483,648 .*, and at most {MAX_IDS:,} ids"),
    "an id beyond 32 bits": (token_id(2**40), "cannot be loaded"),
    "a length that is a text": (text("tokenizer_config.json", '{"model_max_length": "x"}'), "cannot be used"),
    "a token that is a number": (text("tokenizer_config.json", '{"bos_token": 5}'), "cannot be loaded"),
    "a list": (text("tokenizer_config.json", "[]"), "cannot be loaded"),
    "a template with an unknown token": (template_without_tokens, "cannot be used .PanicException: no entry found"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_folder_is_refused_before_its_weights_are_read(kind, folder, refused):
    change, said = HOSTILE[kind]
    change(folder)
    assert re.search(said, str(refused(folder, ModelFilesError)))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_is_refused_before_the_weights_are_read(kind, folder, refused):
    change, said = TOKENIZERS[kind]
    change(folder)
    assert re.search(said, str(refused(folder, TokenizerError)))


def test_a_tokenizer_that_panics_while_it_is_read_is_refused(folder, refused, monkeypatch):
    reading = "deepen_core.members.transformers.pretrained.AutoTokenizer.from_pretrained"
    usual = AutoTokenizer.from_pretrained
    monkeypatch.setattr(reading, lambda place, **options: (panics if place == folder else usual)(place, **options))
    assert re.search(r"cannot be loaded \(PanicException: a bug", str(refused(folder, TokenizerError)))


READ = (
    "config.json generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json "
    "adapter_config.json chat_template.jinja model.safetensors model.safetensors.index.json"
).split()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.parametrize("name", READ)
def test_pipes_and_devices_are_not_read(name, folder, refused):
    path = folder / name
    for put in (os.mkfifo, lambda place: place.symlink_to("/dev/zero")):
        path.unlink(missing_ok=True)
        put(path)
        assert f"{path} is not a regular file" in str(refused(folder, ModelFilesError))
        DeepenLLM(models=[str(folder)])  # looks into the folder before it is loaded


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit of a process's memory")
def test_what_is_refused_takes_no_memory(folder, refused):
    config(vocab_size=2**31 - 1, hidden_size=2**20)(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 * 2**30, hard))  # addresses, of which torch reserves many
    try:
        assert "have another shape" in str(refused(folder, ModelFilesError))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_model_far_larger_than_its_files_is_refused(tmp_path):
    plan = Blueprint({"a": (10, 10)}, numbers=10**9, quantised=False)
    with pytest.raises(ModelFilesError, match=r"describes a model of 1,000,000,000 numbers, .* have 100:"):
        plan.check(tmp_path, {"a": (10, 10)})
    replace(plan, numbers=400).check(tmp_path, {"a": (10, 10), "b": (1,)})
    replace(plan, quantised=True, numbers=10**9).check(tmp_path, {"a": (10**8,)})  # packed


def test_numbers_beyond_64_bits_are_an_error_of_the_folder(folder):
    config(hidden_size=2**70)(folder)
    with pytest.raises(ModelFilesError, match="cannot be"):
        answer(folder)


HARMLESS = {
    "ids that end texts beyond all tokens": lambda folder: set_json(
        folder / "generation_config.json", eos_token_id=[2, 2**40, -7, 2**70]
    ),
    "an index of the one file": lambda folder: (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors"}})
    ),
    "an endless context window": config(rope_scaling={"rope_type": "linear", "factor": 1e999}),
    "a link to weights elsewhere": lambda folder: linked(folder / "model.safetensors"),
}


def linked(path):
    """As in the hub's cache."""
    blob = path.rename(path.parent.parent / "blob")
    path.symlink_to(blob)


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_is_only_odd_is_loaded(kind, folder, folders):
    HARMLESS[kind](folder)
    assert answer(folder) == answer(folders["beta"])


def test_a_form_that_is_a_pipe_is_not_read(tmp_path, folders):
    os.mkfifo(tmp_path / "template")
    with pytest.raises(ModelFilesError, match="is not a regular file"):
        Ensemble.load([{"model": str(folders["beta"]), "chat_template": str(tmp_path / "template")}], progress=False)
