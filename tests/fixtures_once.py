"""Folders that are made once for a whole run: the processes among which its tests are dealt out share them."""

import os
import shutil

import pytest
from filelock import FileLock


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Gives a folder of this run by its name; the process that first asks for it makes it, while the others wait."""
    own = tmp_path_factory.getbasetemp()
    # Each worker of pytest-xdist has a folder of its own in that of the run.
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "made-once"
    shared.mkdir(exist_ok=True)

    def folder_named(name, make):
        folder, half = shared / name, shared / f"{name}.half-made"
        with FileLock(shared / f"{name}.lock"):
            if not folder.exists():
                shutil.rmtree(half, ignore_errors=True)  # of a worker that was killed
                half.mkdir()
                make(half)
                half.rename(folder)
        return folder

    return folder_named
