"""Folders that are made once for a whole run: the processes among which its tests are dealt out share them."""

import os
import shutil
from pathlib import Path

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

    folder_named.root = shared
    return folder_named


@pytest.fixture(scope="session", autouse=True)
def probed_once(made_once):
    """A model of a folder that does not change is probed once in a process, rather than at each of its many loads."""
    import torch

    from deepen_core.demo import member_paths
    from deepen_core.members.transformers import causal

    probe, found = causal.probe, {}
    lasting = [made_once.root, *(path.parent for path in member_paths())]

    def probe_once(model, context_window):
        folder = Path(model.config._name_or_path)
        if not any(root in folder.parents for root in lasting):
            return probe(model, context_window)
        attention = model.config._attn_implementation
        key = (folder, type(model), model.dtype, model.device, attention, context_window, torch.get_default_dtype())
        if key not in found:
            found[key] = probe(model, context_window)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal, "probe", probe_once)
        yield
