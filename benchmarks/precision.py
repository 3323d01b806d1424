"""Tokens per second of a batch of a real pair in half precision, against float32, in one process.

Run with `python -m benchmarks.precision --models FOLDER`, a folder of model folders; `--help` lists the options. The
dtypes take turns, and the best turn of each counts. Beside the pair stand its members as `transformers` runs them, one
after the other, on the same batch: on a CPU without instructions for bfloat16 half precision is slower there too, and
most of all where long prompts are read.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.report import publish
from deepen_core import Ensemble

DTYPES = ("float32", "bfloat16", "float16")
PROMPTS = [
    f"Write a story about {what}." for what in "dogs,the sea,a baker,rain,a clock,two friends,ice,a map".split(",")
]


def tokens_per_second(ensemble: Ensemble, tokens: int) -> float:
    """Of one batch of as many conversations as there are prompts."""
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    ensemble.forget()
    started = time.perf_counter()
    answers = ensemble.generate(prompts, max_new_tokens=tokens, ignore_eos=True)
    return sum(len(answer.token_ids) for answer in answers) / (time.perf_counter() - started)


def transformers_tokens_per_second(models: Sequence[Any], tokenizers: Sequence[Any], tokens: int) -> float:
    """Of the members one after the other, on the same batch."""
    started = time.perf_counter()
    for model, tokenizer in zip(models, tokenizers, strict=True):
        chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
        batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt").to(model.device)
        model.generate(**batch, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)
    return len(PROMPTS) * tokens / (time.perf_counter() - started)


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"), help="the real models")
    parser.add_argument("--members", nargs="+", default=["smollm2-135m", "qwen-coder-0.5b"], help="main first")
    parser.add_argument("--dtypes", nargs="+", default=DTYPES)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
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
        tokenizers = [AutoTokenizer.from_pretrained(folder, padding_side="left") for folder in folders]
        for tokenizer in tokenizers:
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        alone = {
            d: [AutoModelForCausalLM.from_pretrained(f, dtype=d).to(given.device) for f in folders]
            for d in given.dtypes
        }
        for ensemble in tqdm(opened.values(), desc="warming up", leave=False):  # builds the rows that the answers need
            tokens_per_second(ensemble, given.tokens)
        best, theirs = dict.fromkeys(opened, 0.0), dict.fromkeys(opened, 0.0)
        for _ in tqdm(range(given.repeats), desc="repeats", leave=False):
            for dtype, ensemble in opened.items():
                best[dtype] = max(best[dtype], tokens_per_second(ensemble, given.tokens))
                reached = transformers_tokens_per_second(alone[dtype], tokenizers, given.tokens)
                theirs[dtype] = max(theirs[dtype], reached)
        rows = [
            {
                "main": given.members[0],
                "others": ", ".join(given.members[1:]),
                "dtype": dtype,
                "batching": ", ".join(member.batching for member in ensemble.info.members),
                "batch": len(PROMPTS),
                "tokens/s": best[dtype],
                "of float32": best[dtype] / best[given.dtypes[0]],
                "transformers, of float32": theirs[dtype] / theirs[given.dtypes[0]],
                "of transformers": best[dtype] / theirs[dtype],
            }
            for dtype, ensemble in opened.items()
        ]
    publish("precision", "Batches of a real pair in half precision", rows)


if __name__ == "__main__":
    main()
