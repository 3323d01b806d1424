"""Commands get a fake ensemble."""

from dataclasses import asdict

import pytest
from cli_parts import FakeEnsemble


@pytest.fixture
def fake(monkeypatch):
    """The ensemble that every command gets; `opened` holds the options it was opened with."""
    ensemble = FakeEnsemble()
    ensemble.opened = {}

    def open_fake(load, *, chat=False):
        options = asdict(load)
        ensemble.opened = {"members": options.pop("member"), "chat": chat, **options}
        return ensemble

    for module in ("asking", "describing", "measuring"):
        monkeypatch.setattr(f"deepen_integrations.cli.{module}.open_ensemble", open_fake)
    return ensemble
