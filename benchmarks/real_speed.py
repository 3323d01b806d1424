"""Time on real pairs, cold and warm: what an ensemble takes beyond its members' own forwards, and until it is ready.

Run with `python -m benchmarks.real_speed --models FOLDER`, a folder with those of `benchmarks.given_text.MODELS`;
`--help` lists the options. Ratios are of one run in one process: the seconds inside the models' forwards are subtracted
from those of the whole. The start is a process of its own, against one that imports and reads the same with
`transformers` alone, weights to the last page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.given_text import MODELS, PAIRS, opened
from benchmarks.report import publish
from deepen_core import Ensemble

PROMPTS = [
    "The history of the lighthouse begins in the year when the first ships came to the bay, and",
    'def read_settings(path):\n    """Reads settings from a file, one `name = value` in each line."""\n    ',
    "Once upon a time there was a girl called Nora, who lived in a house at the edge of the forest. One day she",
    "The most important difference between a virus and a bacterium is that",
    "In the second chapter we look at how prices are formed in a market with many small sellers, and why",
    "class Queue:\n    def __init__(self, size):\n        self.size = size\n",
    "To bake a loaf of bread you need flour, water, salt and yeast. First",
    "The three branches of government are kept apart so that",
]
_LONG = [f"{n}. " + f"{p} " * (1 + 320 // len(p)) for n, p in enumerate(PROMPTS)]  # about 90 tokens, begun anew
_PLAIN = """
import json, sys, time
began = time.perf_counter()
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[3:]:
    AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=sys.argv[1]).to(sys.argv[2]).eval()
    for weights in model.parameters():  # files are only mapped until something reads them: every page of 4 KiB
        weights.detach().view(-1)[::1024].sum()
print(json.dumps(time.perf_counter() - began))
"""
_OURS = """
import json, sys, time
began = time.perf_counter()
import warnings
warnings.simplefilter("ignore")
from deepen_core import Ensemble
with Ensemble.load(sys.argv[3:], dtype=sys.argv[1], device=sys.argv[2], progress=False) as ensemble:
    next(iter(ensemble.stream("The history of the lighthouse", max_new_tokens=8)))
    print(json.dumps(time.perf_counter() - began))
"""


class Forwards:
    """Sums the seconds inside the forwards of an ensemble's models; on a GPU, each is waited for."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.seconds = 0.0
        self._ensemble = ensemble
        for member in ensemble._engine.members:
            member.model.forward = self._timed(member.model.forward)

    def _timed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return forward(*args, **options)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.seconds += time.perf_counter() - began

        return run

    def ratio(self, call: Callable[[], object]) -> float:
        """The seconds of a call over those of the forwards in it; whatever was asked before is forgotten."""
        self._ensemble.forget()
        before, began = self.seconds, time.perf_counter()
        call()
        return (time.perf_counter() - began) / (self.seconds - before)


def steps(ensemble: Ensemble, tokens: int) -> dict[str, float]:
    """Ratios over the members' forwards: a first token, a long answer new and repeated, and a batch of eight."""
    forwards = Forwards(ensemble)
    ensemble.generate("Hello", max_new_tokens=2)  # what the libraries do at their first use
    answer: dict[str, Any] = {"max_new_tokens": tokens, "ignore_eos": True}
    firsts = sorted(forwards.ratio(lambda p=p: ensemble.generate(p, max_new_tokens=1)) for p in PROMPTS)  # type: ignore[misc]
    return {
        "first token": firsts[len(firsts) // 2],
        "new answer": forwards.ratio(lambda: ensemble.generate(PROMPTS[0], **answer)),
        "the same, warm": forwards.ratio(lambda: ensemble.generate(PROMPTS[0], **answer)),
        "batch of 8": forwards.ratio(lambda: ensemble.generate(PROMPTS, **{**answer, "max_new_tokens": tokens // 4})),
    }


def first_token_over_transformers(ensemble: Ensemble, plain: Sequence[Any], prompts: Sequence[str]) -> float:
    """Time to a first token over that of `transformers`, of which each model reads the same ids once.

    The ratios above have the forwards as this package asks for them below the line, and would not tell if these were
    slow.

    Args:
        ensemble: The ensemble.
        plain: Its models, loaded by `transformers` alone.
        prompts: New to the ensemble.
    """
    members = ensemble._engine.members
    ratios = []
    for prompt in [f"Again. {prompts[-1]}", *prompts]:
        ensemble.forget()
        began = time.perf_counter()
        with torch.inference_mode():
            for member, model in zip(members, plain, strict=True):
                ids = [*member.tokenizer.reader.read_text(prompt).ids, *member.tokenizer.encode(prompt)]
                given = torch.tensor([ids], device=model.device)
                model(given, use_cache=True, logits_to_keep=1).logits.argmax(-1).tolist()  # waits for a GPU
        middle = time.perf_counter()
        ensemble.generate(f"{prompt} ", max_new_tokens=1)
        ratios.append((time.perf_counter() - middle) / (middle - began))
    return sorted(ratios[1:])[len(prompts) // 2]  # without the first one


def start(folders: Sequence[Path], dtype: str, device: str, repeats: int) -> dict[str, float]:
    """Seconds from the start of a process to the first token, and of importing and reading alone; the least of some."""

    def least(program: str) -> float:
        command = [sys.executable, "-c", program, dtype, device, *map(str, folders)]
        runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(repeats)]
        return min(float(json.loads(run.stdout.splitlines()[-1])) for run in runs)

    plain, ours = least(_PLAIN), least(_OURS)
    return {"importing and reading s": plain, "to the first token s": ours, "beyond s": ours - plain}


def main() -> None:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"), help="the real models")
    parser.add_argument("--tokens", type=int, default=200, help="of a long answer")
    parser.add_argument("--repeats", type=int, default=3, help="of each start")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.models is None:
        print(f"Give --models, a folder with {', '.join(MODELS)}.")
        return
    rows = []
    for dtype in given.dtypes:
        for names in PAIRS[:3]:
            folders = [given.models / name for name in names]
            with opened(given.models, names, dtype, given.device) as ensemble:
                found = steps(ensemble, given.tokens)
                plain = [
                    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(given.device).eval()
                    for folder in folders
                ]
                for name, prompts in (("", PROMPTS), (", long prompt", _LONG)):
                    beside = first_token_over_transformers(ensemble, plain, prompts)
                    found[f"first token, of transformers{name}"] = beside
                del plain
            found |= start(folders, dtype, given.device, given.repeats)
            rows.append({"main": names[0], "other": names[1], "dtype": dtype, **found})
            print(rows[-1], flush=True)
    publish("real_speed", "Time over the members' own forwards, and seconds to the first token", rows)


if __name__ == "__main__":
    main()
