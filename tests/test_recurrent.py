"""State-space and hybrid models: continued from their states, gone back by copies, and exactly as the whole text."""

import functools
from dataclasses import replace

import pytest
import tiny
import torch
from architectures import WINDOW, build
from ids_parts import IdsSequence, check, made_up, member_of, plain
from schedules import GROW, TURN, follow, search_schedules

from deepen_core import Ensemble, SamplingParams
from deepen_core.errors import CompatibilityWarning
from deepen_core.members.sequence import MemberSequence
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.members.transformers import causal, recurrent_state, trial
from deepen_core.members.transformers.capabilities import probe
from deepen_core.members.transformers.sequential import SequentialRunner

# Families that can be continued with several ids at once; lfm2 from transformers 5.14 or later on.
SEVERAL = [
    "mamba2",
    "rwkv",
    "bamba",
    "granite-hybrid",
    "falcon-h1",
    "nemotron-h",
    "zamba2",
    "qwen3-next",
    "qwen3.5",
    "xlstm",
]
BY_RELEASE = ["lfm2", "lfm2-moe"]
ONE_BY_ONE = ["mamba", "falcon-mamba", "jamba", "zamba", "recurrent-gemma"]
FAMILIES = [*SEVERAL, *BY_RELEASE, *ONE_BY_ONE]
COPIES_ARE_KEPT = "one sequence at a time: its state cannot be shortened, so copies of it are kept"
# States add up over a text, and their rounding with them; a state that is wrong is off by a tenth and more.
EXACT = {"atol": 1e-3}


@functools.cache
def family(name):
    """A model of a family, and a member of it that has tried the model."""
    model = build(name)
    member = member_of(model)
    member.warm_up()
    return model, member


class Main(IdsSequence):
    """A sequence whose ids only grow."""

    @property
    def settled(self):
        return len(self.ids)


def size_of(copy):
    """How many numbers are in a copy of a state."""

    def size(value):
        if isinstance(value, torch.Tensor):
            return value.numel()
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        return sum(map(size, parts))

    return size(copy.parts)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_continues_as_its_whole_text_does(name):
    model, member = family(name)
    assert member.batching == COPIES_ARE_KEPT
    if name not in BY_RELEASE:
        # Only then is a prompt run in pieces.
        assert member.prefill(IdsSequence(made_up(9, 1)), 5) == (5 if name in SEVERAL else 0)
    events = [
        ("join", 40, 3),
        ("prefill", 4, 25),
        ("prefill", 4, 3),
        ("prefill", 1, 1),
        ("step", 31, GROW),
        ("step", 13, TURN),
        ("settle", 1, 4),
        ("step", 31, TURN),
        ("settle", 4, 0),
        ("leave", 0),
        ("step", 2, TURN),
        ("step", 31, GROW),
    ]
    with torch.inference_mode():
        assert follow(model, member, events, **EXACT) == 5


@pytest.mark.parametrize("name", ["lfm2", "mamba"])
def test_some_schedules(name):
    """The short form of the search below, for a family of each kind."""
    search_schedules(*family(name), count=10, **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_any_schedule_gives_the_logits_of_the_whole_text(name):
    search_schedules(*family(name), **EXACT)


@torch.inference_mode()
@pytest.mark.parametrize("name", FAMILIES)
def test_the_main_member_runs_each_id_once(name):
    """One id a token, whatever the length of the text, without a copy of the state."""
    model, member = family(name)
    for length in (5, 50):
        sequence = Main(made_up(length, 1))
        member.next_logits([sequence])
        before = replace(member.work)
        for step in range(10):
            sequence.ids.append(3 + step)
            logits = member.next_logits([sequence])
            assert sequence.cache.copies == []
        check(model, [sequence], logits, **EXACT)
        assert member.work == replace(before, forwards=before.forwards + 10, ids_run=before.ids_run + 10)


STORY = (
    "Once upon a time there was a little girl named Mira. She lived near the sea, and the waves' songs told her "
    "stories: of whales, of unsinkable boats, of lighthouse-keepers. They sang: don't forget us! 12,345 shells "
    "lay on the sand. "
)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("lfm2", "byte_level", {}),
        ("lfm2", "sentencepiece_bpe", {}),
        ("lfm2", "unigram", {"split": False}),  # which settles nothing
        ("mamba", "sentencepiece_bpe", {}),
    ],
)
def test_a_listening_member_runs_a_few_ids_a_token(name, kind, options):
    """However long the text is."""
    tokenizer = MemberTokenizer(getattr(tiny, kind)(**options), "listener")
    model = build(name, vocab_size=tokenizer.vocabulary.size, max_position_embeddings=2048)
    member = member_of(model, 2048)
    pieces = [STORY[i : i + 3] for i in range(0, 90, 3)]  # as a main member with short tokens says it
    run, sizes = [], set()
    for prompt in (STORY, STORY * 4):
        sequence = MemberSequence(tokenizer.reader.read_text(prompt), tokenizer, is_main=False)
        while member.prefill(sequence, 30):
            pass
        member.next_logits([sequence])
        before = replace(member.work)
        for piece in pieces:
            sequence.append_text(piece)
            logits = member.next_logits([sequence])
            assert len(sequence.cache.copies) <= 3
            sizes |= {size_of(copy) for copy in sequence.cache.copies}
        check(model, [sequence], logits, **EXACT)
        run.append(member.work.ids_run + member.work.ids_rerun - before.ids_run - before.ids_rerun)
        assert run[-1] <= 1.5 * (len(sequence.ids) - sequence.prompt_tokens + len(pieces))
        sequence.release()
    print(f"{name} and {kind}: {run} ids for {len(pieces)} tokens of another member")
    assert abs(run[1] - run[0]) <= 4
    assert len(sizes) == 1  # no copy holds the keys and values of its text


@pytest.mark.parametrize("name", ["granite-hybrid", "falcon-h1"])
def test_some_ids_are_run_one_by_one_where_that_is_faster(name, monkeypatch):
    model = build(name)
    found = probe(model, WINDOW)
    found = replace(found, recurrence=replace(found.recurrence, singly=3))
    monkeypatch.setattr(causal, "probe", lambda *_: found)
    member = member_of(model)
    with torch.inference_mode():
        sequence = IdsSequence(made_up(20, 1))
        for new, forwards in [(0, 2), (1, 1), (3, 3), (4, 1), (2, 2)]:  # the prompt is cut for a copy
            sequence.ids += made_up(new, new)
            before = member.work.forwards
            check(model, [sequence], member.next_logits([sequence]), **EXACT)
            assert member.work.forwards == before + forwards


@pytest.mark.parametrize(("several", "singly"), [(1.0, 1), (5.9, 1), (6.1, 8), (16.0, 8)])
def test_what_is_faster_is_measured(several, singly, monkeypatch):
    """A forward of several ids takes so many times as long as one of a single id."""
    clock = 0.0
    run = recurrent_state.State.run

    def timed(self, ids, **options):
        nonlocal clock
        clock += several if len(ids) > 1 else 1.0
        return run(self, ids, **options)

    monkeypatch.setattr(recurrent_state.State, "run", timed)
    monkeypatch.setattr(trial.time, "perf_counter", lambda: clock)
    assert probe(build("falcon-h1"), WINDOW).recurrence.singly == singly


@torch.inference_mode()
def test_nothing_is_run_where_nothing_is_new():
    _, member = family("mamba2")
    sequence = IdsSequence(made_up(9, 1))
    said, forwards = member.next_logits([sequence]), member.work.forwards
    torch.testing.assert_close(member.next_logits([sequence]), said, atol=0, rtol=0)
    assert member.work.forwards == forwards


@torch.inference_mode()
def test_a_forward_that_fails_is_made_up_for(monkeypatch):
    model = build("granite-hybrid")
    member = member_of(model)
    sequence = IdsSequence(made_up(30, 1))
    member.next_logits([sequence])
    sequence.rewrite(2, made_up(3, 2))
    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[2], "forward", lambda *_, **__: torch.zeros(2) + torch.zeros(3))
        with pytest.raises(RuntimeError):
            member.next_logits([sequence])
    check(model, [sequence], member.next_logits([sequence]), **EXACT)
    sequence.rewrite(1, made_up(2, 3))
    check(model, [sequence], member.next_logits([sequence]), **EXACT)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["mamba2", "granite-hybrid", "falcon-h1", "qwen3-next", "rwkv"])
def test_half_precision(name):
    model = build(name, dtype=torch.bfloat16)
    member = member_of(model)
    assert member.batching == COPIES_ARE_KEPT
    sequence = IdsSequence(made_up(30, 1))
    for step in range(5):
        logits, expected = member.next_logits([sequence])[0], plain(model, sequence.ids)[-1]
        assert logits.dtype == torch.float32
        assert float((logits - expected).norm() / expected.norm()) < 0.1
        sequence.rewrite(step % 2, [5 + step] * (1 + step % 3))


# What is no state to continue from


def slow(model):
    """Whether the model's whole text is run each time, and rightly."""
    member = member_of(model)
    sequence = IdsSequence(made_up(12, 1))
    with torch.inference_mode():
        for _ in range(3):
            check(model, [sequence], member.next_logits([sequence]))
            sequence.rewrite(1, [7, 8])
    return member.batching.endswith("so its whole text is run again for every token")


def test_a_state_that_goes_on_in_place_is_no_copy(monkeypatch):
    monkeypatch.setattr(recurrent_state, "_copied", lambda value: value)
    model = build("mamba")
    found = probe(model, WINDOW)
    assert found.recurrence is None
    assert found.why_not.startswith("its state cannot be shortened, nor continued from a copy (it changes ")
    assert slow(model)


@pytest.mark.parametrize("name", ["mamba", "granite-hybrid"])
def test_a_model_that_forgets_its_state_runs_its_whole_text(name, monkeypatch):
    model = build(name)
    run = recurrent_state.State.run

    def forget(self, ids, **options):
        for layer in self._layers:
            for state in layer.recurrent_states.values() if hasattr(layer, "recurrent_states") else ():
                if state is not None:
                    state.zero_()
        return run(self, ids, **options)

    monkeypatch.setattr(recurrent_state.State, "run", forget)
    assert slow(model)


def test_a_state_that_says_less_than_rounding_must_be_used_all_the_same():
    """Jamba ignores its state if it gets several ids; a state that says next to nothing does not hide this."""
    model = build("jamba")
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if path.endswith("dt_proj.bias"):
                weight.fill_(-20.0)
    found = probe(model, WINDOW)
    assert not found.recurrence.several


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trial_leaves_the_model_as_it_was(name):
    """RWKV scales the weights of all its layers in its first forward, which must not be one through a few of them."""
    model, _ = family(name)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(plain(build(name), made_up(20, 1)), plain(model, made_up(20, 1)))


def test_positions_that_depend_on_the_length():
    """Longer texts are run whole; the state of a shorter one is not continued."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    model = build("falcon-h1", max_position_embeddings=24, rope_parameters=rope)
    member = member_of(model)
    assert member.batching == (
        f"{COPIES_ARE_KEPT} (up to 23 ids, longer ones from their start for every token: their length changes all "
        "positions)"
    )
    sequence = IdsSequence(made_up(20, 1))
    with torch.inference_mode():
        for back, new in [(0, 2), (0, 1), (0, 1), (0, 1), (0, 1), (4, 1), (0, 1), (0, 6)]:
            check(model, [sequence], member.next_logits([sequence]), **EXACT)
            sequence.rewrite(back, made_up(new, len(sequence.ids)))


# In an ensemble


@pytest.fixture(scope="module")
def recurrent_folders(tmp_path_factory, folders):
    root = tmp_path_factory.mktemp("recurrent")
    tiny.save_falcon_h1(root / "hybrid", tiny.byte_level())
    tiny.save_falcon_h1(root / "hybrid-words", tiny.sentencepiece_bpe())
    tiny.save_mamba(root / "mamba", tiny.wordpiece())
    return {**folders, **{path.name: path for path in root.iterdir()}}


def opened(folders, *names):
    with pytest.warns(CompatibilityWarning, match="one sequence at a time"):
        return Ensemble.load([folders[name] for name in names], progress=False, device="cpu")


@pytest.mark.parametrize("names", [("hybrid", "beta"), ("beta", "mamba"), ("hybrid", "hybrid-words", "mamba")])
def test_an_ensemble_answers_as_it_did_when_every_text_was_run_whole(recurrent_folders, names, monkeypatch):
    prompts = ["The quick brown fox jumps over", "Once upon a time there was a girl named Mira, and she"]
    options = SamplingParams(max_new_tokens=20, ignore_eos=True, logprobs=1)

    def answers():
        with opened(recurrent_folders, *names) as ensemble:
            sampled = ensemble.generate("你好", max_new_tokens=8, temperature=1.0, seed=3)
            given = [ensemble.generate(prompts, options), sampled]
            return given, ensemble.score("The quick brown", " fox jumps over"), ensemble.info

    (batch, sampled), score, info = answers()
    assert [COPIES_ARE_KEPT in member.batching for member in info.members].count(True) >= 1
    monkeypatch.setattr(
        causal, "RecurrentRunner", lambda *given: SequentialRunner(given[0], *given[2:], keeps_cache=False)
    )
    (whole_batch, whole_sampled), whole_score, _ = answers()
    for one, other in zip([*batch, sampled], [*whole_batch, whole_sampled], strict=True):
        assert one.token_ids == other.token_ids
        assert one.text == other.text
    for one, other in zip(batch, whole_batch, strict=True):
        assert [t.logprob for t in one.logprobs] == pytest.approx([t.logprob for t in other.logprobs], abs=1e-3)
        work = {w.name: w.tokens_run for w in one.member_work}
        slow = {w.name: w.tokens_run for w in other.member_work}
        assert sum(work.values()) < sum(slow.values()) / 3
    assert score.logprobs == pytest.approx(whole_score.logprobs, abs=1e-3)
