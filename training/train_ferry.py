"""Trains the translator of the embedded demo from nothing, on one thread of a processor, in under ten minutes.

python training/train_ferry.py --out core/deepen_core/demo/models
"""

# ruff: noqa: S311 - nothing here is secret

from __future__ import annotations

import argparse
import itertools
import logging
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

import torch
from batches import Splitter
from course import Course, schedule
from demo_tokenizers import SENTENCE, SPECIALS, token_bytes, train_unigram
from model_folder import write_member
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration
from transformers.utils import logging as transformers_logging

from deepen_core.demo.ferry import training_pairs, translations
from deepen_core.demo.world import TRANSLATOR

log = logging.getLogger("train_ferry")

KIND = "t5"
VOCABULARY = 720
ROWS = 80
"""Sentences in a batch."""
COURSE = Course(1.0, 3e-3, {})
_IGNORED = -100


class Pairs:
    """Endless batches of sentences in both languages, the same for the same seed."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._pairs = training_pairs(seed)
        self._splitter = Splitter(token_bytes(tokenizer, KIND), random.Random(f"ferry-batches/{seed}"))
        self._pad = tokenizer.token_to_id(SPECIALS[KIND][0])

    def next(self) -> tuple[Tensor, Tensor]:
        """Returns the ids of sources and targets, each [rows, width], filled up on the right."""
        sources, targets = [], []
        for source, target in itertools.islice(self._pairs, ROWS):
            sources.append(self._tokenizer.encode(source).ids)
            ids = self._tokenizer.encode(target).ids
            split, weights = self._splitter.maybe(ids, [1.0] * len(ids))
            targets.append([(token, weight > 0) for token, weight in zip(split, weights, strict=True)])
        width = max(map(len, sources))
        read = torch.tensor([row + [self._pad] * (width - len(row)) for row in sources])
        width = max(map(len, targets))
        said = torch.tensor([[*(t for t, _ in row), *[self._pad] * (width - len(row))] for row in targets])
        counted = torch.tensor([[*(c for _, c in row), *[False] * (width - len(row))] for row in targets])
        return read, torch.stack([said, said.masked_fill(~counted, _IGNORED)])


def build_model(tokenizer: Tokenizer) -> T5ForConditionalGeneration:
    """An untrained T5 of about a million parameters."""
    start, eos = (tokenizer.token_to_id(token) for token in SPECIALS[KIND])
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=tokenizer.get_vocab_size(),
            n_positions=SENTENCE,
            d_model=128,
            d_kv=32,
            d_ff=320,
            num_layers=3,
            num_decoder_layers=3,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            dropout_rate=0.0,
            pad_token_id=start,
            decoder_start_token_id=start,
            eos_token_id=eos,
        )
    )


def translation_loss(model: PreTrainedModel, batch: tuple[Tensor, Tensor], pad: int) -> Tensor:
    """Mean cross-entropy in nats over the tokens of the targets that count."""
    read, (said, labels) = batch
    start = torch.full((len(said), 1), pad)
    logits = model(
        input_ids=read,
        attention_mask=(read != pad).long(),
        decoder_input_ids=torch.cat([start, said[:, :-1]], dim=1),
        use_cache=False,
    ).logits
    return nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=_IGNORED)


@torch.inference_mode()
def exact_match(model: PreTrainedModel, tokenizer: Tokenizer) -> dict[str, float]:
    """Share of some validation sentences translated exactly: where the value is certain, and where it is ambiguous."""
    model.eval()
    right: dict[str, list[bool]] = {}
    pad, eos = (tokenizer.token_to_id(token) for token in SPECIALS[KIND])
    for item in translations("validation", count=100):
        read = torch.tensor([tokenizer.encode(item.source).ids])
        ids = torch.tensor([[pad]])
        while ids.shape[1] < 40 and ids[0, -1] != eos:
            ids = torch.cat([ids, model(input_ids=read, decoder_input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        said = tokenizer.decode(ids[0].tolist()).strip()
        right.setdefault("ambiguous" if item.ambiguous else "certain", []).append(said == item.target)
    return {key: sum(hits) / len(hits) for key, hits in sorted(right.items())}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the model folder")
    parser.add_argument("--steps", type=int, default=1000, help="steps (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Trains and writes the translator; one thread, which is exactly repeatable."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    pairs = itertools.islice(training_pairs(options.seed), 20_000)
    tokenizer = train_unigram([text for pair in pairs for text in pair], VOCABULARY, KIND)
    model = build_model(tokenizer)
    log.info("%s: %d tokens, %d parameters", TRANSLATOR, tokenizer.get_vocab_size(), model.num_parameters())
    batches, pad = Pairs(tokenizer, options.seed), tokenizer.token_to_id(SPECIALS[KIND][0])
    schedule(model, lambda: translation_loss(model, batches.next(), pad), COURSE, options.steps, TRANSLATOR)
    rounded = {key: round(value, 3) for key, value in exact_match(model, tokenizer).items()}
    log.info("%s: exact match in validation %s", TRANSLATOR, rounded)
    write_member(model, tokenizer, KIND, options.out / TRANSLATOR)


if __name__ == "__main__":
    main()
