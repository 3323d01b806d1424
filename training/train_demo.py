"""Trains the two members of the embedded demo from nothing, on a processor, in half an hour.

python training/train_demo.py --out core/deepen_core/demo/models
"""

from __future__ import annotations

import argparse
import functools
import logging
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

import torch
from batches import Batch, Batches
from course import Course, schedule
from demo_tokenizers import SPECIALS, WINDOW, train_bpe, train_unigram
from lessons import Kind, Teacher, vocabulary_texts
from model_folder import write_member
from safetensors.torch import load_model
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging
from validation import exact_match

from deepen_core.demo.world import MEMBERS

log = logging.getLogger("train_demo")

KINDS: tuple[str, str] = ("bpe", "unigram")
VOCABULARY = (1536, 1536)


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
