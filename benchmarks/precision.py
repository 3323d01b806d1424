"""Tokens per second of a batch of a real pair in half precision, against float32, in one process.

Run with `python -m benchmarks.precision --models FOLDER`, the folder in which `../shared/real/make.py` has made the
models; `--help` lists the options. The dtypes take turns, and the best turn of each counts.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

import torch
from tqdm.auto import tqdm

from benchmarks.report import publish
from deepen_core import Ensemble

DTYPES = ("float32", "bfloat16", "float16")
PROMPTS = [
    f"Write a story about {what}." for what in "dogs,the sea,a baker,rain,a clock,two friends,ice,a map".split(",")
]


def tokens_per_second(ensemble: Ensemble, tokens: int) -> float:
    """Of one batch of as many conversations as there are prompts."""
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    started = time.perf_counter()
    answers = ensemble.generate(prompts, max_new_tokens=tokens, ignore_eos=True)
    return sum(len(answer.token_ids) for answer in answers) / (time.perf_counter() - started)


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"), help="the real models")
    parser.add_argument("--members", nargs="+", default=["smollm2-135m", "qwen-coder-0.5b"], help="main first")
    parser.add_argument("--dtypes", nargs="+", default=DTYPES)
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    if given.models is None:
        print("Give --models, the folder of the real models.")
        return
    torch.set_num_threads(given.threads)
    folders = [given.models / name for name in given.members]
    with ExitStack() as stack:
        warnings.simplefilter("ignore")
        opened = {d: stack.enter_context(Ensemble.load(folders, dtype=d, device=given.device)) for d in given.dtypes}
        for ensemble in tqdm(opened.values(), desc="warming up", leave=False):  # builds the rows that the answers need
            tokens_per_second(ensemble, given.tokens)
        best = dict.fromkeys(opened, 0.0)
        for _ in tqdm(range(given.repeats), desc="repeats", leave=False):
            for dtype, ensemble in opened.items():
                best[dtype] = max(best[dtype], tokens_per_second(ensemble, given.tokens))
        rows = [
            {
                "main": given.members[0],
                "others": ", ".join(given.members[1:]),
                "dtype": dtype,
                "batching": ", ".join(member.batching for member in ensemble.info.members),
                "batch": len(PROMPTS),
                "tokens/s": best[dtype],
                "of float32": best[dtype] / best[given.dtypes[0]],
            }
            for dtype, ensemble in opened.items()
        ]
    publish("precision", "Batches of a real pair in half precision", rows)


if __name__ == "__main__":
    main()
