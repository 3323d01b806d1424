"""What it costs to keep the rows of a real vocabulary on disk, and to have them back in the next process.

Run with `python -m benchmarks.store`. `cold` is after the file has left the system's memory.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.report import publish
from deepen_core.fusion.deepen.store import Fingerprint, RowStore, fingerprint

# What a space has: vocabulary, width, anchors, rows, entries.
SPACES = (
    (32_000, 512, 24_000, 32_000, 64),
    (128_256, 1024, 109_566, 110_000, 64),
    (128_256, 1024, 109_566, 128_256, 128),
)


def seconds(action: Callable[[], Any], repeats: int, before: Callable[[], Any] = lambda: None) -> float:
    """The median time of an action, each time after `before`."""
    times = []
    for _ in range(repeats):
        before()
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return median(times)


def forget(path: Path) -> None:
    """Drops a file from the system's memory."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def measure(vocabulary: int, width: int, anchors: int, rows: int, entries: int, repeats: int) -> dict[str, Any]:
    """Times of one space with random embeddings and rows."""
    embeddings = torch.randn(vocabulary, width)
    names = [str(anchor).encode() for anchor in range(anchors)]
    fixed = torch.full((vocabulary,), -1, dtype=torch.int32)
    tensors = {
        "slot": torch.arange(vocabulary, dtype=torch.int32).clamp_max(rows - 1),
        "index": torch.randint(anchors, (rows, entries), dtype=torch.int32),
        "value": torch.rand(rows, entries).half(),
        "spread": torch.rand(rows),
    }

    def identify() -> Fingerprint:
        return fingerprint(
            model="random",
            embeddings=embeddings,
            vocabulary_digest="",
            anchors=names,
            temperature=100.0,
            entries=entries,
            dtype="float16",
            fixed=fixed,
        )

    with tempfile.TemporaryDirectory() as folder:
        store, space = RowStore(Path(folder)), identify()
        save = seconds(lambda: store.save(space, tensors), repeats)
        path = Path(folder) / space.file_name
        loaded = store.load(space)
        assert loaded is not None
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
        return {
            "embeddings": f"{vocabulary:,} x {width} float32",
            "rows": f"{rows:,} x {entries}",
            "MiB": path.stat().st_size / 2**20,
            "fingerprint s": seconds(identify, repeats),
            "save s": save,
            "load s": seconds(lambda: store.load(space), repeats),
            "load cold s": seconds(lambda: store.load(space), repeats, lambda: forget(path)),
            "fingerprint + load s": seconds(lambda: store.load(identify()), repeats),
        }


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    rows = [measure(*space, repeats=given.repeats) for space in SPACES]
    publish("store", "Rows kept on disk: float16 values, int32 columns; medians", rows, repeats=given.repeats)


if __name__ == "__main__":
    main()
