"""Gives every public way in hostile inputs, and counts what comes back that is not an error of the project.

Run with `python -m benchmarks.fuzz --inputs 100000`; `--entries` names some of them. `--first N` goes on after N
inputs; if the published line has N, the new ones are added to it. Each input is drawn from the seed, the entry's name
and its number, so that a finding can be repeated with `--first NUMBER --inputs 1`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.fuzz_entries import Entry, entries
from benchmarks.fuzz_inputs import Mutator
from benchmarks.report import RESULTS, publish, read
from deepen_core.errors import is_failure

_SLOW_S = 10.0


@dataclass
class Found:
    """What came of the inputs of one entry."""

    inputs: int = 0
    refused: int = 0
    """Inputs that ended with an allowed error."""
    seconds: float = 0.0
    slowest: float = 0.0
    """Seconds of the input that took longest."""
    others: dict[str, str] = field(default_factory=dict)
    """Other errors by where they were raised, with the number of the first input and the message."""


def fuzz(entry: Entry, numbers: Iterator[int] | range, seed: int) -> Found:
    """Gives an entry inputs.

    Args:
        entry: The entry.
        numbers: Of the inputs.
        seed: Of all inputs.
    """
    found, json_only = Found(), entry.name in ("bodies of the server", "model folders", "headers of weight files")
    began = time.perf_counter()
    for number in numbers:
        start = time.perf_counter()
        try:
            entry.attempt(Mutator(f"{seed}:{entry.name}:{number}", json_only=json_only))
        except entry.allowed:
            found.refused += 1
        except BaseException as problem:  # what is looked for
            if not is_failure(problem):
                raise
            place = traceback.extract_tb(problem.__traceback__)[-1]
            where = f"{type(problem).__name__} at {place.filename.rpartition('/')[2]}:{place.lineno}"
            found.others.setdefault(where, f"input {number}: {str(problem)[:200]}")
        took = time.perf_counter() - start
        found.inputs += 1
        found.slowest = max(found.slowest, took)
        if took > _SLOW_S:
            found.others.setdefault("too slow", f"input {number}: {took:.0f} s")
    found.seconds = time.perf_counter() - began
    return found


def merge(parts: Sequence[Found]) -> Found:
    """Returns what came of all inputs of an entry, of which each process had a part."""
    whole = Found()
    for part in parts:
        whole.inputs += part.inputs
        whole.refused += part.refused
        whole.seconds = max(whole.seconds, part.seconds)
        whole.slowest = max(whole.slowest, part.slowest)
        whole.others = {**part.others, **whole.others}
    return whole


def quiet() -> None:
    """Keeps this process to one thread, and its warnings and log to itself."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def fuzz_part(name: str, numbers: range, seed: int, minutes: float) -> Found:
    """Gives an entry, by its name, the inputs of one process."""
    with entries() as opened:
        entry = next(entry for entry in opened if entry.name == name)
        return fuzz(entry, _in_time(numbers, minutes, name), seed)


def row(name: str, found: Found) -> dict[str, Any]:
    """Returns an entry's line of the table."""
    return {
        "entry": name,
        "inputs": found.inputs,
        "refused": found.refused / max(1, found.inputs),
        "seconds": found.seconds,
        "slowest s": found.slowest,
        "other errors": len(found.others),
    }


def accumulate(before: dict[str, Any], line: dict[str, Any]) -> dict[str, Any]:
    """Returns an entry's line for the inputs of two runs, of which the second began where the first ended."""
    inputs = before["inputs"] + line["inputs"]
    refused = before["refused"] * before["inputs"] + line["refused"] * line["inputs"]
    sums = {name: before[name] + line[name] for name in ("seconds", "other errors")}
    return {**line, "inputs": inputs, "refused": refused / inputs, **sums} | {
        "slowest s": max(before["slowest s"], line["slowest s"])
    }


def main() -> None:
    """Fuzzes, and publishes the table after each entry; entries that were not asked for keep their lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="of each entry")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--entries", nargs="+", help="names, or parts of names")
    parser.add_argument("--minutes", type=float, default=1e9, help="of each entry at most")
    parser.add_argument("--processes", type=int, default=1, help="among which the inputs of an entry are divided")
    given = parser.parse_args()
    known = {line["entry"]: line for line in read("fuzz")["rows"]} if (RESULTS / "fuzz.json").is_file() else {}
    quiet()
    with entries() as opened:
        names = [entry.name for entry in opened]
    spawned, processes = multiprocessing.get_context("spawn"), given.processes
    with ProcessPoolExecutor(processes, mp_context=spawned, initializer=quiet) as pool:
        for name in names:
            if given.entries and not any(name == part if part in names else part in name for part in given.entries):
                continue
            firsts = range(given.first, given.first + processes)
            numbers = [range(first, given.first + given.inputs, processes) for first in firsts]
            parts = [pool.submit(fuzz_part, name, some, given.seed, given.minutes) for some in numbers]
            found = merge([part.result() for part in parts])
            line, before = row(name, found), known.get(name)
            known[name] = accumulate(before, line) if before and 0 < before["inputs"] == given.first else line
            print(known[name], *(f"{where}: {said}" for where, said in found.others.items()), sep="\n  ", flush=True)
            with contextlib.redirect_stdout(None):
                publish("fuzz", "Hostile inputs to every public way in", list(known.values()), seed=given.seed)


def _in_time(numbers: range, minutes: float, name: str) -> Iterator[int]:
    end = time.monotonic() + 60 * minutes
    for number in tqdm(numbers, desc=name, leave=False, disable=None):
        if time.monotonic() > end:
            return
        yield number


if __name__ == "__main__":
    main()
