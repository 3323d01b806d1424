"""What is looked at in the models of both frameworks."""

import gc
import weakref

import pytest
from scheduler_parts import running_workers

ENDINGS = pytest.mark.parametrize("ending", ["close", "with", "garbage"])


def check_the_last_frees(models, ask, ending):
    """Two models share an ensemble, which is loaded once and released with the second of them.

    Args:
        models: The two, with nothing else that refers to them; the list is emptied.
        ask: Has a model answer, the same whenever it is asked.
        ending: How the second one lets go. Closed models are still there when that is looked at.
    """
    before = running_workers()
    first, second = models
    models.clear()
    answer = ask(first)
    assert answer
    assert ask(second) == answer
    assert first.ensemble is second.ensemble
    ensemble = weakref.ref(first.ensemble)
    weights = weakref.ref(next(first.ensemble._engine.members[0].model.parameters()))
    first.close()
    assert ask(second) == answer
    if ending == "close":
        second.close()
    elif ending == "with":
        with second:
            pass
    else:
        del second
    gc.collect()
    assert ensemble() is None
    assert weights() is None
    assert running_workers() <= before  # of other tests' workers some may have ended meanwhile
