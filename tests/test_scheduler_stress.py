"""Many callers of all kinds at once: every answer is the serial one, and nothing is left behind."""

import threading

import pytest
from scheduler_parts import FAILING, MixedLoad, fails_at, hook, rows_held

OPTIONS = {"max_new_tokens": 10, "temperature": 0.9, "seed": 4, "ignore_eos": True}


@pytest.mark.parametrize("options", [OPTIONS, {**OPTIONS, "temperature": 0.0}], ids=["sampled", "greedy"])
def test_mixed_callers_get_the_serial_answers(load, options):
    before = set(threading.enumerate())
    with load("alpha", "beta", max_batch_size=6) as ensemble:
        beta = hook(ensemble, 1)
        beta.fail = fails_at(beta, FAILING, RuntimeError("injected"))
        mixed = MixedLoad(ensemble, options, cancelled=0.15, failing=0.1)
        mixed.run(150)
        assert rows_held(ensemble) == 0
        assert max(beta.forwards) > 1
    assert mixed.counts["whole"] > 80
    assert mixed.counts["cancelled"] > 5
    assert mixed.counts["failed"] > 3
    assert sum(mixed.counts.values()) == 150
    assert set(threading.enumerate()) <= before
