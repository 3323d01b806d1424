"""Loading and answering leave the global random generators as they would be without, for every thread."""

import random
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deepen_core import Ensemble
from deepen_core.errors import ModelFilesError
from deepen_core.members.transformers.random_state import own_randomness


def states():
    numpy_state = np.random.get_state()  # noqa: NPY002 (the global one is what is looked at)
    return torch.get_rng_state().tolist(), random.getstate(), [*map(str, numpy_state)]


@pytest.fixture
def lacking(folders, tmp_path):
    """A folder whose weights lack a tensor, which is then drawn at random before the load fails."""
    for file in folders["beta"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(next(name for name in weights if "mlp" in name))
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def test_of_the_same_thread(folders, seq2seq_folders, lacking):
    torch.manual_seed(5)
    before = states()
    for folder in (folders["alpha"], folders["beta"], *list(seq2seq_folders.values())[:1]):
        with Ensemble.load([folder], progress=False, device="cpu") as ensemble:
            ensemble.generate("The dog", max_new_tokens=3, temperature=0.8, seed=1)
    with pytest.raises(ModelFilesError):
        Ensemble.load([lacking], progress=False, device="cpu")
    assert states() == before


def test_of_another_thread(folders, lacking):
    """What another thread draws while this one loads is what it would have drawn."""
    torch.manual_seed(5)
    expected = torch.rand(20_000)
    torch.manual_seed(5)
    drawn, loaded, pause = [], threading.Event(), threading.Event()

    def draw():
        while not (loaded.is_set() and len(drawn) >= 200):
            drawn.append(torch.rand(1))
            pause.wait(0.0002)
            if len(drawn) >= 20_000:
                return

    thread = threading.Thread(target=draw)
    thread.start()
    Ensemble.load([folders["alpha"]], progress=False, device="cpu").close()
    with pytest.raises(ModelFilesError):
        Ensemble.load([lacking], progress=False, device="cpu")
    loaded.set()
    thread.join()
    assert torch.equal(torch.cat(drawn), expected[: len(drawn)])


def test_what_draws_has_a_generator_of_its_own():
    torch.manual_seed(5)
    before = states()
    with own_randomness():
        drawn = [
            torch.randn(3),
            torch.rand(3),
            torch.randint(9, (3,)),
            torch.randperm(5),
            torch.empty(3).normal_(),
            torch.nn.init.trunc_normal_(torch.empty(3)),
            torch.nn.Linear(2, 2).weight,
            torch.bernoulli(torch.full((3,), 0.5)),
            torch.multinomial(torch.ones(5), 2),
        ]
    assert states() == before
    assert len({str(tensor.tolist()) for tensor in drawn}) == len(drawn)
