"""Commands get a fake ensemble."""

from dataclasses import asdict

import pytest
from cli_parts import OPENING, FakeEnsemble


@pytest.fixture
def fake(monkeypatch):
    """The ensemble that every command gets; `opened` holds the options it was opened with."""
    ensemble = FakeEnsemble()
    ensemble.opened = {}

    def open_fake(load, *, chat=False):
        options = asdict(load)
        ensemble.opened = {"members": options.pop("member"), "chat": chat, **options}
        return ensemble

    for name in OPENING:
        monkeypatch.setattr(name, open_fake)
    return ensemble
