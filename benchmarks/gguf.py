"""An ensemble of GGUF files against the same weights in float32 folders: tokens per second, memory, equal choices.

Run with `python -m benchmarks.gguf --models FOLDER`, a folder that has `NAME.gguf` beside each folder `NAME`; `--help`
lists the options. Each setting runs in a process of its own, one after the other, so that the peak of its memory is its
own. The folders should hold the weights of the files, dequantised, or the equal choices tell something else.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.real_speed import PROMPTS
from benchmarks.report import publish
from benchmarks.server_members import PROMPTS as STORIES
from benchmarks.server_members import Pair, as_float, compare, member_apart, texts
from deepen_core import Ensemble, MemberConfig
from deepen_core.members.loading import describe_member

TEXTS = [Path(__file__).parents[1] / name for name in ("docs/how_it_works.md", "benchmarks/real_speed.py")]
_MIB = 2**20


def peak_mib() -> float:
    """The most memory that this process has had; macOS counts bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (_MIB if sys.platform == "darwin" else 1024)


def measure(models: Sequence[str], tokens: int) -> dict[str, float]:
    """Time and memory of an ensemble, in this process."""
    for model in models:  # what both settings need besides: libraries, tokenizers
        describe_member(MemberConfig(model=model, name="described"), "cpu", "float32", progress=False)
    before, began = peak_mib(), time.perf_counter()
    with Ensemble.load(models, dtype="float32", device="cpu", progress=False) as ensemble:
        load_s = time.perf_counter() - began
        options: dict[str, Any] = {"max_new_tokens": tokens, "ignore_eos": True}
        ensemble.generate("Hello", max_new_tokens=2)
        wall, used = time.perf_counter(), time.process_time()
        ensemble.generate(PROMPTS[0], **options)
        wall, used = time.perf_counter() - wall, time.process_time() - used
        together = time.perf_counter()
        ensemble.generate(PROMPTS, **options)
        together = time.perf_counter() - together
        prompt = " ".join(PROMPTS * 3)
        first = time.perf_counter()
        ensemble.generate(prompt, max_new_tokens=1)
        first = time.perf_counter() - first
        return {
            "load s": load_s,
            "tokens/s": tokens / wall,
            "tokens/s of CPU time": tokens / used,
            "tokens/s, batch of 8": len(PROMPTS) * tokens / together,
            "prompt tokens": ensemble.count_tokens(prompt),
            "first token s": first,
            "peak MiB": peak_mib(),
            "before loading MiB": before,
        }


@torch.inference_mode()
def agreement(name: str, folder: str, file: str) -> dict[str, Any]:
    """How often a file and its dequantised weights choose the same token, at every place of some texts."""
    config = MemberConfig(model=file, name=name)
    member: Any = describe_member(config, None, None, progress=False).load(progress=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    same, places, distance = 0, 0, 0.0
    for path in TEXTS:
        ids = member.tokenizer.encode(path.read_text(encoding="utf-8"))[:400]
        found, expected = logits_of(member, ids).log_softmax(-1), model(torch.tensor([ids])).logits[0].log_softmax(-1)
        same += int((found.argmax(-1) == expected.argmax(-1)).sum())
        distance += float((found.exp() - expected.exp()).abs().sum() / 2)
        places += len(ids)
    return {"model": name, "places": places, "same choice": same / places, "mean total variation": distance / places}


def same_weights(main: Path, folder: Path, file: Path, steps: int) -> dict[str, Any]:
    """An ensemble whose second member is a folder, and one where it is a file of the same weights in float32."""
    with tempfile.TemporaryDirectory() as scratch:
        exact = Path(scratch) / "float32.gguf"
        as_float(file, exact)
        pairs = [Pair(main, folder, None), Pair(main, exact, None)]
        given = texts(pairs[0], steps // len(STORIES))
        found = {"main": main.name, "member": folder.name, **compare(*pairs, given)}
        return found | {"member logprob apart": member_apart(*pairs, given)}


def logits_of(member: Any, ids: Sequence[int]) -> torch.Tensor:
    """Logits of a GGUF member after each of some ids."""
    pool, parts = member._runner._pool, []
    with pool.busy():
        pool.make_room(len(ids), 1)
        slot = pool.take()
        step = pool.context.outputs
        for start in range(0, len(ids), step):
            new = ids[start : start + step]
            parts.append(pool.run([(slot, new, len(new))]))
        slot.free()
    return torch.cat(parts)


def in_a_process(*arguments: str) -> Any:
    """What this module prints with some arguments."""
    command = [sys.executable, "-m", "benchmarks.gguf", *arguments]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    """Measures and publishes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=os.environ.get("DEEPEN_REAL_MODELS"), help="the real models")
    parser.add_argument("--members", nargs="+", default=["smollm2-135m", "qwen-coder-0.5b"], help="main first")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=500, help="in which a file of the same weights is compared")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--agreement", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--same", nargs=3, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    if given.measure:
        print(json.dumps(measure(given.measure, given.tokens)))
        return
    if given.agreement:
        print(json.dumps(agreement(*given.agreement)))
        return
    if given.same:
        print(json.dumps(same_weights(*given.same, given.steps)))
        return
    if given.models is None:
        print("Give --models, the folder of the real models.")
        return
    folders = [str(given.models / name) for name in given.members]
    files = [f"{folder}.gguf" for folder in folders]
    options = ["--tokens", str(given.tokens), "--threads", str(given.threads)]
    found = {
        kind: in_a_process(*options, "--measure", *models)
        for kind, models in {"float32 folders": folders, "GGUF files": files}.items()
    }
    plain = found["float32 folders"]
    rows = [
        {
            "ensemble": kind,
            **one,
            "faster": one["tokens/s"] / plain["tokens/s"],
            "of its peak": one["peak MiB"] / plain["peak MiB"],
            "of its members": (one["peak MiB"] - one["before loading MiB"])
            / (plain["peak MiB"] - plain["before loading MiB"]),
        }
        for kind, one in found.items()
    ]
    choices = [
        in_a_process(*options, "--agreement", name, folder, file)
        for name, folder, file in zip(given.members, folders, files, strict=True)
    ]
    options += ["--steps", str(given.steps)]
    same = in_a_process(*options, "--same", folders[0], folders[1], files[1])
    publish("gguf", f"GGUF files against float32: {' + '.join(given.members)}", rows, choices=choices, same=same)


if __name__ == "__main__":
    main()
