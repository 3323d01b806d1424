"""Encoder-decoder models of many families: how each can be run is found out, and what is said is right either way."""

import random

import pytest
import tiny_seq2seq
import torch
import transformers
from transformers import AutoModelForSeq2SeqLM

from deepen_core.chat.prompt_encoder import MemberPrompt
from deepen_core.members.sequence import MemberSequence
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.members.transformers.seq2seq import Seq2SeqMember
from deepen_core.members.transformers.seq2seq_runners import groups

VOCABULARY, WINDOW = 97, 96
IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
BART = {
    **{f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in (("layers", 2), ("attention_heads", 4))},
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    **IDS,
    "max_position_embeddings": WINDOW,
}
T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, **IDS}
GEMMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": WINDOW,
}
PROPHETNET = {
    **{f"num_{name}": n for name, n in BART.items() if "layers" in name or "heads" in name},
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    **IDS,
    "max_position_embeddings": WINDOW,
}
CONFIGURATIONS = {
    "t5": ("T5Config", T5),
    "umt5": ("UMT5Config", T5),
    "long-t5": ("LongT5Config", {**T5, "local_radius": 4}),
    "switch": ("SwitchTransformersConfig", {**T5, "num_experts": 2, "expert_capacity": 64}),
    "bart": ("BartConfig", BART),
    "mbart": ("MBartConfig", BART),
    "marian": ("MarianConfig", BART),
    "m2m100": ("M2M100Config", BART),
    "pegasus": ("PegasusConfig", BART),
    "blenderbot": ("BlenderbotConfig", BART),
    "t5gemma": ("T5GemmaConfig", {"encoder": GEMMA, "decoder": {**GEMMA, "cross_attention_hidden_size": 32}}),
    "prophetnet": ("ProphetNetConfig", PROPHETNET),
}


def build(name):
    kind, options = CONFIGURATIONS[name]
    config = getattr(transformers, kind)(**options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(config)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if weight.dim() > 1 and "position" not in path:
                weight.mul_(1.5 / (float(weight.std()) * weight.shape[-1] ** 0.5 + 1e-9))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer():
    return MemberTokenizer(tiny_seq2seq.bart_tokenizer(), "x", decoder_start=[2])


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_are_those_of_a_whole_run(name, tokenizer):
    """Sequences join, leave, advance unequally and change their ends; the caches are looked at after every step."""
    member = Seq2SeqMember(name, build(name), tokenizer, WINDOW, WINDOW)
    together = name != "prophetnet"  # which takes one id at a time with a cache
    assert (member.batching == "ragged") == together
    assert together or "its whole answer is run again for every token" in member.batching
    chance = random.Random(5)
    running = []
    for step in range(12):
        if step % 2 == 0:
            source = tuple(chance.randrange(3, VOCABULARY) for _ in range(chance.randrange(2, 14)))
            running.append(MemberSequence(MemberPrompt([2], "", inside=False, source=source), tokenizer, is_main=True))
        if step % 5 == 4:
            running.pop(chance.randrange(len(running))).release()
        for sequence in running:
            kept = max(1, len(sequence.ids) - chance.randrange(3))
            sequence.cached = min(sequence.cached, kept)
            del sequence.ids[kept:]
            sequence.ids += [chance.randrange(3, VOCABULARY) for _ in range(chance.randrange(4))]
        asked = chance.sample(running, max(1, len(running) - step % 3))
        with torch.inference_mode():
            for sequence, logits in zip(asked, member.next_logits(asked), strict=True):
                given = torch.tensor([list(sequence.source)]), torch.tensor([sequence.ids])
                whole = member.model(input_ids=given[0], decoder_input_ids=given[1], use_cache=False).logits[0]
                torch.testing.assert_close(logits, whole[-1], atol=1e-3, rtol=1e-3)
                if sequence.logits_before is not None and together:
                    torch.testing.assert_close(sequence.logits_before, whole[-2], atol=1e-3, rtol=1e-3)


def test_forwards_are_divided_where_that_is_cheaper():
    """Against every division of the sequences in order of where they start."""

    def cost(parts):
        ends = [(min(spans[n][0] for n in part), max(spans[n][1] for n in part)) for part in parts]
        return sum(16 + len(part) * (end - start) for part, (start, end) in zip(parts, ends, strict=True))

    chance = random.Random(2)
    for _ in range(40):
        spans = [(start := chance.randrange(60), start + chance.randrange(1, 5)) for _ in range(6)]
        order = sorted(range(6), key=spans.__getitem__)
        divisions = []
        for cuts in range(32):
            parts = [[order[0]]]
            for place in range(1, 6):
                if cuts >> (place - 1) & 1:
                    parts.append([])
                parts[-1].append(order[place])
            divisions.append(parts)
        found = groups(range(6), spans.__getitem__, 16)
        assert sorted(n for part in found for n in part) == list(range(6))
        assert cost(found) == min(map(cost, divisions))
    assert groups([], spans.__getitem__, 16) == []
