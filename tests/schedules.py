"""Schedules: what sequences do from step to step, and a member's logits compared with those of each text alone."""

import torch
from amounts import examples
from architectures import WINDOW
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ids_parts import IdsSequence, check, check_read_ahead, made_up

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
        st.tuples(st.just("read_ahead"), st.integers(1, 60), _number),
        st.tuples(st.just("leave"), st.integers(0, 7)),
        st.tuples(st.just("settle"), st.integers(0, 7), st.integers(0, 9)),
        st.tuples(st.just("prefill"), st.integers(0, 7), st.integers(1, 30)),
    ),
    min_size=14,
    max_size=24,
)


def follow(model, member, events, **exactness):
    """Sequences join, are prefilled or read, advance and are shortened, abstain and leave; every step is compared.

    Beginnings of sequences settle: `rewrite` does not change them any more.
    """
    sequences, steps = [IdsSequence(made_up(n, n)) for n in (9, 30, 2, 5)], 0
    for number, (kind, *details) in enumerate(events):
        if kind == "join":
            sequences.append(IdsSequence(made_up(*details)))
        elif kind == "join_alike" and sequences:
            one = sequences[details[1] % len(sequences)]
            sequences.append(IdsSequence(one.ids[: details[0] * 5] + made_up(*details)))
        elif kind == "read_ahead":
            sequences.append(IdsSequence(made_up(*details)))
            check_read_ahead(model, member, sequences[-1])
        elif kind == "leave" and sequences:
            sequences.pop(details[0] % len(sequences)).release()
        elif kind == "settle" and sequences:
            sequence = sequences[details[0] % len(sequences)]
            sequence.settled = max(sequence.settled, len(sequence.ids) - details[1])
        elif kind == "prefill" and sequences:
            sequence = sequences[details[0] % len(sequences)]
            assert 0 <= member.prefill(sequence, details[1]) <= details[1]
            assert sequence.pending >= min(2, len(sequence.ids)) or sequence.started
        elif kind == "step":
            sequences = [sequence for sequence in sequences if len(sequence.ids) < WINDOW - 6 or sequence.release()]
            part = [sequence for i, sequence in enumerate(sequences) if details[0] >> i & 1]
            steps += bool(part)
            step(model, member, part, details[1], number, exactness)
    for sequence in sequences:
        sequence.release()
    return steps


def step(model, member, part, changes, number, exactness):
    """Runs some sequences, compares their logits, and changes their ends."""
    if part:
        check(model, part, member.next_logits(part), **exactness)
    for i, (sequence, (back, new)) in enumerate(zip(part, changes, strict=False)):
        sequence.rewrite(back, made_up(new, 100 * number + i))


def search_schedules(model, member, count=30, **exactness):
    """Follows many schedules."""
    # One that fails is told as it is: making it smaller takes minutes.
    phases = [Phase.explicit, Phase.reuse, Phase.generate]

    @settings(max_examples=examples(count), deadline=None, phases=phases, suppress_health_check=list(HealthCheck))
    @given(events=_events)
    def search(events):
        with torch.inference_mode():
            follow(model, member, events, **exactness)

    search()
