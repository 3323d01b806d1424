"""The row store between processes: killed builds, two at once, files left half written."""

import errno
import os
import signal
import time
from contextlib import nullcontext

import pytest
from store_parts import SPACE, child, fail, names, same, some_rows

from deepen_core.fusion.deepen.store import StoreWarning
from deepen_core.fusion.deepen.store import files as rows_module

HALF_WAY = """
        import os
        def wait(_):
            print("half way", flush=True)
            time.sleep(600)
        os.fsync = wait
        parts.RowStore(folder).save(parts.made_from(), parts.some_rows(seed=5))
"""


def test_a_killed_build_leaves_a_file_that_the_next_load_removes_and_tells(store):
    store.save(SPACE, some_rows(seed=1))
    with child(HALF_WAY, store.folder) as process:
        assert process.stdout.readline() == "half way\n"
        assert store.save(SPACE, some_rows(seed=2))
        assert store.clear(older_than_days=1) == 0
        assert len(names(store.folder)) == 2, "the file of a writer that lives stays"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(names(store.folder)) == 2
    with pytest.warns(StoreWarning, match="rows of general were left incomplete .* by a process that was killed"):
        assert same(store.load(SPACE), some_rows(seed=2))
    assert names(store.folder) == [SPACE.file_name]
    assert len(store.entries()) == 1
    assert store.save(SPACE, some_rows(seed=3))
    assert names(store.folder) == [SPACE.file_name]


NOBODY = 2**22 + 1  # no process has such a number


def temporary(store, host=rows_module._HOST, process=NOBODY, age=0.0):
    path = store.folder / f".{SPACE.file_name}.{host}-{process}-0123abcd.tmp"
    store.folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.mark.parametrize(
    ("host", "process", "age", "removed"),
    [
        ("here", "nobody", 0, True),
        ("here", "this one", 0, False),
        ("here", "this one", 7200, True),
        ("here", "the first", 0, False),
        ("00000000", "nobody", 0, False),
        ("00000000", "nobody", 7200, True),
        ("elsewhere", "the first", 7200, False),  # not a name of ours
    ],
)
def test_half_written_files_go_when_nobody_writes_them(store, host, process, age, removed):
    host = rows_module._HOST if host == "here" else host
    process = {"nobody": NOBODY, "this one": os.getpid(), "the first": 1}[process]
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
            parts.RowStore(folder).save(parts.made_from(), parts.some_rows(n=100_000))
    """
    whole, told = some_rows(n=100_000), False
    for wait in (0.01, 0.1):
        with child(code, store.folder) as process:
            process.stdout.readline()
            while not list(store.folder.glob(".*")):
                time.sleep(0.001)
            time.sleep(wait)
            process.kill()
            process.wait()
        # The moment decides whether anything is left half written, which is told once and never again.
        left = any(path.stat().st_size for path in store.folder.glob(".*"))
        with pytest.warns(StoreWarning, match="left incomplete") if left and not told else nullcontext():
            found = store.load(SPACE)
        told |= left
        assert found is None or same(found, whole)
        assert not list(store.folder.glob(".*"))
    assert store.save(SPACE, whole)
    assert names(store.folder) == [SPACE.file_name]


@pytest.mark.slow
def test_two_builds_at_once_and_a_reader(store):
    code = """
        sys.stdin.readline()
        for _ in range(20):
            assert parts.RowStore(folder).save(parts.made_from(), parts.some_rows(n=20_000, seed=SEED))
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
