"""GGUF files that are damaged, hostile or of another kind are refused in our own words before anything is loaded."""

import os
import re
import struct
import subprocess
import sys
from importlib.util import find_spec

import gguf
import pytest
from panic_parts import panics
from tiny_gguf import save_gguf

from deepen_core import Ensemble, MemberConfig
from deepen_core.errors import CompatibilityWarning, ConfigurationError, ModelFilesError, TokenizerError
from deepen_core.members.llama_cpp import layout, library
from deepen_core.members.llama_cpp.header import read_header

pytest.importorskip("xllamacpp")


@pytest.fixture
def refused(monkeypatch):
    """The error of a file, before which neither llama.cpp nor transformers was asked for anything."""

    def refuse(path, error=ModelFilesError, **options):
        for name in ("LlamaModel", "read_tokenizer"):
            monkeypatch.setattr(f"deepen_core.members.llama_cpp.loader.{name}", None)
        with pytest.raises(error) as caught:
            Ensemble.load([{"model": str(path), **options}], progress=False)
        assert type(caught.value) is error
        return str(caught.value)

    return refuse


@pytest.fixture
def changed(gguf_files, tmp_path):
    """A copy of a file with other bytes."""

    def change(edit):
        raw = bytearray(gguf_files["beta"].read_bytes())
        path = tmp_path / "x.gguf"
        edited = edit(raw)
        path.write_bytes(raw if edited is None else edited)
        return path

    return change


def put(raw, at, value):
    raw[at : at + len(value)] = value


def after(raw, name):
    """Place of the value of a field, behind its type."""
    return raw.index(name) + len(name) + 4


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda raw: put(raw, 0, b"GGML"), "is not a GGUF file"),
        (lambda raw: b"", "cannot be read"),
        (lambda raw: b"GG", "is not a GGUF file"),
        (lambda raw: put(raw, 4, struct.pack("<I", 99)), "has version 99 of the format"),
        (lambda raw: put(raw, 8, b"\xff" * 8), "tensors, and at most 131,072 are read"),
        (lambda raw: put(raw, 16, b"\xff" * 7), "fields, and at most 16,384 are read"),
        (lambda raw: raw[:2000], "is cut off: its header goes on after byte 2,000"),
        (lambda raw: raw[:-100], r"ends after [\d,]+ bytes, but its tensor 'blk\.1\.ffn_down\.weight' reaches to"),
        (lambda raw: put(raw, 24, b"\xff" * 8), "bytes of a text, and at most 65,536 are read"),
        (lambda raw: put(raw, after(raw, b"tokenizer.ggml.tokens") + 4, b"\xff" * 8), "and at most 4,194,304 are read"),
        (lambda raw: put(raw, after(raw, b"tokenizer.ggml.tokens"), b"\x09"), "of type 9, which is not known"),
        (lambda raw: put(raw, after(raw, b"tokenizer.ggml.tokens") + 12, b"\xff" * 8), "is cut off"),
        (lambda raw: put(raw, after(raw, b"llama.block_count"), b"\xff\xff"), "has 65535 layers, and at most 1,024"),
        (lambda raw: put(raw, after(raw, b"llama.context_length"), b"\0" * 4), "which must be a positive number"),
        (lambda raw: put(raw, after(raw, b"layer_norm_rms_epsilon"), b"\0\0\x80\xbf"), "epsilon -1.0, with which"),
        (lambda raw: put(raw, after(raw, b"llama.embedding_length"), b"\x40"), r"of shape \(520, 64\)"),
        (lambda raw: put(raw, after(raw, b"token_embd.weight"), b"\xff" * 8), "of shape"),
        (lambda raw: put(raw, raw.index(b"token_embd.weight") + 17, b"\xff" * 4), "dimensions of 'token_embd.weight'"),
        (lambda raw: put(raw, after(raw, b"token_embd.weight") + 16, b"\xfe"), "of type 254, which is not known"),
        (lambda raw: put(raw, after(raw, b"token_embd.weight") + 20, b"\x20"), "'token_embd.weight' at 32, where 0 is"),
        (lambda raw: put(raw, raw.index(b"<0x41>"), b"<0x42>"), "has the token b'<0x42>' twice"),
        (lambda raw: put(raw, raw.index(b"<0x01>"), b"<0xZZ>"), "has no token for the byte 0x01"),
        (lambda raw: put(raw, raw.index(b"llama.block_count"), b"llama.block_cou\xff"), "not UTF-8"),
    ],
)
def test_damaged_and_hostile_headers(changed, refused, edit, told):
    path = changed(edit)
    message = refused(path)
    assert re.search(told, message), message
    assert message.startswith(str(path))
    assert "fetch" in message


def test_what_is_no_language_model(gguf_files, folders, tmp_path, refused):
    path = save_gguf(folders["beta"], tmp_path / "a.gguf", change=lambda writer: writer.add_type("adapter"))
    assert "is a GGUF file of the kind 'adapter' (llama), not of a language model" in refused(path)


def test_a_part_of_a_model(folders, tmp_path, refused):
    path = save_gguf(folders["beta"], tmp_path / "a.gguf", change=lambda writer: writer.add_uint16("split.count", 3))
    assert "is one of 3 parts: put them together with llama-gguf-split --merge" in refused(path)


def test_what_is_no_file(tmp_path, refused):
    assert "does not exist: give the path of a GGUF file" in refused(tmp_path / "x.gguf")
    (tmp_path / "y.gguf").mkdir()
    assert "is a folder" in refused(tmp_path / "y.gguf")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_not_waited_for(tmp_path, refused):
    os.mkfifo(tmp_path / "x.gguf")
    assert "is not a regular file, but a pipe" in refused(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dtype": "bfloat16", "revision": "main"}, "dtype and revision cannot be set for"),
        ({"trust_remote_code": True}, "trust_remote_code cannot be set for"),
        ({"device": "cuda"}, "cannot run on 'cuda': GGUF members run on the CPU"),
        ({"model_kwargs": {"device_map": "auto"}}, "has device_map: a GGUF member takes n_ctx only"),
        ({"model_kwargs": {"n_ctx": True}}, "n_ctx of .* is True: give the number of ids"),
    ],
)
def test_options_that_do_not_apply(gguf_files, refused, options, told):
    assert re.search(told, refused(gguf_files["beta"], ConfigurationError, **options))


def test_what_llama_cpp_does_not_load_is_told_in_its_words(folders, tmp_path, capfd):
    def without_a_norm(writer):
        del writer.tensors[-1]["output_norm.weight"]

    path = save_gguf(folders["beta"], tmp_path / "x.gguf", change=without_a_norm)
    capfd.readouterr()  # of transformers, which has read the folder
    with pytest.raises(ModelFilesError, match=r"llama\.cpp cannot load .*output_norm\.weight.*: fetch the file again"):
        Ensemble.load([path], progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_that_llama_cpp_reads_otherwise(gguf_files, folders, tmp_path):
    with pytest.raises(TokenizerError, match=r"it turns .* into \[.*\], and llama.cpp into \[.*\].*tokenizer=\.\.\."):
        Ensemble.load([MemberConfig(model=str(gguf_files["beta"]), tokenizer=str(folders["alpha"]))], progress=False)
    with pytest.raises(TokenizerError, match=r"has the id 519, and .* has 420 tokens"):
        Ensemble.load([MemberConfig(model=str(gguf_files["delta"]), tokenizer=str(folders["beta"]))], progress=False)


def test_another_layout_of_parameters_is_refused(monkeypatch):
    place = library.find_library()
    monkeypatch.setattr(library, "MODEL", [*layout.MODEL[:3], *layout.MODEL[4:]])
    with pytest.raises(ConfigurationError, match=r"xllamacpp \d+.*have a layout that is not known here.*pip install"):
        library.Library(place)


def test_a_library_without_a_function_is_refused(monkeypatch):
    monkeypatch.setitem(library._SIGNATURES, "llama_missing", (None,))
    with pytest.raises(ConfigurationError, match=r"cannot be used \(.*llama_missing"):
        library.Library(library.find_library())


@pytest.mark.skipif(find_spec("accelerate") is None, reason="transformers needs it for GGUF")
def test_without_llama_cpp_transformers_dequantises(gguf_files, folders, monkeypatch):
    monkeypatch.setattr("deepen_core.members.llama_cpp.loader.find_library", lambda: None)
    with pytest.warns(CompatibilityWarning, match=r"run by transformers, since xllamacpp .*float32 instead of .*MiB"):
        ensemble = Ensemble.load([gguf_files["beta"]], progress=False, device="cpu")
    with ensemble:
        found = ensemble.generate("The quick brown", max_new_tokens=12, ignore_eos=True)
        assert ensemble.info.members[0].architecture == "LlamaForCausalLM"
    with Ensemble.load([folders["beta"]], progress=False, device="cpu") as ensemble:
        assert ensemble.generate("The quick brown", max_new_tokens=12, ignore_eos=True).token_ids == found.token_ids


def test_without_any_package_the_error_names_the_extra(gguf_files, refused, monkeypatch):
    find = find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "gguf" else find(name, *a))
    assert "pip install 'deepen-integrations[gguf]'" in refused(gguf_files["beta"], ConfigurationError)


def test_headers_say_what_the_reader_of_gguf_says(gguf_files):
    for path in (gguf_files["beta"], gguf_files["delta-q8"]):
        ours, theirs = read_header(path), gguf.GGUFReader(path)
        assert {t.name: (t.start, t.size) for t in ours.tensors.values()} == {
            t.name: (t.data_offset, t.n_bytes) for t in theirs.tensors
        }
        fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
        assert set(ours.values) | set(ours.lengths) == set(fields)
        for name, value in ours.values.items():
            assert fields[name].contents() == value


def test_nothing_is_printed_and_what_llama_cpp_reports_is_logged(gguf_files, capfd, caplog):
    with caplog.at_level("DEBUG", "deepen_core"), Ensemble.load([gguf_files["delta-q8"]], progress=False) as one:
        one.generate("The", max_new_tokens=2)
    assert capfd.readouterr() == ("", "")
    assert any("llama.cpp: " in record.getMessage() for record in caplog.records)


def test_it_ends_well_with_the_interpreter(gguf_files):
    """Contexts are freed before their model, and what is reported then has a reader."""
    code = (
        "import sys; from deepen_core import Ensemble;"
        f"e = Ensemble.load([{str(gguf_files['beta'])!r}], progress=False); e.generate('The', max_new_tokens=2)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_as_many_layouts_as_are_known_are_told_apart():
    """The defaults of one version do not pass for those of another."""
    loaded = library.load_library(library.find_library())
    fits = [bool(layout.defaults(loaded._loaded.llama_context_default_params, (one,))) for one in layout.CONTEXT]
    assert sum(fits) == 1


def test_a_tokenizer_that_panics_is_refused(gguf_files, monkeypatch):
    monkeypatch.setattr("deepen_core.members.llama_cpp.tokenizer.PreTrainedTokenizerFast", panics)
    with pytest.raises(TokenizerError, match=r"cannot be used \(PanicException: a bug in Rust\)"):
        Ensemble.load([str(gguf_files["beta"])], progress=False)
