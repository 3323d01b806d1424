"""Real models, which are not part of the repository: where they are, and ensembles of them."""

import os
import warnings
from pathlib import Path

import pytest

from deepen_core import Ensemble

FOLDER = os.environ.get("DEEPEN_REAL_MODELS")
DEVICE = os.environ.get("DEEPEN_REAL_DEVICE", "cpu")
REAL = [
    pytest.mark.slow,
    pytest.mark.skipif(FOLDER is None, reason="DEEPEN_REAL_MODELS does not name a folder with the real models"),
]
SMOL, QWEN, GEMMA = "smollm2-135m", "qwen-coder-0.5b", "gemma3-270m"


def real(name):
    """The folder of a model."""
    return str(Path(FOLDER) / name)


def opened(names, dtype, **options):
    """An ensemble of models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Ensemble.load([real(n) for n in names], dtype=dtype, device=DEVICE, progress=False, **options)
