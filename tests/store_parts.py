"""Rows, fingerprints and files that the tests of the row store share."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from deepen_core.fusion.deepen.store import RowStore, fingerprint

TOKENS = 11


def made_from(**changes):
    embeddings = torch.arange(TOKENS * 3, dtype=torch.float32).view(TOKENS, 3)
    fixed = torch.full((TOKENS,), -1, dtype=torch.int32)
    values = {
        "model": "general",
        "embeddings": embeddings,
        "vocabulary_digest": "d1",
        "anchors": [b"a", b"bc"],
        "temperature": 41.5,
        "entries": 4,
        "dtype": "float16",
        "fixed": fixed,
    }
    return fingerprint(**{**values, **changes})


def some_rows(n=7, k=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    return {
        "slot": torch.randint(-1, n, (TOKENS,), dtype=torch.int32, generator=random),
        "index": torch.randint(100, (n, k), dtype=torch.int32, generator=random),
        "value": torch.rand(n, k, generator=random).half(),
        "spread": torch.rand(n, generator=random),
    }


def same(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


SPACE = made_from()
with tempfile.TemporaryDirectory() as _folder:
    RowStore(Path(_folder)).save(SPACE, some_rows())
    GOOD_FILE = (Path(_folder) / SPACE.file_name).read_bytes()


def put(store, content):
    """Puts bytes where the store expects the rows of `SPACE`."""
    store.folder.mkdir(parents=True, exist_ok=True)
    (store.folder / SPACE.file_name).write_bytes(content)


def header(content):
    data = json.dumps(content).encode()
    return len(data).to_bytes(8, "little") + data


def fail(number):
    def call(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    return call


@contextlib.contextmanager
def child(code, folder, **environment):
    """Runs code in another process, with this module as `parts` and the folder at hand."""
    lines = [
        "import os, sys, time, warnings, pathlib",
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
        "import store_parts as parts",
        f"folder = pathlib.Path({str(folder)!r})",
        *(line.removeprefix(" " * 8) for line in code.splitlines()),
    ]
    process = subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", "-c", "\n".join(lines)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
