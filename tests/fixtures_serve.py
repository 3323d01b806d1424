"""The demo behind a server, once for all tests that only ask it."""

import pytest
from serve_parts import running

from deepen_core import Ensemble


@pytest.fixture(scope="session")
def served_demo(needs_demo):
    """The ensemble that the server of `server` has, to be asked in this process."""
    with Ensemble.demo() as ensemble:
        yield ensemble


@pytest.fixture(scope="session")
def server(served_demo):
    """A server of the demo."""
    with running({"demo": served_demo}) as server:
        yield server
