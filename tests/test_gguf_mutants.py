"""Damaged headers of GGUF files end in an error of our own, and never the process."""

import random
import re
import struct
import subprocess
import sys

import pytest

from deepen_core.members.llama_cpp.header import read_header

pytest.importorskip("xllamacpp")

PROGRAM = """
import sys
from pathlib import Path
from deepen_core.errors import DeepenError
from deepen_core.members.loading import describe_member, member_configs

for path in sorted(Path(sys.argv[1]).glob("*.gguf")):
    print(path.name, flush=True)
    try:
        described = describe_member(member_configs([str(path)])[0], None, None, progress=False)
        described.load(progress=False).token_logprobs(list(range(3, 20)), 1)
    except DeepenError:
        pass
print("all", flush=True)
"""
MUTANTS = 1000
_NUMBERS = (0, 1, 2, 3, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_NAMES = re.compile(rb"(llama|gpt2|qwen2|gemma|general|tokenizer\.ggml|blk|token_embd|output)\w*\.")


def mutant(raw, names, header_end, chance):
    """Changes a few places of a header, most of them near the name of a field or a tensor."""
    changed = bytearray(raw)
    for _ in range(chance.choice((1, 1, 2, 4))):
        near = chance.random() < 0.6
        at = chance.choice(names) + chance.randrange(60) if near else chance.randrange(header_end)
        match chance.randrange(3):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                form = chance.choice(("<I", "<Q"))
                value = chance.choice(_NUMBERS) % 2 ** (8 * struct.calcsize(form))
                struct.pack_into(form, changed, at, value)
            case _:
                del changed[at : at + chance.choice((1, 4, 8))]
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beta", "delta"])
def test_no_damaged_header_ends_the_process(gguf_files, tmp_path, name):
    raw = gguf_files[name].read_bytes()
    header_end = min(tensor.start for tensor in read_header(gguf_files[name]).tensors.values())
    names = [found.start() for found in _NAMES.finditer(raw, 0, header_end)]
    chance = random.Random(name)
    for number in range(MUTANTS):
        (tmp_path / f"{number:05}.gguf").write_bytes(mutant(raw, names, header_end, chance))
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ended.stdout.split()[-1] == "all", ended.stderr[-2000:]
