"""Freed memory goes back to the system: between steps for at most 0.5 % of the time, and when idle."""

import threading
import time
from types import SimpleNamespace

import pytest

from deepen_core.members import memory
from deepen_core.members.memory import FreedMemory


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for `now`, and by `cost` seconds each time memory is returned; counts these."""
    clock = SimpleNamespace(now=100.0, cost=0.0, returned=0)

    def returns():
        clock.now += clock.cost
        clock.returned += 1

    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(memory, "return_freed", returns)
    return clock


@pytest.mark.parametrize(("step_s", "cost", "most"), [(0.002, 0.001, 60), (0.1, 0.05, 6), (3.0, 0.0, 20)])
def test_it_is_returned_each_second_unless_that_takes_long(clock, step_s, cost, most):
    freed, started, clock.cost = FreedMemory(), clock.now, cost
    while clock.now < started + 60:
        clock.now += step_s
        freed.after_step()
    assert most - 2 <= clock.returned <= most
    assert clock.returned * cost <= 0.005 * (clock.now - started)


@pytest.mark.parametrize("asked", [0, 3])
def test_a_worker_without_work_returns_it_once(load, monkeypatch, asked):
    returned = threading.Semaphore(0)
    with load("alpha", "beta") as ensemble:
        monkeypatch.setattr("deepen_core.engine.worker._IDLE_S", 0.02)
        monkeypatch.setattr(ensemble._engine.worker._freed, "give_back", returned.release)
        monkeypatch.setattr(ensemble._engine.worker._freed, "after_step", lambda: None)
        for _ in range(asked):
            ensemble.generate("The", max_new_tokens=2)
            assert returned.acquire(timeout=30)
        time.sleep(0.2)
        assert not returned.acquire(blocking=False), "it sleeps until there is work"


def test_it_is_returned_between_steps(load, monkeypatch):
    returned = []
    with load("alpha", "beta") as ensemble:
        monkeypatch.setattr(ensemble._engine.worker._freed, "after_step", lambda: returned.append(1))
        ensemble.generate("The", max_new_tokens=5, ignore_eos=True)
    assert len(returned) >= 5
