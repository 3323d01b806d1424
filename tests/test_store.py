"""The store of rows: what comes back is what was saved, or nothing; and what happened is said."""

import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from deepen_core.errors import DeepenError
from deepen_core.store import RowStore, StoreWarning, default_folder, fingerprint
from deepen_core.store import fingerprints as fingerprints_module
from deepen_core.store import rows as rows_module

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


@pytest.fixture
def store(tmp_path):
    return RowStore(tmp_path / "not" / "there yet")


SPACE = made_from()
with tempfile.TemporaryDirectory() as _folder:
    RowStore(Path(_folder)).save(SPACE, some_rows())
    GOOD_FILE = (Path(_folder) / SPACE.file_name).read_bytes()


def put(store, content):
    """Puts bytes where the store expects the rows of `SPACE`."""
    store.folder.mkdir(parents=True, exist_ok=True)
    (store.folder / SPACE.file_name).write_bytes(content)


# What is saved comes back


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_rows_come_back_bit_for_bit(store, dtype):
    rows = {**some_rows(), "extra": torch.tensor([True, False])}
    rows["value"] = rows["value"].to(dtype)
    assert store.save(SPACE, rows)
    assert same(store.load(SPACE), rows)
    assert names(store.folder) == [SPACE.file_name]


def test_a_later_save_replaces_the_rows(store):
    store.save(SPACE, some_rows(seed=1))
    assert store.save(SPACE, some_rows(n=9, seed=2))
    assert same(store.load(SPACE), some_rows(n=9, seed=2))


def test_a_part_of_a_buffer_is_saved_as_that_part(store):
    buffer = some_rows(n=20, k=4)
    rows = {**{name: buffer[name][:5] for name in ("index", "value", "spread")}, "slot": buffer["slot"]}
    rows["value"] = buffer["value"].T.contiguous().T[:5]  # not contiguous
    store.save(SPACE, rows)
    assert same(store.load(SPACE), rows)
    assert (store.folder / SPACE.file_name).stat().st_size < 1500


def test_nothing_there_is_no_news(store):
    assert store.load(SPACE) is None
    assert not store.folder.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"spread": None}, "spread is missing"),
        ({"slot": torch.zeros(TOKENS + 1, dtype=torch.int32)}, r"slot has shape \[12\] where tokens is \[11\]"),
        ({"value": torch.zeros(7, 3)}, r"value has shape \[7, 3\] where rows x entries is \[7, 4\]"),
        ({"index": torch.zeros(7, dtype=torch.int32)}, r"index has shape \[7\]"),
        ({"index": torch.zeros(7, 5), "value": torch.zeros(7, 5)}, "rows have 5 entries where 4 is the most"),
    ],
)
def test_rows_that_fit_nowhere_are_refused(store, change, told):
    rows = {name: tensor for name, tensor in {**some_rows(), **change}.items() if tensor is not None}
    with pytest.raises(DeepenError, match=told):
        store.save(SPACE, rows)
    assert store.entries() == []


# Fingerprints


def test_everything_that_rows_depend_on_changes_the_fingerprint():
    last_bit = torch.arange(TOKENS * 3, dtype=torch.float32).view(TOKENS, 3)
    last_bit.view(torch.int32)[-1, -1] ^= 1
    variants = [
        {},
        {"embeddings": last_bit},
        {"embeddings": torch.arange(TOKENS * 3, dtype=torch.float32).view(3, TOKENS)},
        {"embeddings": torch.arange(TOKENS * 3, dtype=torch.int32).view(TOKENS, 3)},
        {"vocabulary_digest": "d2"},
        {"anchors": [b"bc", b"a"]},
        {"anchors": [b"ab", b"c"]},
        {"temperature": 41.500000000000007},
        {"entries": 5},
        {"dtype": "float32"},
        {"fixed": torch.zeros(TOKENS, dtype=torch.int32)},
    ]
    keys = [made_from(**variant).key for variant in variants]
    assert len(set(keys)) == len(variants)


def test_the_version_of_the_format_changes_the_fingerprint(monkeypatch):
    monkeypatch.setattr(fingerprints_module, "FORMAT_VERSION", 999)
    assert made_from().key != SPACE.key


def test_the_name_of_the_model_does_not_change_the_fingerprint():
    assert made_from(model="other").key == SPACE.key


def test_the_fingerprint_of_today_is_that_of_tomorrow():
    """If this fails on purpose, raise FORMAT_VERSION too."""
    assert SPACE.key == "09c776b3e178bce2f6f29282142f0aa5badc80e21ac0b0cf6b0cc6fc2e320b7e"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_only_the_content_of_embeddings_counts_not_their_layout(dtype, monkeypatch):
    monkeypatch.setattr(fingerprints_module, "_CHUNK_BYTES", 40)  # many chunks
    wide = torch.randn(30, 14, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = made_from(embeddings=wide[:, ::2].contiguous())
    assert made_from(embeddings=wide[:, ::2]).key == whole.key
    assert made_from(embeddings=torch.nn.Parameter(wide[:, ::2].clone())).key == whole.key
    flipped = wide[:, ::2].clone()
    flipped[17, 3] += 1
    assert made_from(embeddings=flipped).key != whole.key


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_fingerprint_on_a_gpu_is_that_on_the_cpu():
    embeddings = torch.randn(5000, 1000).bfloat16()
    assert made_from(embeddings=embeddings.cuda()).key == made_from(embeddings=embeddings).key


@pytest.mark.slow
def test_another_process_with_another_hash_seed_finds_the_rows(store):
    store.save(SPACE, some_rows())
    code = """
        found = test_store.RowStore(folder).load(test_store.made_from())
        print(test_store.same(found, test_store.some_rows()))
    """
    for seed in ("1", "77"):
        with child(code, store.folder, PYTHONHASHSEED=seed) as process:
            assert process.communicate()[0] == "True\n"


# Damage


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 8 * len(GOOD_FILE) - 1))
def test_one_flipped_bit_anywhere_is_noticed(bit):
    content = bytearray(GOOD_FILE)
    content[bit // 8] ^= 1 << bit % 8
    with tempfile.TemporaryDirectory() as folder:
        store = RowStore(Path(folder))
        put(store, content)
        with pytest.warns(StoreWarning, match="is not used, and the rows of general are built"):
            assert store.load(SPACE) is None
        assert names(store.folder) == []


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.binary(max_size=200), st.integers(0, len(GOOD_FILE) - 1), st.binary(min_size=1, max_size=20)),
    st.data(),
)
def test_no_other_content_is_taken_for_rows(content, data):
    if isinstance(content, int):
        content = GOOD_FILE[:content]  # cut short
    elif data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(GOOD_FILE)))
        cut = data.draw(st.integers(0, 20))
        content = GOOD_FILE[:at] + content + GOOD_FILE[at + cut :]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = RowStore(Path(folder))
        put(store, content)
        found = store.load(SPACE)
    assert (content == GOOD_FILE) == (found is not None)
    assert [warning.category for warning in caught] == ([] if found else [StoreWarning])


def header(content):
    data = json.dumps(content).encode()
    return len(data).to_bytes(8, "little") + data


def sealed_by_hand(metadata, tensors, missing=0):
    """A file with a right checksum and anything else in it, less some bytes at its end."""
    data = save(tensors, {**metadata, "checksum": "0" * 64})
    data = data[: len(data) - missing]
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode())


OURS = {"format_version": "1", "key": SPACE.key, "model": "other", "rows": "7"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "has no header of this store"),
        (b"%PDF-1.7 a paper that somebody put there", "has no header of this store"),
        (b"\x10" + b"\0" * 7 + b"[" * 16, "has no header of this store"),
        (b"\xff\xff\xff\0" + b"\0" * 4 + b"[" * 100_000, "has no header of this store"),
        (header([1]), "has no header of this store"),
        (save(some_rows()), "has no header of this store"),
        (header({"__metadata__": 5}), "is not of format 1"),
        (save(some_rows(), {"by": "another program"}), "is not of format 1"),
        (save(some_rows(), OURS), "is damaged"),
        (sealed_by_hand({**OURS, "format_version": "0"}, some_rows()), "is not of format 1"),
        (sealed_by_hand({**OURS, "key": "f" * 64}, some_rows()), r"holds the rows of another space \(of other\)"),
        (sealed_by_hand(OURS, {**some_rows(), "slot": torch.zeros(3)}), r"does not fit: slot has shape \[3\]"),
        (sealed_by_hand(OURS, some_rows(), missing=1), "is no safetensors file"),
        (sealed_by_hand(OURS, {"spread": torch.zeros(7)}), "does not fit: slot is missing"),
    ],
)
def test_a_foreign_file_is_told_once_and_replaced(store, content, told):
    put(store, content)
    with pytest.warns(StoreWarning, match=f"{SPACE.file_name} {told}.*general are built") as caught:
        assert store.load(SPACE) is None
    assert caught[0].filename == __file__
    put(store, content)
    assert store.load(SPACE) is None  # the second time without a word: warnings are errors here
    assert store.save(SPACE, some_rows())
    assert same(store.load(SPACE), some_rows())


def test_a_right_seal_made_by_hand_is_taken(store):
    put(store, sealed_by_hand(OURS, some_rows()))
    assert same(store.load(SPACE), some_rows())


def test_a_file_that_cannot_be_read_is_told(store):
    (store.folder / SPACE.file_name).mkdir(parents=True)
    with pytest.warns(StoreWarning, match="cannot be read"):
        assert store.load(SPACE) is None
    with pytest.warns(StoreWarning, match="cannot be kept"):
        assert not store.save(SPACE, some_rows())
    assert names(store.folder) == [SPACE.file_name]


def test_a_damaged_file_that_was_replaced_meanwhile_stays(store, monkeypatch):
    put(store, b"damaged")
    unsealed = rows_module.unsealed

    def replaced_now(data, space):
        store.save(SPACE, some_rows())
        return unsealed(data, space)

    monkeypatch.setattr(rows_module, "unsealed", replaced_now)
    with pytest.warns(StoreWarning):
        assert store.load(SPACE) is None
    monkeypatch.undo()
    assert same(store.load(SPACE), some_rows())


def test_pickles_are_not_read(store):
    import pickle

    put(store, pickle.dumps(some_rows()))
    with pytest.warns(StoreWarning, match="no header of this store"):
        assert store.load(SPACE) is None


# A disk that refuses


class FullDisk:
    """A file that takes the first piece and a part of the second."""

    def __init__(self, file):
        self.file, self.writes = file, 0

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def write(self, piece):
        self.writes += 1
        if self.writes == 3:
            self.file.write(piece[: len(piece) // 2])
            self.file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(piece)


def fill_disk(monkeypatch):
    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode="r", **k: FullDisk(opened(path, mode)) if "x" in mode else opened(path, mode, **k),
    )


def fail(number):
    def call(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_what_was_there_and_no_part_of_the_new(store, monkeypatch, before):
    if before:
        store.save(SPACE, some_rows(seed=1))
    with monkeypatch.context() as patched:
        fill_disk(patched)
        with pytest.warns(
            StoreWarning, match=r"rows of general \(0\.0 MiB\) cannot be kept .* No space left .* DEEPEN_CACHE_DIR"
        ):
            assert store.save(SPACE, some_rows(seed=2)) is False
        assert store.save(SPACE, some_rows(seed=2)) is False  # said once
    assert names(store.folder) == [SPACE.file_name] * before
    found = store.load(SPACE)
    assert same(found, some_rows(seed=1)) if before else found is None
    assert store.save(SPACE, some_rows(seed=2))


@pytest.mark.parametrize(
    ("target", "name", "number"),
    [
        (Path, "mkdir", errno.EACCES),
        (Path, "open", errno.EROFS),
        (Path, "replace", errno.EACCES),
        (os, "fsync", errno.ENOSPC),
    ],
)
def test_a_folder_that_refuses_costs_a_warning(store, monkeypatch, target, name, number):
    with monkeypatch.context() as patched:
        patched.setattr(target, name, fail(number))
        with pytest.warns(StoreWarning, match=os.strerror(number)) as caught:
            assert store.save(SPACE, some_rows()) is False
    assert caught[0].filename == __file__
    assert not store.folder.exists() or names(store.folder) == []


def test_a_folder_that_is_a_file_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    store = RowStore(tmp_path / "file")
    with pytest.warns(StoreWarning, match="cannot be kept"):
        assert store.save(SPACE, some_rows()) is False
    assert store.entries() == []
    assert store.clear() == 0


def test_an_interrupted_save_leaves_no_part(store, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.save(SPACE, some_rows())
    assert names(store.folder) == []


def test_a_write_that_the_system_itself_cuts_short(store):
    code = """
        import resource, warnings
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kept = test_store.RowStore(folder).save(test_store.SPACE_HERE, test_store.some_rows())
        print(kept, [str(w.message) for w in caught])
    """.replace("SPACE_HERE", "made_from()")
    with child(code, store.folder) as process:
        said = process.communicate()[0]
    assert said.startswith("False")
    assert "File too large" in said
    assert names(store.folder) == []


# Several processes


@contextlib.contextmanager
def child(code, folder, **environment):
    """Runs code in another process, with this module and the folder at hand."""
    lines = [
        "import os, sys, time, warnings, pathlib",
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
        "import test_store",
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


HALF_WAY = """
        import os
        def wait(_):
            print("half way", flush=True)
            time.sleep(600)
        os.fsync = wait
        test_store.RowStore(folder).save(test_store.made_from(), test_store.some_rows(seed=5))
"""


def test_a_killed_build_leaves_a_file_that_the_next_save_removes(store):
    store.save(SPACE, some_rows(seed=1))
    with child(HALF_WAY, store.folder) as process:
        assert process.stdout.readline() == "half way\n"
        assert store.save(SPACE, some_rows(seed=2))
        assert store.clear(older_than_days=1) == 0
        assert len(names(store.folder)) == 2, "the file of a writer that lives stays"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(names(store.folder)) == 2
    assert same(store.load(SPACE), some_rows(seed=2))
    assert len(store.entries()) == 1
    assert store.save(SPACE, some_rows(seed=3))
    assert names(store.folder) == [SPACE.file_name]


def temporary(store, host=rows_module._HOST, process=2**22 + 1, age=0.0):
    path = store.folder / f".{SPACE.file_name}.{host}-{process}-0123abcd.tmp"
    store.folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.mark.parametrize(
    ("host", "process", "age", "removed"),
    [
        (rows_module._HOST, 2**22 + 1, 0, True),  # no process has such a number
        (rows_module._HOST, os.getpid(), 0, False),
        (rows_module._HOST, os.getpid(), 7200, True),
        (rows_module._HOST, 1, 0, False),
        ("00000000", 2**22 + 1, 0, False),
        ("00000000", 2**22 + 1, 7200, True),
        ("elsewhere", 1, 7200, False),  # not a name of ours
    ],
)
def test_half_written_files_go_when_nobody_writes_them(store, host, process, age, removed):
    path = temporary(store, host, process, age)
    assert store.clear() == 4 * removed
    assert path.exists() != removed


def test_a_process_of_another_user_is_alive(store, monkeypatch):
    path = temporary(store)
    monkeypatch.setattr(os, "kill", fail(errno.EPERM))
    store.clear()
    assert path.exists()


@pytest.mark.slow
def test_a_build_killed_at_any_moment_does_no_harm(store):
    code = """
        print("ready", flush=True)
        while True:
            test_store.RowStore(folder).save(test_store.made_from(), test_store.some_rows(n=100_000))
    """
    whole = some_rows(n=100_000)
    for wait in (0.01, 0.1):
        with child(code, store.folder) as process:
            process.stdout.readline()
            while not list(store.folder.glob(".*")):
                time.sleep(0.001)
            time.sleep(wait)
            process.kill()
            process.wait()
        found = store.load(SPACE)
        assert found is None or same(found, whole)
    assert store.save(SPACE, whole)
    assert names(store.folder) == [SPACE.file_name]


@pytest.mark.slow
def test_two_builds_at_once_and_a_reader(store):
    code = """
        sys.stdin.readline()
        for _ in range(20):
            assert test_store.RowStore(folder).save(test_store.made_from(), test_store.some_rows(n=20_000, seed=SEED))
    """
    either = [some_rows(n=20_000, seed=seed) for seed in (1, 2)]
    found = []
    with (
        child(code.replace("SEED", "1"), store.folder) as one,
        child(code.replace("SEED", "2"), store.folder) as two,
    ):
        for process in (one, two):
            process.stdin.write("go\n")
            process.stdin.flush()
        while one.poll() is None or two.poll() is None:
            found.append(store.load(SPACE))
        assert (one.returncode, two.returncode) == (0, 0)
    seen = [rows for rows in found if rows is not None]
    assert len(seen) > 10
    assert all(same(rows, either[0]) or same(rows, either[1]) for rows in seen)
    assert names(store.folder) == [SPACE.file_name]


# The folder, listing and clearing


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DEEPEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_folder() == tmp_path / "home" / ".cache" / "deepen"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert default_folder() == tmp_path / "home" / ".cache" / "deepen"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "deepen"
    monkeypatch.setenv("DEEPEN_CACHE_DIR", "~/mine")
    assert RowStore().folder == tmp_path / "home" / "mine"
    monkeypatch.setenv("DEEPEN_CACHE_DIR", "here")
    assert RowStore().folder == Path.cwd() / "here"
    assert RowStore(tmp_path).folder == tmp_path


def test_a_user_without_a_home_has_a_folder_too(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DEEPEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert default_folder() == Path(tempfile.gettempdir()) / "deepen"


def aged(store, space, days):
    store.save(space, some_rows())
    path = store.folder / space.file_name
    os.utime(path, (time.time() - days * 86400,) * 2)
    return path


def test_entries_tell_what_is_there(store):
    old = aged(store, made_from(model='old "one"\n', vocabulary_digest="old"), 3)
    new = aged(store, SPACE, 1)
    first, second = store.entries()
    assert (first.name, first.model, second.name) == (old.name, 'old "one"\n', new.name)
    assert (second.rows, second.bytes) == (7, new.stat().st_size)
    assert second.age_days == pytest.approx(1, abs=0.01)
    assert second.facts == {
        "format_version": "1",
        "key": SPACE.key,
        "model": "general",
        "tokens": "11",
        "width": "3",
        "anchors": "2",
        "temperature": "41.5",
        "entries": "4",
        "dtype": "float16",
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 30,
        header({"__metadata__": 5}),
        header({"__metadata__": {"model": "m"}}),
        header({"__metadata__": {"model": "m", "rows": "9" * 5000}}),
        header({"__metadata__": {"model": 3, "rows": "1"}}),
    ],
)
def test_entries_list_what_cannot_be_read(store, content):
    put(store, content)
    (entry,) = store.entries()
    assert (entry.name, entry.model, entry.rows, entry.facts) == (SPACE.file_name, None, 0, {})
    assert store.clear() == len(content)


def test_clearing_keeps_the_young_and_what_is_not_ours(store):
    old = aged(store, made_from(vocabulary_digest="old"), 3)
    new = aged(store, SPACE, 1)
    (store.folder / "notes.txt").write_text("mine")
    size = old.stat().st_size
    assert store.clear(older_than_days=2) == size
    assert names(store.folder) == ["notes.txt", new.name]
    assert store.clear() > 0
    assert names(store.folder) == ["notes.txt"]
    assert store.clear() == 0


def test_a_file_that_cannot_be_removed_is_told(store, monkeypatch):
    store.save(SPACE, some_rows())
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", fail(errno.EACCES))
        with pytest.warns(StoreWarning, match="cannot be removed"):
            assert store.clear() == 0
    assert store.entries() != []


def test_another_process_may_clear_at_the_same_time(store, monkeypatch):
    store.save(SPACE, some_rows())
    entries = store.entries()
    store.clear()
    monkeypatch.setattr(store, "entries", lambda: entries)
    assert store.clear() == 0
