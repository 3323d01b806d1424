"""What it costs to continue state-space and hybrid models from their states: time and ids run.

Run with `python -m benchmarks.recurrent`. The tokenizers for the counts are those beside the project.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.report import publish
from benchmarks.retokenisation import NAMES, SHARED, pieces
from deepen_core.chat.prompt_encoder import MemberPrompt
from deepen_core.members.base import Work
from deepen_core.members.sequence import KEPT_TAIL, MemberSequence
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.members.transformers import recurrent
from deepen_core.members.transformers.causal import CausalMember
from deepen_core.members.transformers.recurrent import RecurrentRunner
from deepen_core.members.transformers.recurrent_state import Recurrence
from deepen_core.members.transformers.sequential import SequentialRunner
from deepen_core.tokenization import retokenizer

_SIZES = {
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
_GRANITE = {"mamba_n_heads": 32, "mamba_d_head": 32, "mamba_d_state": 128, "shared_intermediate_size": 1024}
_QWEN = {"head_dim": 64, "linear_key_head_dim": 64, "linear_value_head_dim": 64, "linear_num_key_heads": 8}
FAMILIES = {
    "Mamba": ("MambaConfig", {"vocab_size": 8000, "hidden_size": 512, "num_hidden_layers": 16}),
    "Granite 4": (
        "GraniteMoeHybridConfig",
        {**_SIZES, **_GRANITE, "num_local_experts": 0, "layer_types": (["mamba"] * 3 + ["attention"]) * 2},
    ),
    "Qwen 3.5": ("Qwen3_5TextConfig", {**_SIZES, **_QWEN, "linear_num_value_heads": 16}),
    "LFM2": ("Lfm2Config", {**_SIZES, "layer_types": ["conv", "conv", "full_attention", "conv"] * 2}),
}


class Text(MemberSequence):
    """A sequence of random ids.

    Args:
        length: Number of ids.
        is_main: Whether none of them will change.
    """

    def __init__(self, length: int, *, is_main: bool) -> None:
        generator = torch.Generator().manual_seed(length)
        self.ids = torch.randint(3, 8000, (length,), generator=generator).tolist()
        self.cached, self.cache = 0, None
        self.started, self.tokens_run = False, 0
        self._recent, self._sure = {}, set()
        self._is_main = is_main

    @property
    def kept_tail(self) -> int:
        return 1 if self._is_main else KEPT_TAIL

    @property
    def settled(self) -> int:
        return len(self.ids) if self._is_main else 0

    def change(self, step: int) -> None:
        """Appends an id; every fourth time, one that is not main's has its last id changed too."""
        if step % 4 == 3 and not self._is_main:
            self.ids[-1] += 1
            self.cached = min(self.cached, len(self.ids) - 1)
        self.ids.append(3 + step)


@torch.inference_mode()
def measure_time(name: str, lengths: tuple[int, ...], steps: int) -> list[dict[str, Any]]:
    """Milliseconds per token, as the main member and as another one, against running the whole text each time."""
    kind, options = FAMILIES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, kind)(**options)).eval().requires_grad_(False)
    member = CausalMember(name, model, None, 4096)  # type: ignore[arg-type]
    member.warm_up()
    whole = SequentialRunner(model, 8000, Work(), keeps_cache=False)
    rows = []
    for length in lengths:
        ms = {
            "whole text ms": timed(whole, Text(length, is_main=True), 3),
            "main ms": timed(member, Text(length, is_main=True), steps),
            "other ms": timed(member, Text(length, is_main=False), steps),
        }
        ratios = {f"{who} speedup": ms["whole text ms"] / ms[f"{who} ms"] for who in ("main", "other")}
        rows.append({"family": name, "text": length, **ms, **ratios})
    return rows


def timed(runner: Any, sequence: Text, steps: int) -> float:
    """Milliseconds of a step: the median over rounds of four, of which each has its mean."""
    runner.next_logits([sequence])
    took = []
    for step in range(steps):
        sequence.change(step)
        began = time.perf_counter()
        runner.next_logits([sequence])
        took.append(1e3 * (time.perf_counter() - began))
    rounds = [statistics.mean(took[start : start + 4]) for start in range(0, steps, 4)]
    return statistics.median(rounds)


class Counted(torch.nn.Module):
    """A model that says and remembers nothing: only the ids that it is given are counted."""

    device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, state: Any = None, **_options: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(1, input_ids.shape[1], 1), state=state or [torch.zeros(1)])


def count(main: MemberTokenizer, other: MemberTokenizer, text: str, copies: int) -> dict[str, float]:
    """Ids that a listening member runs per token of main's with so many copies of its state, and those that changed."""
    spoken, work = pieces(main, text), Work()
    start = len(spoken) // 4
    runner = RecurrentRunner(Counted(), Recurrence(several=True), 1, work)
    sequence = MemberSequence(MemberPrompt([], "".join(spoken[:start]), inside=False), other, is_main=False)
    kept, recurrent.KEPT_COPIES = recurrent.KEPT_COPIES, copies
    try:
        runner.next_logits([sequence])
        work.ids_run = work.ids_rerun = 0
        for piece in spoken[start:]:
            sequence.append_text(piece)
            runner.next_logits([sequence])
    finally:
        recurrent.KEPT_COPIES = kept
    tokens = len(spoken) - start
    return {"new": work.ids_run / tokens, "run": (work.ids_run + work.ids_rerun) / tokens}


def measure_counts() -> list[dict[str, Any]]:
    """Counts for every pair of real tokenizers, and for a main member that speaks in characters."""
    folders = {**{n: SHARED / "tokenizers" / n for n in NAMES}, "characters": SHARED / "models" / "babyllama105"}
    sides = {n: MemberTokenizer(AutoTokenizer.from_pretrained(folder), n) for n, folder in folders.items()}
    stories = (SHARED / "data" / "tinystories_valid.txt").read_text(encoding="utf-8")
    code = [Path(file).read_text(encoding="utf-8") for file in (__file__, retokenizer.__file__)]
    rows = []
    for main, other in itertools.product(sides, NAMES):
        for kind, text in {"stories": stories[:8000], "code": "\n".join(code)}.items():
            if main == other or (main == "characters" and kind == "code"):  # it cannot spell code
                continue
            found = {copies: count(sides[main], sides[other], text, copies) for copies in (1, 2, 3, 6)}
            ran = {f"run with {copies}": counts["run"] for copies, counts in found.items()}
            rows.append({"main": main, "listener": other, "text": kind, "new ids / token": found[3]["new"], **ran})
    return rows


def main() -> None:
    """Measures and publishes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--steps", type=int, default=24)
    given = parser.parse_args()
    rows = [row for name in FAMILIES for row in measure_time(name, tuple(given.lengths), given.steps)]
    counts = measure_counts() if SHARED.is_dir() else []
    publish("recurrent", "Models continued from their states: milliseconds per token", rows, counts=counts)


if __name__ == "__main__":
    main()
