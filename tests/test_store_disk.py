"""The folder of the row store: a disk that refuses, listing and clearing."""

import errno
import os
import tempfile
import time
from pathlib import Path

import pytest
from store_parts import SPACE, child, fail, header, made_from, names, put, same, some_rows

from deepen_core.fusion.deepen.store import FORMAT_VERSION, RowStore, StoreWarning, default_folder

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


@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_what_was_there_and_no_part_of_the_new(store, monkeypatch, before):
    if before:
        store.save(SPACE, some_rows(seed=1))
    with monkeypatch.context() as patched:
        fill_disk(patched)
        with pytest.warns(
            StoreWarning, match=r"rows of general \(0\.0 MiB\) cannot be saved .* No space left .* DEEPEN_CACHE_DIR"
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
    with pytest.warns(StoreWarning, match="cannot be saved"):
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
            kept = parts.RowStore(folder).save(parts.made_from(), parts.some_rows())
        print(kept, [str(w.message) for w in caught])
    """
    with child(code, store.folder) as process:
        said = process.communicate()[0]
    assert said.startswith("False")
    assert "File too large" in said
    assert names(store.folder) == []


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
        "format_version": str(FORMAT_VERSION),
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
