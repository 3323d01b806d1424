"""Every error of the project can be copied, pickled and raised again in another process."""

import copy
import importlib
import pickle
import pkgutil

import pytest

import deepen_core
import deepen_integrations
from deepen_core import errors
from deepen_core.errors import DeepenError, PromptError
from deepen_integrations.langchain.partial_failures import AnsweredPrompt, PartialFailureError
from deepen_integrations.serve.errors import ApiError

NOT_REQUIRED = {"ray"}  # the one extra that the tests do without


def modules():
    for package in (deepen_core, deepen_integrations):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                try:
                    yield importlib.import_module(found.name)
                except ImportError as missing:
                    if missing.name not in NOT_REQUIRED:
                        raise


def every_class():
    found = {
        kind
        for module in modules()
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, (BaseException, Warning))
        and kind.__module__.startswith(("deepen_core", "deepen_integrations"))
    }
    return sorted(found, key=lambda kind: (kind.__module__, kind.__qualname__))


def made(kind):
    if kind is PartialFailureError:
        return kind(["a", "b", "a"], [PromptError("no"), "yes", "again"])
    return kind(400, "what was wrong", param="stop") if kind is ApiError else kind("what was wrong")


@pytest.mark.parametrize("kind", every_class(), ids=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
def test_an_error_survives_copies_and_pickles(kind):
    error = made(kind)
    for again in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is kind
        assert str(again) == str(error)
        assert vars(again).keys() == vars(error).keys()
        assert isinstance(again, DeepenError) == issubclass(kind, DeepenError)
        with pytest.raises(kind):
            raise again


def test_all_are_found():
    names = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert names <= set(every_class())


def test_a_copied_failure_has_the_outcomes():
    error = made(PartialFailureError)
    error.take("a")
    again = pickle.loads(pickle.dumps(error))
    first, second = again.take("a"), again.take("a")
    assert str(first.outcome) == "no"
    assert second.outcome == "again"
    assert not isinstance(again.take("a"), AnsweredPrompt)
    assert copy.deepcopy(again.take("b")).outcome == "yes"
