"""A model folder to be changed, and its refusal before any weights are read."""

import shutil

import pytest
import transformers

from deepen_core import Ensemble


@pytest.fixture
def folder(tmp_path, folders):
    """A copy of a model folder, to be changed."""
    return shutil.copytree(folders["beta"], tmp_path / "model")


@pytest.fixture
def weights_read(monkeypatch):
    """The models whose weights are loaded."""
    loaded, load = [], transformers.AutoModelForCausalLM.from_pretrained

    def spy(place, **options):
        loaded.append(place)
        return load(place, **options)

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", spy)
    return loaded


@pytest.fixture
def refused(folders, weights_read):
    """Loads a member beside one that is in order, and returns the error, before which no weights were read."""

    def refuse(model, error):
        with pytest.raises(error) as caught:
            Ensemble.load([folders["alpha"], model], device="cpu", progress=False)
        assert type(caught.value) is error
        assert weights_read == []
        return caught.value

    return refuse
