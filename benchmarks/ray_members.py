"""Members in Ray actors against the same ones in this process: answers, milliseconds a step, and bytes on the wire.

Run with `python -m benchmarks.ray_members --models FOLDER`, a folder with those of `benchmarks.given_text.MODELS`;
`--help` lists the options. Everything runs on this machine, one thread for each process. All ensembles are open at the
same time and take turns, prompt by prompt, so that other work on the machine slows down all of them.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.real_speed import PROMPTS, Forwards
from benchmarks.report import publish
from deepen_core import Ensemble, MemberConfig
from deepen_core.results import Generation

TOP_K = 512
PAIRS = (("smollm2-135m", "qwen-coder-0.5b"), ("qwen-coder-0.5b", "qwen-coder-0.5b"))
"""Pairs whose members both run in actors: an unequal one, and one whose members take equally long."""


def loaded(folders: Sequence[Path], dtype: str, far: Mapping[int, int | None]) -> Ensemble:
    """Loads an ensemble.

    Args:
        folders: The models; the first one is main.
        dtype: Of all of them.
        far: The numbers of members in actors, each with its top k.
    """
    members = [
        MemberConfig(model=str(folder), ray={"num_cpus": 0.25, "top_k": far[n]} if n in far else None)
        for n, folder in enumerate(folders)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Ensemble.load(members, dtype=dtype, device="cpu", progress=False)


def step_ms(answer: Generation) -> float:
    """Milliseconds a step, without the first one."""
    return 1e3 * answer.timings.decode_s / (len(answer.token_ids) - 1)


def wire(ensemble: Ensemble) -> tuple[int, int]:
    """Bytes sent and received by all members."""
    told = [member.elsewhere for member in ensemble.info.members if member.elsewhere is not None]
    return sum(one.bytes_sent for one in told), sum(one.bytes_received for one in told)


def against_here(here: Generation, there: Generation) -> tuple[int, int, float]:
    """Compares an answer with that of the members in this process, up to the first other choice.

    Returns:
        Steps compared, those with the same choice, and the largest difference of a log-probability of a choice.
    """
    pairs = list(zip(here.token_ids, there.token_ids, strict=True))
    same = next((n for n, (one, other) in enumerate(pairs) if one != other), len(pairs))
    assert here.logprobs is not None
    assert there.logprobs is not None
    both = zip(here.logprobs[:same], there.logprobs[:same], strict=True)
    apart = max((abs(one.logprob - other.logprob) for one, other in both), default=0.0)
    return min(same + 1, len(pairs)), same, apart


def one_actor(folders: Sequence[Path], dtype: str, tokens: int) -> list[dict[str, Any]]:
    """Compares a member in this process with the same one in an actor, which sends everything or the top."""
    options: dict[str, Any] = {"max_new_tokens": tokens, "ignore_eos": True, "logprobs": 0}
    with ExitStack() as stack:
        ways = {
            name: stack.enter_context(loaded(folders, dtype, far))
            for name, far in (("here", {}), ("actor, all tokens", {1: None}), (f"actor, top {TOP_K}", {1: TOP_K}))
        }
        for ensemble in ways.values():
            ensemble.generate("Hello", max_new_tokens=2)
        before = {name: wire(ensemble) for name, ensemble in ways.items()}
        answers = [{name: ensemble.generate(p, **options) for name, ensemble in ways.items()} for p in PROMPTS]
        after = {name: wire(ensemble) for name, ensemble in ways.items()}
    rows = []
    for name in ways:
        compared = [against_here(each["here"], each[name]) for each in answers]
        steps = sum(len(each[name].token_ids) for each in answers)
        sent, received = (b - a for a, b in zip(before[name], after[name], strict=True))
        rows.append(
            {
                "main": folders[0].name,
                "other": folders[1].name,
                "dtype": dtype,
                "other runs": name,
                "steps compared": sum(n for n, _, _ in compared),
                "same choices": sum(n for _, n, _ in compared) / sum(n for n, _, _ in compared),
                "largest difference": max(apart for _, _, apart in compared),
                "ms a step": median(step_ms(each[name]) for each in answers),
                "bytes sent a step": sent / steps,
                "bytes received a step": received / steps,
            }
        )
    return rows


def two_actors(folders: Sequence[Path], dtype: str, tokens: int) -> dict[str, Any]:
    """Compares a step of two members in actors with the sum of their forwards in this process, one after the other.

    Times are those of the fastest answer: other work on the two cores, which both ways share, only ever adds to them.
    """
    options: dict[str, Any] = {"max_new_tokens": tokens, "ignore_eos": True}
    with loaded(folders, dtype, {}) as here, loaded(folders, dtype, {0: TOP_K, 1: TOP_K}) as there:
        forwards = Forwards(here)
        for ensemble in (here, there):
            ensemble.generate("Hello", max_new_tokens=2)
        sums, steps, whole = [], [], []
        for prompt in PROMPTS:
            here.forget()
            began = forwards.seconds
            here.generate(prompt, max_new_tokens=1)
            here.forget()
            first, began = forwards.seconds - began, forwards.seconds
            answer = here.generate(prompt, **options)
            sums.append(1e3 * (forwards.seconds - began - first) / (len(answer.token_ids) - 1))
            whole.append(step_ms(answer))
            steps.append(step_ms(there.generate(prompt, **options)))
    ratios = [step / forward for step, forward in zip(steps, sums, strict=True)]
    return {
        "main": folders[0].name,
        "other": folders[1].name,
        "dtype": dtype,
        "forwards here ms": min(sums),
        "a step here ms": min(whole),
        "a step of two actors ms": min(steps),
        "ratio": min(steps) / min(sums),
        "ratios of answers, lowest to highest": f"{min(ratios):.2f} to {max(ratios):.2f}",
    }


def main() -> None:
    """Measures and publishes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"), help="the real models")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    given = parser.parse_args()
    if given.models is None:
        print("Give --models, a folder with the real models.")
        return
    torch.set_num_threads(1)
    loads = [os.getloadavg()[0]]
    rows, together = [], []
    for dtype in given.dtypes:
        rows += one_actor([given.models / name for name in PAIRS[0]], dtype, given.tokens)
        for pair in PAIRS:
            together.append(two_actors([given.models / name for name in pair], dtype, given.tokens // 2))
            loads.append(os.getloadavg()[0])
            print(together[-1], loads[-1], flush=True)
    spread = f"{min(loads):.1f} to {max(loads):.1f}"
    publish("ray_members", "Members in Ray actors", rows, together=together, load=spread)


if __name__ == "__main__":
    main()
