"""Decoding end to end: the ensemble, the plain way that it replaces, and each member alone under `transformers`.

Run with `python -m benchmarks.decoding`; `--help` lists the options. The members are random models of 44 million
parameters with vocabularies of 32,000 tokens; tokenizers and stories come from beside the project.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from benchmarks.reference import ReferenceLoop
from benchmarks.report import publish
from deepen_core import Ensemble

SHARED = Path(__file__).parents[2] / "shared"
_VOCABULARY = 32_000
_SPREAD = 1.5  # standard deviation of the logits of all tokens but the one that the stories go on with
_SURE = 20.0  # the logit of that one where nothing else speaks for or against it


def tokenizers() -> list[PreTrainedTokenizerFast]:
    """A SentencePiece and a byte-level one of 32,000 tokens each; the latter is the first part of a larger one."""
    first = Tokenizer.from_file(str(SHARED / "tokenizers" / "mistral-v1" / "tokenizer.json"))
    content = json.loads((SHARED / "tokenizers" / "gpt-2" / "tokenizer.json").read_text(encoding="utf-8"))
    model, end = content["model"], "<|endoftext|>"
    model["vocab"] = {piece: i for piece, i in model["vocab"].items() if i < _VOCABULARY - 1} | {end: _VOCABULARY - 1}
    model["merges"] = model["merges"][: _VOCABULARY - 1 - 256]
    content["added_tokens"] = [{**content["added_tokens"][0], "id": _VOCABULARY - 1, "content": end}]
    content["post_processor"] = None
    second = Tokenizer.from_str(json.dumps(content))
    return [
        PreTrainedTokenizerFast(tokenizer_object=first, bos_token="<s>", eos_token="</s>", unk_token="<unk>"),
        PreTrainedTokenizerFast(tokenizer_object=second, bos_token=end, eos_token=end),
    ]


def _successors(tokenizer: Any) -> dict[int, int]:
    """A circle of all tokens of the stories, in the order in which they appear there.

    Random models that go round it speak real words, so that the other member hears tokens as long as usual.
    """
    text = (SHARED / "data" / "tinystories_valid.txt").read_text(encoding="utf-8")
    ids = list(dict.fromkeys(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return dict(zip(ids, [*ids[1:], ids[0]], strict=True))


def make_members(folder: Path, *, width: int = 512, layers: int = 4) -> list[Path]:
    """Saves a random Llama and a random Mistral."""
    shape = {
        "vocab_size": _VOCABULARY,
        "hidden_size": width,
        "intermediate_size": width * 8 // 3 // 64 * 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
    }
    paths = []
    kinds: list[tuple[str, Any, Any]] = [
        ("llama", LlamaForCausalLM, LlamaConfig),
        ("mistral", MistralForCausalLM, MistralConfig),
    ]
    for seed, ((name, kind, config), tokenizer) in enumerate(zip(kinds, tokenizers(), strict=True)):
        torch.manual_seed(seed)
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        model = kind(config(**shape, **ends))
        with torch.no_grad():
            for layer in model.model.layers:  # of which the state keeps what the last token was
                layer.self_attn.o_proj.weight *= 0.1
                layer.mlp.down_proj.weight *= 0.1
            model.lm_head.weight.normal_(std=_SPREAD / width**0.5)
            after = _successors(tokenizer)
            start = model.get_input_embeddings().weight[list(after)]
            model.lm_head.weight[list(after.values())] += _SURE / width**0.5 * F.normalize(start, dim=-1)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        paths.append(folder / name)
    return paths


def prompts(tokenizer: Any, tokens: int, count: int) -> list[str]:
    """Texts of about so many tokens, no two with the same beginning."""
    lines = (SHARED / "data" / "tinystories_valid.txt").read_text(encoding="utf-8").split("\n")
    words = " ".join(lines).split(" ")
    made = []
    for start in range(0, count * 37, 37):
        text = " ".join(words[start:] + words)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]
        made.append(tokenizer.decode(ids))
    return made


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The least time of a call: on a shared machine all others tell of what else it did."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found)


def alone(path: Path, text: str, tokens: int, repeats: int, device: str) -> float:
    """Tokens a second of one member under `transformers.generate`."""
    model = AutoModelForCausalLM.from_pretrained(path).to(device).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    ids = tokenizer(text, return_tensors="pt")["input_ids"].to(device)

    def call() -> None:
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        )
        assert made.shape[1] == ids.shape[1] + tokens

    return tokens / seconds(call, repeats)


def measure(
    ensemble: Ensemble, reference: ReferenceLoop | None, paths: list[Path], length: int, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """All batch sizes at one length of the prompt."""
    texts = prompts(PreTrainedTokenizerFast.from_pretrained(paths[0]), length, max(given.batches))
    singles = [alone(path, texts[0], given.tokens, given.repeats, given.device) for path in paths]
    limit = 1 / sum(1 / single for single in singles)
    plain = None
    if reference is not None:
        plain = given.reference_tokens / seconds(lambda: reference.generate(texts[0], given.reference_tokens), 1)
    rows: list[dict[str, Any]] = []
    for batch in given.batches:

        def call(tokens: int, count: int = batch) -> None:
            ensemble.forget()
            answers = ensemble.generate(texts[:count], max_new_tokens=tokens, ignore_eos=True)
            assert all(answer.usage.completion_tokens == tokens for answer in answers)

        call(given.tokens)
        whole = seconds(lambda: call(given.tokens), given.repeats)
        # Answers twice as long are as many steps more in which all rows decode and no prompt is read.
        longer = seconds(lambda: call(2 * given.tokens), given.repeats)
        found, decoding = batch * given.tokens / whole, batch * given.tokens / (longer - whole)
        first = rows[0] if rows else {"tokens/s": found, "decoding tokens/s": decoding}
        rows.append(
            {
                "prompt": length,
                "batch": batch,
                "tokens/s": found,
                "against batch 1": found / first["tokens/s"],
                "decoding tokens/s": decoding,
                "decoding against batch 1": decoding / first["decoding tokens/s"],
                **{f"{path.name} alone": single for path, single in zip(paths, singles, strict=True)},
                "of the limit": found / limit if batch == 1 else "",
                "plain tokens/s": plain if batch == 1 and plain else "",
                "against plain": found / plain if batch == 1 and plain else "",
            }
        )
        print(rows[-1], flush=True)
    return rows


def measure_sharing(ensemble: Ensemble, tokenizer: Any, shared: int, count: int) -> dict[str, Any]:
    """Prompt tokens that members run for one prompt, and for many that begin alike."""
    (start,) = prompts(tokenizer, shared, 1)
    asked = [f"{start} {number} and" for number in range(count)]

    def ran(texts: list[str]) -> int:
        ensemble.forget()
        before = sum(m.work.ids_run + m.work.ids_rerun for m in ensemble._engine.members)
        ensemble.generate(texts, max_new_tokens=1, ignore_eos=True)
        return sum(m.work.ids_run + m.work.ids_rerun for m in ensemble._engine.members) - before

    one, many = ran(asked[:1]), ran(asked)
    return {
        "weights": ensemble.info.weight_policy,
        "prompts": count,
        "shared tokens": shared,
        "ids run for one": one,
        "ids run for all": many,
        "ratio": many / one,
    }


def measure_first_chunk(ensemble: Ensemble, text: str, tokens: int, repeats: int) -> dict[str, Any]:
    """When the first piece of an answer comes, of the time that the whole takes."""
    found = []
    for _ in range(repeats):
        ensemble.forget()
        began = time.perf_counter()
        first = None
        for _chunk in ensemble.stream(text, max_new_tokens=tokens, ignore_eos=True):
            first = first or time.perf_counter() - began
        assert first is not None
        found.append((first / (time.perf_counter() - began), first))
    share, first = statistics.median_low(found)
    return {"tokens": tokens, "first chunk s": first, "of the whole": share}


def measure_loop_gap(ensemble: Ensemble, texts: list[str], tokens: int) -> dict[str, Any]:
    """How long an event loop is held up at most while it streams several answers and one long prompt comes in."""

    async def heartbeat(gaps: list[float]) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    async def read(text: str) -> None:
        async for _ in ensemble.astream(text, max_new_tokens=tokens, ignore_eos=True):
            pass

    async def run() -> list[float]:
        gaps: list[float] = []
        beat = asyncio.create_task(heartbeat(gaps))
        await asyncio.gather(*map(read, texts), read(" ".join(texts)))
        beat.cancel()
        return gaps

    gaps = sorted(asyncio.run(run()))
    return {
        "streams": len(texts) + 1,
        "tokens each": tokens,
        "largest gap ms": 1000 * gaps[-1],
        "99th percentile ms": 1000 * gaps[len(gaps) * 99 // 100],
    }


def main() -> None:
    """Measures and publishes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="*", default=[64, 256, 1024], help="lengths in main's tokens")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=64, help="length of each answer")
    parser.add_argument("--reference-tokens", type=int, default=5, help="length of an answer of the plain way")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip-reference", action="store_true", help="leave out the plain way (6 GiB)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if not SHARED.is_dir():
        print(f"{SHARED} is not there: it holds the tokenizers.")
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = make_members(Path(folder))
        reference = None if given.skip_reference else ReferenceLoop(paths, given.device)
        options: dict[str, Any] = {"progress": False, "device": given.device}
        with Ensemble.load(paths, **options) as ensemble:
            ensemble.warm_up()
            for length in given.prompts:
                rows += measure(ensemble, reference, paths, length, given)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(paths[0])
            sharing = [measure_sharing(ensemble, tokenizer, 512, 16)]
            with Ensemble.load(paths, weights="adaptive", **options) as other:
                sharing.append(measure_sharing(other, tokenizer, 512, 16))
            first = [measure_first_chunk(ensemble, prompts(tokenizer, 64, 1)[0], 200, given.repeats)]
            gap = [measure_loop_gap(ensemble, prompts(tokenizer, 64, 8), 32)]
            about = {m.name: {"parameters": m.parameters, "batching": m.batching} for m in ensemble.info.members}
            anchors = ensemble.info.anchors
    tables = {"shared beginnings": sharing, "first chunk": first, "event loop": gap}
    publish("decoding", "Decoding end to end", rows, members=about, anchors=anchors, **tables)


if __name__ == "__main__":
    main()
