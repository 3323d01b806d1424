"""This tree against an older commit, in one run: the same answers bit for bit, and the same speed.

Run with `python -m benchmarks.commits COMMIT`. Both trees take turns in processes of their own, with one thread, on the
demo with either main member and every preset that both know. Requests run one after another, so that no batch depends
on timing. What is compared: texts, ids, the bits of log-probabilities and of scores, and the seconds of decoding.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import deepen_core
from benchmarks.report import publish

ROOT = Path(__file__).parents[1]
_PRESETS = ("deepen", "deepen-paper")
_TOKENS = 48


def measure(preset: str, main: int, questions: int) -> dict[str, Any]:
    """Hash of all that an ensemble answers, and the seconds that it took, after one answer to warm up."""
    digest = hashlib.sha256()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ensemble = deepen_core.Ensemble.demo(main=main, fusion=preset)
    with ensemble:
        asked = [f"Question: Where does person {number} live?\nAnswer:" for number in range(questions)]
        ensemble.generate(asked[0], max_new_tokens=_TOKENS, ignore_eos=True)
        began = time.perf_counter()
        for text in asked:
            answer = ensemble.generate(text, max_new_tokens=_TOKENS, ignore_eos=True, logprobs=3)
            digest.update(repr((answer.text, answer.token_ids)).encode())
            digest.update(repr(answer.logprobs).encode())  # `repr` of a float tells its every bit
        score = ensemble.score(asked[0], " In a house by the sea.")
        seconds = time.perf_counter() - began
        digest.update(repr(score).encode())
    return {"preset": preset, "main": main, "answers": digest.hexdigest(), "seconds": seconds}


def run(tree: Path, folder: Path, questions: int) -> list[dict[str, Any]]:
    """Measures a tree in a process of its own, whose files, where a commit keeps some, go into a folder."""
    environment = {**os.environ, "PYTHONPATH": f"{tree / 'core'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    environment["DEEPEN_CACHE_DIR"] = str(folder)
    command = [sys.executable, __file__, "--measure", "--questions", str(questions)]
    done = subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    came_from, *found = json.loads(done.stdout)
    assert Path(came_from).is_relative_to(tree), f"{came_from} is not the code of {tree}"
    return found


def main() -> None:
    """Measures both trees and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", nargs="?", default="HEAD")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--measure", action="store_true", help="measure the tree that is imported, as JSON")
    given = parser.parse_args()
    if given.measure:
        found = [measure(preset, m, given.questions) for preset in _PRESETS for m in (0, 1)]
        print(json.dumps([deepen_core.__file__, *found]))
        return
    with tempfile.TemporaryDirectory() as folder:
        old, folders = Path(folder) / "old", {"old": Path(folder) / "a", "new": Path(folder) / "b"}
        for own in folders.values():
            own.mkdir()
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", old, given.commit], cwd=ROOT, check=True)
        try:
            trees = {"old": old, "new": ROOT}
            rounds = [
                {name: run(tree, folders[name], given.questions) for name, tree in trees.items()}
                for _ in range(given.rounds)
            ]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", old], cwd=ROOT, check=True)
    rows = []
    for place, first in enumerate(rounds[0]["old"]):
        answers = {name: {r[name][place]["answers"] for r in rounds} for name in trees}
        ratios = [r["new"][place]["seconds"] / r["old"][place]["seconds"] for r in rounds]
        rows.append(
            {
                "preset": first["preset"],
                "main": first["main"],
                "same bits": answers["old"] == answers["new"] and len(answers["new"]) == 1,
                "old s": min(r["old"][place]["seconds"] for r in rounds),
                "new s": min(r["new"][place]["seconds"] for r in rounds),
                "new / old, median of rounds": statistics.median(ratios),
            }
        )
    publish("commits", f"This tree against {given.commit}", rows, rounds=given.rounds)


if __name__ == "__main__":
    main()
