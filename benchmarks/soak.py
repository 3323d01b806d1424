"""Many callers of one ensemble for long, in quiet and under attack: wrong answers, memory, time between tokens.

Run with `python -m benchmarks.soak --minutes 30`; `--help` lists the options. Sixteen callers ask the demo's members,
from threads and an event loop, of the engine and of both adapters: texts, conversations, tools and schemas, cancelled
and timed out. They run in quiet first. Under attack, a hostile caller on their event loop sends each of its inputs once
a second, and every ten seconds a member fails or hangs, and recovers. A last run is a control: the hostile caller is
another process with an ensemble of its own, so that it takes nothing from the others but the machine's time.

Each answer is compared with the same caller's first one, made alone. Those that overlap a fault of the member may be
main's own; they are counted apart.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import publish
from benchmarks.soak_callers import CALLERS, Caller, Loop
from benchmarks.soak_faults import Faults, FaultyMember, Hostile
from deepen_core import Ensemble
from deepen_core.demo import member_paths
from deepen_core.members.loading import describe_member, load_members, member_configs
from deepen_core.progress import Steps

STEP_TIMEOUT_S = 3.0
QUIET, ATTACKED, CONTROL = "quiet", "attacked", "hostile caller in another process"
_HANG_S = 120.0  # a caller whose request takes longer hangs


def opened() -> tuple[Ensemble, FaultyMember]:
    """Returns an ensemble of the demo's members, and the member that can be made to fail."""
    configs = member_configs([str(path) for path in member_paths()])
    described = [describe_member(config, "cpu", "auto", progress=False) for config in configs]
    main, other = load_members(described, Steps("Loading", "the demo", 4, shown=False))
    faulty = FaultyMember(other)
    return (
        Ensemble.from_members([main, faulty], step_timeout=STEP_TIMEOUT_S, on_member_error="drop"),  # type: ignore[list-item]
        faulty,
    )


def resident_mib() -> float:
    """Returns the memory that this process holds now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


class Run:
    """One run of all callers.

    Args:
        callers: The callers.
        seconds: How long they go on.
        faults: When the member was at fault; None if it never is.
    """

    def __init__(self, callers: Sequence[Caller], seconds: float, faults: Faults | None = None) -> None:
        self._callers = callers
        self._until = time.monotonic() + seconds
        self._faults = faults
        self._memory: list[tuple[float, float]] = []

    def going_on(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self._until

    def measure(self, name: str) -> dict[str, Any]:
        """Lets all callers ask until the time is over, and returns what came of it."""
        for caller in self._callers:
            caller.begin()
        loop = Loop([caller for caller in self._callers if caller.is_async], self.going_on)
        threads = [threading.Thread(target=c.ask_on, args=(self.going_on,)) for c in self._callers if not c.is_async]
        threads.append(threading.Thread(target=loop.run))
        started = time.monotonic()
        for thread in threads:
            thread.start()
        while self.going_on():
            self._memory.append((time.monotonic() - started, resident_mib()))
            time.sleep(min(5.0, max(0.1, self._until - time.monotonic())))
        for thread in threads:
            thread.join(_HANG_S)
        self._memory.append((time.monotonic() - started, resident_mib()))
        return {"run": name, **self._found(sum(thread.is_alive() for thread in threads))}

    def _found(self, hanging: int) -> dict[str, Any]:
        spans = [] if self._faults is None else self._faults.spans
        outcomes = [one for caller in self._callers for one in caller.outcomes]
        beside = [one for one in outcomes if any(one.began <= stop and one.ended >= start for start, stop in spans)]
        apart = {id(one) for one in beside}
        wrong = [one for one in outcomes if not one.right and id(one) not in apart]
        for one in wrong[:5]:
            print(f"wrong, from {one.began:.2f} to {one.ended:.2f}:", one.what, flush=True)
        gaps = sorted(gap for caller in self._callers for gap in caller.gaps)
        after_a_minute = next((mib for at, mib in self._memory if at >= 60.0), self._memory[0][1])
        return {
            "requests": len(outcomes),
            "wrong": len(wrong),
            "beside a fault": len(beside),
            "hanging": hanging,
            "median ms": 1000 * statistics.median(gaps),
            "95 % ms": 1000 * gaps[int(0.95 * len(gaps))],
            "longest ms": 1000 * gaps[-1],
            "MiB at minute 1": after_a_minute,
            "MiB at the end": self._memory[-1][1],
        }


def hostile_process(stop: Any, threads: int) -> None:
    """Sends the hostile inputs to an ensemble of its own."""
    torch.set_num_threads(threads)
    with Ensemble.demo() as ensemble:
        Hostile(ensemble).alone(lambda: not stop.is_set())


def soak(minutes: float) -> list[dict[str, Any]]:
    """Runs the callers in quiet, under attack and beside a hostile process; half of the time is the attack's."""
    ensemble, faulty = opened()
    seconds = 60.0 * minutes
    with ensemble:
        ensemble.warm_up()
        callers = [make(ensemble) for make in CALLERS]
        for caller in callers:
            caller.learn()
        Run(callers, min(10.0, seconds / 10)).measure("warm-up")
        rows = [Run(callers, seconds / 4).measure(QUIET)]
        with Faults(faulty) as faults:
            run = Run([*callers, Hostile(ensemble)], seconds / 2, faults)
            rows.append(run.measure(ATTACKED))
        spawned = multiprocessing.get_context("spawn")
        stop = spawned.Event()
        process = spawned.Process(target=hostile_process, args=(stop, torch.get_num_threads()))
        process.start()
        try:
            rows.append(Run(callers, seconds / 4).measure(CONTROL))
        finally:
            stop.set()
            process.join(60)
    for row in rows:
        row["median, times quiet"] = row["median ms"] / rows[0]["median ms"]
        row["95 %, times quiet"] = row["95 % ms"] / rows[0]["95 % ms"]
    return rows


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="of all runs together")
    parser.add_argument("--threads", type=int, default=1, help="of the models, which are so small that more cost time")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = soak(given.minutes)
    publish("soak", "Sixteen callers, in quiet and under attack", rows, minutes=given.minutes)


if __name__ == "__main__":
    main()
