"""Rows of different lengths in one ragged cache say what each says alone under plain `transformers`."""

import pytest
import torch
from architectures import VOCABULARY, WINDOW, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepen_core.members import MemberRow
from deepen_core.members.causal import CausalMember

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


class IdsRow(MemberRow):
    """A row of plain ids, without a tokenizer."""

    def __init__(self, ids):
        self.ids = list(ids)
        self.cached = 0
        self.cache = None
        self.tokens_run = 0
        self.started = False
        self._recent = {}

    def rewrite(self, back, tail):
        """Replaces the last ids."""
        place = max(0, len(self.ids) - back)
        if place + len(tail) == 0:
            return
        self.cached = min(self.cached, place)
        self.ids[place:] = tail


def member_of(model, window=WINDOW):
    return CausalMember("member", model, None, window)


def plain(model, ids):
    """Logits at every place of one text, without any cache."""
    with torch.inference_mode():
        model(torch.tensor([[1]]), use_cache=False)  # dynamic positions remember the longest text they saw
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def check(model, rows, logits, atol=2e-5):
    assert logits.dtype == torch.float32
    for row, found in zip(rows, logits, strict=True):
        expected = plain(model, row.ids)
        torch.testing.assert_close(found, expected[-1], atol=atol, rtol=0)
        assert int(found.argmax()) == int(expected[-1].argmax())
        if row.logits_before is not None:
            torch.testing.assert_close(row.logits_before, expected[-2], atol=atol, rtol=0)


def made_up(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


_number = st.integers(0, 10**6)
_events = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(1, 60), _number),
        st.tuples(st.just("join_alike"), st.integers(1, 12), _number),
        st.tuples(st.just("leave"), _number),
        st.tuples(st.just("prefill"), _number, st.integers(1, 30)),
        st.tuples(st.just("step"), st.integers(0, 2**8 - 1), _number),
    ),
    min_size=4,
    max_size=14,
)


def follow(model, member, events):
    """Rows join, are prefilled, advance and are shortened, abstain and leave; every step is compared."""
    rows, steps = [IdsRow(made_up(9, 1)), IdsRow(made_up(30, 2))], 0
    for kind, *numbers in [*events, ("step", 255, 5)]:
        if kind == "join":
            rows.append(IdsRow(made_up(*numbers)))
        elif kind == "join_alike" and rows:
            one = rows[numbers[1] % len(rows)]
            rows.append(IdsRow(one.ids[: numbers[0] * 5] + made_up(numbers[0], numbers[1])))
        elif kind == "leave" and rows:
            rows.pop(numbers[0] % len(rows)).release()
        elif kind == "prefill" and rows:
            row = rows[numbers[0] % len(rows)]
            before = row.pending
            run = member.prefill(row, numbers[1])
            assert 0 <= run <= numbers[1]
            assert row.pending == before - run or not run or row.pending < before
        elif kind == "step":
            rows = [row for row in rows if len(row.ids) < WINDOW - 8 or row.release()]
            part = [row for i, row in enumerate(rows) if numbers[0] >> i & 1]
            if part:
                check(model, part, member.next_logits(part))
                steps += 1
            for i, row in enumerate(part):
                change = made_up(2, numbers[1] + i)
                back = change[0] % 7 if change[1] % 3 == 0 else 0
                row.rewrite(back, made_up(1 + change[1] % (1 if change[1] % 2 else 6), numbers[1] + 7 * i))
    for row in rows:
        row.release()
    return steps


def slow_search(examples):
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@pytest.mark.parametrize("name", TOGETHER)
def test_any_schedule_gives_the_logits_of_each_row_alone(name):
    model = build(name)
    member = member_of(model)
    assert member.batching == "ragged"

    @slow_search(15)
    @given(events=_events)
    def search(events):
        with torch.inference_mode():
            follow(model, member, events)

    search()


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_LENGTH)
def test_positions_that_depend_on_the_length(name):
    model = build(name)
    member = member_of(model)
    assert member.batching.startswith("ragged (up to 2")

    @slow_search(15)
    @given(events=_events)
    def search(events):
        with torch.inference_mode():
            follow(model, member, events)

    search()


@pytest.mark.parametrize("name", ALONE)
def test_what_cannot_share_a_forward_runs_alone(name):
    model = build(name)
    member = member_of(model)
    assert member.batching.startswith("one row at a time: ")
    events = [("join", 20, 3), ("prefill", 2, 7), ("step", 7, 1), ("step", 5, 2), ("leave", 0), ("step", 3, 4)]
    with torch.inference_mode():
        assert follow(model, member, events) == 4


@pytest.mark.parametrize("name", TOGETHER)
def test_a_plain_schedule(name):
    """The short form of the search above."""
    model = build(name)
    member = member_of(model)
    events = [
        ("join", 40, 3),
        ("prefill", 2, 16),
        ("step", 7, 1),
        ("step", 5, 2),
        ("join_alike", 5, 2),
        ("step", 15, 3),
        ("leave", 0),
        ("step", 7, 4),
        ("step", 2, 9),
        ("step", 7, 10),
    ]
    with torch.inference_mode():
        assert follow(model, member, events) == 7
