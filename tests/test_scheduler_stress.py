"""Many callers of all kinds at once: every answer is the serial one, and nothing is left behind."""

import threading

import pytest
from resident import STATM, least_resident
from scheduler_parts import FAILING, MixedLoad, fails_at, hook, sequences_held

OPTIONS = {"max_new_tokens": 10, "temperature": 0.9, "seed": 4, "ignore_eos": True}


@pytest.mark.parametrize("options", [OPTIONS, {**OPTIONS, "temperature": 0.0}], ids=["sampled", "greedy"])
def test_mixed_callers_get_the_serial_answers(load, options):
    with load("alpha", "beta", max_batch_size=6) as ensemble:
        before = set(threading.enumerate())
        beta = hook(ensemble, 1)
        beta.fail = fails_at(beta, FAILING, RuntimeError("injected"))
        mixed = MixedLoad(ensemble, options, cancelled=0.15, failing=0.1)
        mixed.run(150)
        assert sequences_held(ensemble) == 0
        assert max(beta.forwards) > 1
    assert mixed.counts["whole"] > 80
    assert mixed.counts["cancelled"] > 5
    assert mixed.counts["failed"] > 3
    assert sum(mixed.counts.values()) == 150
    assert set(threading.enumerate()) <= before


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="memory is read from /proc")
def test_five_thousand_generations_leave_nothing_behind(load):
    """Eight threads and four event loops, one in ten cancelled, one in fifty failing."""
    with load("alpha", "beta", max_batch_size=8) as ensemble:
        before = set(threading.enumerate())
        beta = hook(ensemble, 1)
        beta.fail = fails_at(beta, FAILING, RuntimeError("injected"))
        mixed = MixedLoad(ensemble, {**OPTIONS, "max_new_tokens": 8})
        mixed.run(996, threads=8, loops=4)  # to warm up
        warm = least_resident(lambda: mixed.run(1_248, threads=8, loops=4), 2)
        grown = least_resident(lambda: mixed.run(1_248, threads=8, loops=4), 2) / warm - 1
        assert sequences_held(ensemble) == 0
        for member in ensemble._engine.members:  # the last answer's text
            assert sum(len(slot.ids) for slot in member._ways.short.cache.slots) < 100
        ensemble.forget()
        assert all(not member._ways.short.cache.slots for member in ensemble._engine.members)
    print(f"{mixed.counts}, resident memory {warm:.0f} MiB, grown by {grown:.2%}")
    assert sum(mixed.counts.values()) == 5_988
    assert mixed.counts["cancelled"] > 300
    assert mixed.counts["failed"] > 50
    assert grown < 0.02
    assert set(threading.enumerate()) <= before
