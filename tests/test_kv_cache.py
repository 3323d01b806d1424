"""Sequences of different lengths in one ragged cache say what each says alone under plain `transformers`."""

import threading
from dataclasses import replace

import pytest
import torch
from amounts import examples
from architectures import VOCABULARY, WINDOW, build
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from deepen_core.members.base import MemberSequence
from deepen_core.members.transformers.capabilities import probe
from deepen_core.members.transformers.causal import CausalMember
from deepen_core.members.transformers.kv_cache import RaggedCache, cache_option

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


class IdsRow(MemberSequence):
    """A sequence of plain ids, without a tokenizer."""

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


def check(model, sequences, logits, atol=2e-5):
    assert logits.dtype == torch.float32
    for sequence, found in zip(sequences, logits, strict=True):
        expected = plain(model, sequence.ids)
        torch.testing.assert_close(found, expected[-1], atol=atol, rtol=0)
        assert int(found.argmax()) == int(expected[-1].argmax())
        if sequence.logits_before is not None:
            torch.testing.assert_close(sequence.logits_before, expected[-2], atol=atol, rtol=0)


def made_up(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


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
    sequences, steps = [IdsRow(made_up(n, n)) for n in (9, 30, 2, 5)], 0
    for number, (kind, *details) in enumerate(events):
        if kind == "join":
            sequences.append(IdsRow(made_up(*details)))
        elif kind == "join_alike" and sequences:
            one = sequences[details[1] % len(sequences)]
            sequences.append(IdsRow(one.ids[: details[0] * 5] + made_up(*details)))
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
def test_any_schedule_gives_the_logits_of_each_row_alone(name):
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
def test_a_row_grows_beyond_the_length_that_changes_positions_and_back(name, together, monkeypatch):
    model = build(name)
    found = replace(probe(model, WINDOW), **({} if together else {"masks": None}))
    monkeypatch.setattr("deepen_core.members.transformers.causal.probe", lambda *_: found)
    member = member_of(model)
    sequences = [IdsRow(made_up(n, n)) for n in (20, 5, 40)]
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


@pytest.fixture
def llama():
    return build("llama")


def buffers(member):
    return [held for layer in member._ways.short.cache._held for held in (layer.keys, layer.values)]


def slots(member):
    return member._ways.short.cache.slots


def started(member, *texts):
    sequences = [IdsRow(text) for text in texts]
    member.next_logits(sequences)
    return sequences


@torch.inference_mode()
def test_the_steady_state_is_one_forward_without_copies(llama):
    """Sequences that each gain one id: one forward a step, in the same memory, and nothing is run twice."""
    member = member_of(llama)
    sequences = started(member, *(made_up(3 + 4 * i, i) for i in range(6)))
    for sequence in sequences:
        sequence.ids.append(5)
    member.next_logits(sequences)
    held, before = [b.data_ptr() for b in buffers(member)], (member.work.forwards, member.work.ids_rerun)
    for step in range(8):
        for sequence in sequences:
            sequence.ids.append(7 + step)
        check(llama, sequences, member.next_logits(sequences))
    assert (member.work.forwards, member.work.ids_rerun) == (before[0] + 8, before[1])
    assert [b.data_ptr() for b in buffers(member)] == held


@torch.inference_mode()
@pytest.mark.parametrize("much", [20, 64])
def test_padding_is_bounded(llama, much):
    """One sequence with much to run does not make fifteen others run as much; one with a little does not cost a
    forward."""
    member = member_of(llama)
    sequences = started(member, *(made_up(9, i) for i in range(15)), made_up(8, 99))
    sequences[-1].ids += made_up(much, 3)
    for sequence in sequences[:-1]:
        sequence.ids.append(4)
    before = member.work.forwards
    check(llama, sequences, member.next_logits(sequences))
    assert member.work.forwards == before + 2
    assert member.work.ids_rerun < 40
    sequences[0].ids += [8, 9]
    member.next_logits(sequences)
    assert member.work.forwards == before + 3


@torch.inference_mode()
def test_rows_that_leave_give_their_memory_back(llama):
    member = member_of(llama)
    sequences = started(member, *(made_up(5 + 3 * i, i) for i in range(12)), made_up(90, 50))
    most = buffers(member)[0].shape
    assert most[0] >= 13
    assert most[2] >= 90
    for sequence in sequences[1:-1:2] + sequences[-1:] + sequences[2:-1:2]:
        sequence.release()
    sequences[0].ids.append(9)
    check(llama, sequences[:1], member.next_logits(sequences[:1]))
    assert buffers(member)[0].shape[0] <= 4
    sequences[0].release()
    assert buffers(member) == []
    check(llama, started(member, [5, 6, 7]), plain(llama, [5, 6, 7])[-1:])


@torch.inference_mode()
@pytest.mark.parametrize("place", [0, 1, 3])
def test_nothing_of_another_row_is_read(llama, place):
    """What a sequence that went wrong leaves behind is not a number, which no mask would hide."""
    member = member_of(llama)
    sequences = started(member, *(made_up(n, n) for n in (40, 4, 50, 6)))
    bad = sequences.pop(place)
    for held in buffers(member):
        held[bad.cache.index, :, : len(bad.ids)] = float("nan")
    bad.release()
    sequences.append(IdsRow(made_up(3, 5)))
    for step in range(3):
        check(llama, sequences, member.next_logits(sequences))
        for sequence in sequences:
            sequence.ids.append(4 + step)


@torch.inference_mode()
def test_a_forward_that_fails_is_made_up_for(llama, monkeypatch):
    member = member_of(llama)
    sequences = started(member, made_up(12, 1), made_up(7, 2), made_up(9, 3))
    sequences[0].rewrite(5, [4, 5])
    sequences[2].ids.append(6)
    with monkeypatch.context() as patch:
        patch.setattr(llama.model.layers[1].mlp, "forward", lambda states: states + states.new_zeros(3))
        with pytest.raises(RuntimeError):
            member.next_logits(sequences[::2])
    check(llama, sequences, member.next_logits(sequences))
    check(llama, [sequence := IdsRow(made_up(12, 1) + [3] * 5)], member.next_logits([sequence]))


def test_rows_are_freed_from_any_thread_while_others_run(llama):
    member = member_of(llama)
    texts = [made_up(4 + i, i) for i in range(12)]
    with torch.inference_mode():
        keep, *leaving = started(member, *texts)

    def free():
        for sequence in leaving:
            sequence.release()

    thread = threading.Thread(target=free)
    with torch.inference_mode():
        thread.start()
        for step in range(30):
            keep.ids.append(3 + step)
            check(llama, [keep], member.next_logits([keep]))
        thread.join()
        check(llama, [keep], member.next_logits([keep]))
    assert len(slots(member)) == 1


@torch.inference_mode()
def test_a_slot_that_is_freed_in_use_leaves_afterwards(llama):
    cache = RaggedCache()
    with cache.busy():
        first, second = cache.take(), cache.take()
        first.free()
        assert (first.index, second.index) == (0, 1)
    assert cache.slots == [second]
    assert second.index == 0


@torch.inference_mode()
def test_a_slot_outlives_neither_its_row_nor_a_second_release(llama):
    member = member_of(llama)
    first, second, third = started(member, made_up(5, 1), made_up(6, 2), made_up(7, 3))
    slot = second.cache
    second.release()
    slot.free()
    assert [s.index for s in slots(member)] == [0, 1]
    del first
    assert len(slots(member)) == 1
    check(llama, [third], member.next_logits([third]))


@torch.inference_mode()
def test_a_shared_beginning_is_copied(llama):
    """Logits are those of computing it, and afterwards the sequences do not disturb each other."""
    member = member_of(llama)
    beginning = made_up(40, 1)
    first = IdsRow(beginning + made_up(5, 2))
    while member.prefill(first, 16):
        pass
    assert (member.work.ids_run, member.work.ids_copied) == (43, 0)
    sequences = [first, IdsRow(beginning + made_up(9, 3)), IdsRow(beginning[:20]), IdsRow(beginning[:15])]
    assert member.prefill(sequences[1], 4) == 4
    assert (member.work.ids_run, member.work.ids_copied) == (47, 40)
    check(llama, sequences, member.next_logits(sequences))
    assert member.work.ids_copied == 40 + 18
    first.rewrite(30, made_up(3, 7))
    check(llama, sequences[:1], member.next_logits(sequences[:1]))
    for sequence in sequences:
        sequence.rewrite(1, made_up(2, 8))
    first.release()
    check(llama, sequences[1:], member.next_logits(sequences[1:]))
    # What `first` had changed is no beginning any more.
    late = IdsRow([*beginning, 5, 6, 7])
    check(llama, [late], member.next_logits([late]))
    assert member.work.ids_copied == 40 + 18 + 40


@torch.inference_mode()
def test_prompts_that_begin_alike_are_run_once_in_one_call(llama):
    member = member_of(llama)
    beginning = made_up(48, 1)
    sequences = [IdsRow(beginning + made_up(3, n)) for n in range(4)]
    check(llama, sequences, member.next_logits(sequences))
    assert member.work.ids_copied == 3 * 48
    assert member.work.ids_run == 48 + 4 * 3


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_bfloat16(name):
    model = build(name, dtype=torch.bfloat16)
    member = member_of(model)
    assert member.batching == "ragged"
    sequences = [IdsRow(made_up(n, n)) for n in (3, 17, 30)]
    for step in range(5):
        logits = member.next_logits(sequences)
        expected = torch.stack([plain(model, sequence.ids)[-1] for sequence in sequences])
        assert logits.dtype == torch.float32
        assert float((logits - expected).norm() / expected.norm()) < 0.03
        for sequence in sequences:
            sequence.rewrite(step % 2, [5 + step] * (1 + step % 3))


def test_a_cache_is_given_by_the_name_that_a_model_has_for_it():
    class Old:
        def forward(self, input_ids, past_key_values=None, cache=None): ...

    class New:
        def forward(self, input_ids, cache=None, **options): ...

    class Wrapped:
        def forward(self, *args, **options): ...

    assert [cache_option(kind()) for kind in (Old, New, Wrapped)] == ["past_key_values", "cache", "past_key_values"]


def every_tensor(model):
    return {**model.state_dict(), **dict(model.named_buffers(remove_duplicate=False))}


def test_a_trial_leaves_everything_as_it_is():
    model = build("dynamic")
    before = {name: value.clone() for name, value in every_tensor(model).items()}
    random = torch.random.get_rng_state()
    assert member_of(model).batching.startswith("ragged")
    after = every_tensor(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(random, torch.random.get_rng_state())


@pytest.mark.parametrize(("said", "true"), [(70, 71), (71, 70), (None, 80), (80, None), (7, 8), (None, 9)])
def test_a_configuration_that_lies_about_the_window_is_found_out(said, true):
    """Also where the window is too long to be tried with text."""
    model = build("mistral", sliding_window=true)
    config = type(model.config).from_dict({**model.config.to_dict(), "sliding_window": said})
    config._attn_implementation = model.config._attn_implementation
    model.config = config  # the model below it keeps its own
    assert model.model.config.sliding_window == true
    member = member_of(model)
    works = said is not None and true is None  # one of the readings is that there is no window
    assert (member.batching == "ragged") == works
    sequences = [IdsRow(made_up(n, n)) for n in (85, 17)]
    with torch.inference_mode():
        check(model, sequences, member.next_logits(sequences))
