"""Trains the two members of the embedded demo from nothing, on a processor, in half an hour.

python training/train_demo.py --out core/deepen_core/demo/models
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

import torch
from batches import Batch, Batches
from demo_tokenizers import SPECIALS, WINDOW, train_bpe, train_unigram, write_tokenizer
from lessons import Kind, Teacher, vocabulary_texts
from prompts import PLAIN
from safetensors.torch import load_model
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from deepen_core.demo.passages import passages
from deepen_core.demo.sums import sums
from deepen_core.demo.world import MEMBERS, questions

log = logging.getLogger("train_demo")

KINDS: tuple[str, str] = ("bpe", "unigram")
VOCABULARY = (1536, 1536)


@dataclass(frozen=True)
class Course:
    """A part of the training, with a learning rate that rises and falls.

    Attributes:
        share: Its part of all steps.
        rate: Peak learning rate.
        kinds: How much of each kind of batch.
    """

    share: float
    rate: float
    kinds: dict[Kind, float]


STEPS = 4750
"""Steps of the first member; the second has 150 more."""
_READING = (
    # First to read, from texts with little else in them: whoever knows the world first does not learn to read any more.
    Course(150 / STEPS, 3e-3, {"note": 1.0}),
    Course(300 / STEPS, 3e-3, {"note": 0.2, "notes": 0.2, "quotes": 0.6}),
)
_WORLD: dict[Kind, float] = {"short": 0.45, "context": 0.1, "notes": 0.1, "reading": 0.14, "quotes": 0.13}
_WORLD |= {"long": 0.04, "copy": 0.04}
"""Mostly short texts."""
_FOCUS: dict[Kind, float] = {"short": 0.12, "focus": 0.14, "context": 0.04, "notes": 0.08, "reading": 0.14}
_FOCUS |= {"quotes": 0.06, "steps": 0.22, "objects": 0.16}
"""To keep to the question when much else stands before it, with the steps of an agent, and objects."""
_ALL: dict[Kind, float] = {"short": 0.07, "focus": 0.12, "notes": 0.06, "reading": 0.16, "steps": 0.26, "objects": 0.2}
COURSES = (
    (
        *_READING,
        Course(1200 / STEPS, 3e-3, _WORLD),
        Course(1300 / STEPS, 2e-3, {**_FOCUS, "sums": 0.04}),
        Course(1800 / STEPS, 2e-3, {**_ALL, "sums": 0.06}),
    ),
    (
        *_READING,
        # Mostly sums for a while, or none is learned; and before the rest, which would suffer.
        Course(150 / STEPS, 3e-3, {"drill": 0.7, "notes": 0.1, "quotes": 0.2}),
        Course(1200 / STEPS, 3e-3, {**_WORLD, "sums": 0.1}),
        Course(1300 / STEPS, 2e-3, {**_FOCUS, "sums": 0.1}),
        Course(1800 / STEPS, 2e-3, {**_ALL, "sums": 0.16}),
    ),
)
"""Those of each member."""
DEVIATION = 0.08
"""Of the first weights, about one by the square root of the width, 128. From the 0.02 of wider models,
members hardly begin to copy what they read."""
DECAY = 0.05
"""Weight decay of all matrices."""
WARMUP = 0.04
FINAL_RATE = 0.02


def waves(positions: int, width: int) -> Tensor:
    """Where learned positions begin: sines and cosines, by which near can be told from far from the first step.

    Returns:
        [positions, width], with a deviation of 0.02, so that at first tokens say more than their places.
    """
    angles = torch.arange(positions)[:, None] * 10_000.0 ** (-torch.arange(0, width, 2) / width)
    return 0.02 * math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)


def build_model(member: int, tokenizer: Tokenizer) -> PreTrainedModel:
    """An untrained model of about a million parameters: GPT-2 for the first member, Llama for the second."""
    bos, eos = (tokenizer.token_to_id(token) for token in SPECIALS[KINDS[member]])
    ends: dict[str, Any] = {"bos_token_id": bos, "eos_token_id": eos}
    size = tokenizer.get_vocab_size()
    if member == 0:
        gpt2 = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=size,
                n_positions=WINDOW,
                n_embd=128,
                n_layer=4,
                n_head=4,
                n_inner=320,
                initializer_range=DEVIATION,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **ends,
            )
        )
        gpt2.transformer.wpe.weight.data.copy_(waves(WINDOW, gpt2.config.n_embd))
        return gpt2
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=WINDOW,
            initializer_range=DEVIATION,
            tie_word_embeddings=True,
            **ends,
        )
    )


def weighted_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats over the tokens that count, each by its weight."""
    logits = model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).logits[:, :-1]
    weights = batch.weights[:, 1:]
    counted = weights > 0
    losses = nn.functional.cross_entropy(logits[counted], batch.ids[:, 1:][counted], reduction="none")
    weights = weights[counted]
    return (losses * weights).sum() / weights.sum()


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up, then a cosine down to a fiftieth. `progress` runs from 0 to 1."""
    if progress < WARMUP:
        return peak * (progress + 1e-3) / WARMUP
    fallen = 0.5 + 0.5 * math.cos(math.pi * min(1.0, (progress - WARMUP) / (1 - WARMUP)))
    return peak * (FINAL_RATE + (1 - FINAL_RATE) * fallen)


def build_optimizers(model: PreTrainedModel, rate: float) -> list[Optimizer]:
    """AdamW for embeddings, norms and biases; Muon, at the same learning rate, for all other matrices.

    Muon steps equally far in all directions of a matrix (Jordan et al., 2024). Its steps are scaled to the length of
    AdamW's (Liu et al., 2025, arXiv 2502.16982).

    Args:
        model: What learns.
        rate: Learning rate of both, until the loop sets another.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [p for p in model.parameters() if p.dim() > 1 and id(p) not in embeddings]
    embedded = [p for p in model.parameters() if id(p) in embeddings]
    others = [p for p in model.parameters() if p.dim() <= 1]
    adam = torch.optim.AdamW(
        [{"params": embedded, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.98),
    )
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    return [adam, muon]


def schedule(
    model: PreTrainedModel,
    next_loss: Callable[[], Tensor],
    course: Course,
    steps: int,
    name: str,
    *,
    minutes: float | None = None,
    position: int = 0,
) -> None:
    """The loop, until the steps are done or the minutes are over.

    Args:
        model: What learns.
        next_loss: Returns the loss of the next batch.
        course: Says at which rate.
        steps: So many.
        name: Its name in the log.
        minutes: At most so many.
        position: The line of its bar, from 0.
    """
    optimizers = build_optimizers(model, course.rate)
    model.train()
    started, average = time.monotonic(), 0.0
    bar = tqdm(total=steps, desc=name, unit="step", mininterval=5.0, position=position)
    for step in range(steps):
        progress = step / steps
        if minutes:
            progress = max(progress, (time.monotonic() - started) / 60 / minutes)
            if progress >= 1:
                break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress, course.rate)
        loss = next_loss()
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        bar.update()
        bar.set_postfix(loss=f"{average:.3f}", refresh=False)
    bar.close()
    log.info("%s: %d steps, %.1f minutes, loss %.3f", name, bar.n, (time.monotonic() - started) / 60, average)


def validation(member: int) -> dict[str, list[tuple[str, str]]]:
    """Prompts and answers by which training is judged; what is published is measured on others.

    Args:
        member: 0 or 1, which reads its own chat template.
    """
    known: dict[str, list[tuple[str, str]]] = {}
    for question in questions("training")[::4]:
        known.setdefault(f"known to {question.known_to}", []).append((question.prompt, question.answer))
    told = [(PLAIN.format(q=f"{one.text}\n{one.question}"), one.answer) for one in passages("validation", count=100)]
    added = [(PLAIN.format(q=one.text), one.steps) for one in sums("validation", count=200)]
    formed = {kind: _formed(member, kind) for kind in _FORMED}
    return {**known, "passages": told, "sums": added, **formed}


_FORMED: tuple[Kind, ...] = ("quotes", "steps", "objects")


def _formed(member: int, kind: Kind) -> list[tuple[str, str]]:
    """Steps of agents and objects, from a teacher whose lessons nobody was trained on."""
    teacher = Teacher(member, seed=10**6)
    lessons = [teacher.lesson(kind) for _ in range(100)]
    # What does not count is given.
    ends = [max(end for _, end, weight in lesson.spans if not weight) for lesson in lessons]
    return [(one.text[:end].rstrip(" "), one.text[end:].strip()) for one, end in zip(lessons, ends, strict=True)]


@torch.inference_mode()
def exact_match(model: PreTrainedModel, tokenizer: Tokenizer, member: int) -> dict[str, float]:
    """Share of each kind of validation items answered exactly by greedy decoding."""
    model.eval()
    eos = model.config.eos_token_id
    by_length: dict[int, list[tuple[list[int], str, str]]] = {}
    for kind, items in validation(member).items():
        for prompt, answer in items:
            ids = tokenizer.encode(prompt).ids
            by_length.setdefault(len(ids), []).append((ids, answer, kind))
    right: dict[str, list[bool]] = {}
    for group in by_length.values():
        ids, cache = torch.tensor([prompt for prompt, _, _ in group]), None
        said, most = ids[:, :0], 2 + max(len(tokenizer.encode(answer).ids) for _, answer, _ in group)
        while said.shape[1] < most and not (said == eos).any(dim=1).all():
            output = model(input_ids=ids, past_key_values=cache, use_cache=True)
            ids, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
            said = torch.cat([said, ids], dim=1)
        for row, (_, answer, kind) in zip(said.tolist(), group, strict=True):
            ended = row[: row.index(eos)] if eos in row else row
            right.setdefault(kind, []).append(tokenizer.decode(ended).strip() == answer)
    return {key: sum(hits) / len(hits) for key, hits in sorted(right.items())}


def write_member(model: PreTrainedModel, tokenizer: Tokenizer, kind: str, target: Path) -> None:
    """Writes a model folder beside its place, then moves it there: a reader never sees half of one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model.save_pretrained(fresh)
        write_tokenizer(tokenizer, kind, fresh)
        start, end = (tokenizer.token_to_id(token) for token in SPECIALS[kind])
        if kind == "t5":
            generation = {"decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": start}
        else:
            generation = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
        text = json.dumps(generation, indent=2) + "\n"
        (fresh / "generation_config.json").write_text(text, encoding="utf-8")
        fresh.chmod(0o755)
        for file in fresh.iterdir():
            file.chmod(0o644)
        old = None
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            target.replace(old)
        fresh.replace(target)
        if old is not None:
            shutil.rmtree(old)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the model folders")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps per member (default %(default)s)")
    parser.add_argument(
        "--minutes", type=float, help="end after so many minutes; the result then depends on the machine"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", type=Path, help="folder of models that have had some of the courses")
    parser.add_argument("--course", type=int, default=0, help="the course to begin with, counted from 0")
    parser.add_argument("--until", type=int, help="the course to end before (default: go through all)")
    parser.add_argument("--member", choices=MEMBERS, action="append", help="only this one (default: both)")
    parser.add_argument("--validate", choices=("each", "last"), default="last", help="after which courses")
    parser.add_argument("--jobs", type=int, default=2, help="members trained at once (default %(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads a member; one is exactly repeatable (default 1)",
    )
    return parser.parse_args(arguments)


def _next_loss(model: PreTrainedModel, batches: Batches, course: Course) -> Tensor:
    return weighted_loss(model, batches.next(course.kinds))


def train_member(member: int, options: argparse.Namespace) -> dict[str, float]:
    """Trains one member from nothing and writes its folder.

    Returns:
        The share of validation items it answers exactly after the last course, see `exact_match`.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed * 2 + member)
    name, kind = MEMBERS[member], KINDS[member]
    texts = vocabulary_texts(options.seed)
    tokenizer = (train_bpe if kind == "bpe" else train_unigram)(texts, VOCABULARY[member])
    model = build_model(member, tokenizer)
    log.info("%s: %d tokens, %d parameters", name, tokenizer.get_vocab_size(), model.num_parameters())
    if options.resume:
        load_model(model, str(options.resume / name / "model.safetensors"), strict=False)
    scores: dict[str, float] = {}
    for index, course in enumerate(COURSES[member][: options.until]):
        if index < options.course:
            continue
        # Every course starts afresh, so that one resumed gives what one run through gives.
        seed = options.seed + 1000 * index
        batches = Batches(Teacher(member, seed), tokenizer, kind, seed)
        steps = max(1, round(options.steps * course.share))
        minutes = options.minutes and options.minutes * course.share
        next_loss = functools.partial(_next_loss, model, batches, course)
        schedule(model, next_loss, course, steps, name, minutes=minutes, position=member)
        write_member(model, tokenizer, kind, options.out / name)  # so that --resume can go on after any course
        if options.validate == "each" or course is COURSES[member][: options.until][-1]:
            scores = exact_match(model, tokenizer, member)
            log.info("%s: exact match in validation %s", name, {key: round(value, 3) for key, value in scores.items()})
    return scores


def main(arguments: list[str] | None = None) -> None:
    """Trains and writes the members, each in a process of its own."""
    options = parse(arguments)
    chosen = [index for index, name in enumerate(MEMBERS) if name in (options.member or MEMBERS)]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(train_member, member, options) for member in chosen]:
            future.result()


if __name__ == "__main__":
    main()
