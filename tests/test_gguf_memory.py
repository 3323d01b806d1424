"""What GGUF members do not take: the code of models of transformers, a second vocabulary, pages that nothing reads."""

import ctypes
import mmap
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deepen_core import MemberConfig
from deepen_core.members.llama_cpp.header import read_header
from deepen_core.members.llama_cpp.library import find_library, load_library
from deepen_core.members.llama_cpp.weights import give_back, load_weights
from deepen_core.members.loading import describe_member
from deepen_core.members.memory import return_freed

pytest.importorskip("xllamacpp")

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def test_the_code_of_models_is_not_loaded(gguf_files):
    code = (
        "import sys; from deepen_core import Ensemble;"
        f"e = Ensemble.load([{str(gguf_files['beta'])!r}], progress=False); e.generate('The', max_new_tokens=2);"
        "print(sorted({'transformers.modeling_utils', 'torch._dynamo', 'sympy', 'scipy'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert ended.stdout == "[]\n", ended.stderr


def test_weights_are_loaded_without_the_vocabulary(gguf_files):
    """The tokenizer was compared before; the number of logits stays."""
    header = read_header(gguf_files["beta"])
    model = load_weights(load_library(find_library()), header)
    assert model.vocabulary_size == header.lengths["tokenizer.ggml.tokens"]
    assert model.stop_ids() == []
    described = describe_member(MemberConfig(model=str(gguf_files["beta"]), name="beta"), None, None, progress=False)
    assert len(described.tokenizer.encode("The quick brown fox")) > 1


@on_linux
def test_pages_of_a_mapped_file_are_given_back(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(bytes(range(256)) * 2**14)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        whole = mapped[:]
        assert resident_kib(path) == len(whole) // 1024
        give_back(path)
        assert resident_kib(path) == 0
        assert mapped[:] == whole  # they come back


def resident_kib(path):
    """KiB of a mapped file that are in this process."""
    entries = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    found = [entry for entry in entries if entry.partition("\n")[0].endswith(str(path))]
    return sum(int(re.search(r"^Rss: +(\d+) kB", entry, re.MULTILINE)[1]) for entry in found)


@on_linux
def test_freed_memory_is_returned():
    """Blocks below one that is still in use stay with glibc until it is asked for them."""
    system = ctypes.CDLL(None)
    system.malloc.restype, system.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    blocks = [system.malloc(100_000) for _ in range(1000)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    kept = blocks.pop()
    for block in blocks:
        system.free(block)
    before = anonymous_mib()
    return_freed()
    assert anonymous_mib() < before - 50
    system.free(kept)


def anonymous_mib():
    """MiB of this process that are no file's."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
