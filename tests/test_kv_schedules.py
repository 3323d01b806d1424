"""Sequences of different lengths that are run together give the logits that each has alone, whatever they do."""

from dataclasses import replace

import pytest
import torch
from architectures import WINDOW, build
from ids_parts import IdsSequence, check, made_up, member_of, plain
from schedules import GROW, TURN, follow, search_schedules

from deepen_core.members.transformers.capabilities import probe

TOGETHER = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "gpt-neox",
    "falcon-multi-query",
    "falcon-new",
    "opt",
]
ALONE = ["falcon-alibi", "bloom", "gpt-neo", "xlnet", "openai-gpt"]
BY_LENGTH = ["longrope", "dynamic"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TOGETHER)
def test_any_schedule_gives_the_logits_of_each_sequence_alone(name):
    model = build(name)
    member = member_of(model)
    assert member.batching == "ragged"

    search_schedules(model, member)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_LENGTH)
def test_positions_that_depend_on_the_length(name):
    model = build(name)
    member = member_of(model)
    assert member.batching.startswith("ragged (up to 2")

    search_schedules(model, member)


@pytest.mark.parametrize("name", BY_LENGTH)
@pytest.mark.parametrize("together", [True, False])
def test_a_sequence_grows_beyond_the_length_that_changes_positions_and_back(name, together, monkeypatch):
    model = build(name)
    found = replace(probe(model, WINDOW), **({} if together else {"masks": None}))
    monkeypatch.setattr("deepen_core.members.transformers.causal.probe", lambda *_: found)
    member = member_of(model)
    sequences = [IdsSequence(made_up(n, n)) for n in (20, 5, 40)]
    with torch.inference_mode():
        for back, new in [(0, 2), (0, 1), (0, 1), (0, 1), (4, 1), (0, 1), (0, 6)]:
            check(model, sequences, member.next_logits(sequences))
            for sequence in sequences:
                sequence.rewrite(back, made_up(new, len(sequence.ids)))


@pytest.mark.parametrize("name", ALONE)
def test_what_cannot_share_a_forward_runs_alone(name):
    model = build(name)
    member = member_of(model)
    assert member.batching.startswith("one sequence at a time: ")
    events = [
        ("prefill", 1, 7),
        ("read_ahead", 9, 9),
        ("step", 7, GROW),
        ("step", 5, TURN),
        ("step", 15, GROW),
        ("leave", 0),
    ]
    events.append(("step", 3, GROW))
    with torch.inference_mode():
        assert follow(model, member, events) == 4


@pytest.mark.parametrize("name", TOGETHER)
def test_a_plain_schedule(name):
    """The short form of the search above."""
    model = build(name)
    member = member_of(model)
    assert member.batching == "ragged"
    events = [
        ("join", 40, 3),
        ("prefill", 4, 16),
        ("step", 23, GROW),
        ("step", 13, TURN),
        ("join_alike", 5, 4),
        ("step", 63, TURN),
        ("read_ahead", 45, 3),
        ("read_ahead", 3, 8),
        ("join_alike", 5, 6),
        ("leave", 0),
        ("step", 31, GROW),
        ("step", 2, TURN),
        ("read_ahead", 1, 1),
        ("step", 255, GROW),
        ("step", 255, GROW),
    ]
    with torch.inference_mode():
        assert follow(model, member, events) == 7


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_bfloat16(name):
    model = build(name, dtype=torch.bfloat16)
    member = member_of(model)
    assert member.batching == "ragged"
    sequences = [IdsSequence(made_up(n, n)) for n in (3, 17, 30)]
    for step in range(5):
        logits = member.next_logits(sequences)
        expected = torch.stack([plain(model, sequence.ids)[-1] for sequence in sequences])
        assert logits.dtype == torch.float32
        assert float((logits - expected).norm() / expected.norm()) < 0.03
        for sequence in sequences:
            sequence.rewrite(step % 2, [5 + step] * (1 + step % 3))
