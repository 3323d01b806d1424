"""Sequences of different lengths that are run together give the logits that each has alone, whatever they do."""

from dataclasses import replace

import pytest
import torch
from amounts import examples
from architectures import WINDOW, build
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ids_parts import IdsSequence, check, made_up, member_of, plain

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
ALONE = ["falcon-alibi", "bloom", "gpt-neo", "mamba", "xlnet", "openai-gpt"]
BY_LENGTH = ["longrope", "dynamic"]


# What sequences do after a step: how many ids they lose, and how many they gain.
GROW = [(0, 1)] * 8
TURN = [(3, 2), (0, 6), (6, 1), (1, 3)] * 2


_number = st.integers(0, 10**6)
_changes = st.lists(
    st.tuples(st.sampled_from([0, 0, 1, 3, 6]), st.sampled_from([1, 1, 1, 2, 4, 6])), min_size=8, max_size=8
)
_step = st.tuples(st.just("step"), st.sampled_from([255, 255, 255, 6, 13]) | st.integers(1, 255), _changes)
_events = st.lists(
    st.one_of(
        *[_step] * 5,
        st.tuples(st.just("join"), st.integers(1, 60), _number),
        st.tuples(st.just("join_alike"), st.integers(1, 12), _number),
        st.tuples(st.just("leave"), st.integers(0, 7)),
        st.tuples(st.just("prefill"), st.integers(0, 7), st.integers(1, 30)),
    ),
    min_size=14,
    max_size=24,
)


def follow(model, member, events):
    """Sequences join, are prefilled, advance and are shortened, abstain and leave; every step is compared."""
    sequences, steps = [IdsSequence(made_up(n, n)) for n in (9, 30, 2, 5)], 0
    for number, (kind, *details) in enumerate(events):
        if kind == "join":
            sequences.append(IdsSequence(made_up(*details)))
        elif kind == "join_alike" and sequences:
            one = sequences[details[1] % len(sequences)]
            sequences.append(IdsSequence(one.ids[: details[0] * 5] + made_up(*details)))
        elif kind == "leave" and sequences:
            sequences.pop(details[0] % len(sequences)).release()
        elif kind == "prefill" and sequences:
            sequence = sequences[details[0] % len(sequences)]
            assert 0 <= member.prefill(sequence, details[1]) <= details[1]
            assert sequence.pending >= min(2, len(sequence.ids)) or sequence.started
        elif kind == "step":
            sequences = [sequence for sequence in sequences if len(sequence.ids) < WINDOW - 6 or sequence.release()]
            part = [sequence for i, sequence in enumerate(sequences) if details[0] >> i & 1]
            if part:
                check(model, part, member.next_logits(part))
                steps += 1
            for i, (sequence, (back, new)) in enumerate(zip(part, details[1], strict=False)):
                sequence.rewrite(back, made_up(new, 100 * number + i))
    for sequence in sequences:
        sequence.release()
    return steps


def search_schedules(model, member, count=30):
    """Follows many schedules."""
    # One that fails is told as it is: making it smaller takes minutes.
    phases = [Phase.explicit, Phase.reuse, Phase.generate]

    @settings(max_examples=examples(count), deadline=None, phases=phases, suppress_health_check=list(HealthCheck))
    @given(events=_events)
    def search(events):
        with torch.inference_mode():
            follow(model, member, events)

    search()


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
    events = [("prefill", 1, 7), ("step", 7, GROW), ("step", 5, TURN), ("step", 15, GROW), ("leave", 0)]
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
        ("leave", 0),
        ("step", 31, GROW),
        ("step", 2, TURN),
        ("step", 31, GROW),
        ("step", 31, GROW),
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
