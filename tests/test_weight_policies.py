"""Weights that change from step to step with what the members say, against their equations."""

import math

import pytest
import torch
from table_member import TableMember, a_byte
from tiny import CORPUS, byte_level, sentencepiece_bpe

from deepen_core import Ensemble
from deepen_core.config import SamplingParams
from deepen_core.config.weights import POLICIES
from deepen_core.engine.decoder import Decoder
from deepen_core.engine.prompt_likelihood import prompt_text
from deepen_core.errors import ConfigurationError, MemberError
from deepen_core.fusion.comparison import Comparison
from deepen_core.fusion.policies import PerplexityWeights, WeighingInputs, policy_class, policy_named
from deepen_core.fusion.prompts import PromptLikelihoods

TOLD = [
    torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]),
    torch.tensor([[0.25, 0.5, 0.25], [0.0, 1.0, 0.0]]),
    torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]),  # abstains in the first line, where it has main's
]
SHARES = [0.2, 0.3, 0.5]
SPEAKING = torch.tensor([[True, False, False], [True, True, True], [True, True, False]])


def inputs(told=TOLD):
    comparison = Comparison(0, told, torch.tensor([-1, 1, 0]), torch.tensor([0, 1, 2, 3]))
    return WeighingInputs([], SPEAKING, torch.zeros(3, 3), comparison)


def entropy(row):
    return -sum(p * math.log(p) for p in row if p > 0)


def scaled(weights):
    return [w / sum(weights) for w in weights]


def weighed(name, told=TOLD):
    """As they are used: members that abstain have none, and the rest is scaled."""
    found = policy_named(name, SHARES).weights(inputs(told)) * SPEAKING
    return [scaled(row) for row in found.tolist()]


def test_confidence():
    found = weighed("confidence")
    assert found[0] == [1, 0, 0]
    for place, line, speaking in ((1, 1, [0, 1, 2]), (2, 0, [0, 1])):
        raised = [SHARES[n] * math.exp(-entropy(TOLD[n][line].tolist())) for n in speaking]
        assert found[place][: len(speaking)] == pytest.approx(scaled(raised), abs=1e-6)


def test_consistency():
    found = weighed("consistency")
    assert found[0] == [1, 0, 0]
    for place, line, speaking in ((1, 1, [0, 1, 2]), (2, 0, [0, 1])):
        rows = [TOLD[n][line].tolist() for n in speaking]
        mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        agreement = [sum(p * math.exp(-2 * abs(p - m)) for p, m in zip(row, mean, strict=True)) for row in rows]
        ratio = [SHARES[n] * a / max(entropy(row), 1e-3) for n, a, row in zip(speaking, agreement, rows, strict=True)]
        ratio[0] = max(ratio[0], sum(ratio[1:]))
        assert found[place][: len(speaking)] == pytest.approx(scaled(ratio), abs=1e-5)
        assert found[place][0] >= 0.5 - 1e-6


@pytest.mark.parametrize("names", [("confidence", "consistency"), ("consistency", "confidence")])
def test_policies_that_share_a_comparison(names):
    shared = inputs()
    for name in names:
        policy = policy_named(name, SHARES)
        assert torch.equal(policy.weights(shared), policy.weights(inputs()))


@pytest.mark.parametrize("name", ["confidence", "consistency"])
def test_a_member_that_never_speaks(name):
    assert weighed(name, [TOLD[0], TOLD[1], None])[2][:2] == pytest.approx(weighed(name)[2][:2], abs=1e-6)


@pytest.fixture(scope="module")
def tables():
    """Each has met half of the texts; their tokenizers differ."""
    return TableMember("first", byte_level(), CORPUS[:4]), TableMember("second", sentencepiece_bpe(), CORPUS[4:7])


@pytest.mark.parametrize("fusion", ["deepen", "product"])
@pytest.mark.parametrize("name", POLICIES)
def test_answers_and_scores_agree(tables, fusion, name):
    options = {"max_new_tokens": 16, "ignore_eos": True}
    prompts = ["Once upon a time", "The quick brown", "def mean"]
    with Ensemble.from_members(tables, fusion=fusion, weights=name) as ensemble:
        assert ensemble.info.weight_policy == name
        answers = ensemble.generate(prompts, logprobs=1, **options)
        scores = ensemble.score(prompts, [answer.text for answer in answers])
    compared = [pair for pair in zip(answers, scores, strict=True) if pair[0].token_ids == pair[1].token_ids]
    assert compared
    for answer, score in compared:
        assert score.logprobs == pytest.approx([token.logprob for token in answer.logprobs], abs=1e-4)


COMPARING = [name for name in POLICIES if policy_class(name).compares]


@pytest.mark.parametrize("name", COMPARING)
def test_strategies_that_compare_otherwise_refuse(tables, name):
    with pytest.raises(ConfigurationError, match=rf"weights={name!r} needs .* fusion='union' does not: use 'deepen'"):
        Ensemble.from_members(tables, fusion="union", weights=name)


def share(members, text):
    found = [a_byte(member, text) for member in members]
    count = min(40, *(size for _, size in found))
    raised = [s * math.exp(count * nats) for s, (nats, _) in zip((0.4, 0.6), found, strict=True)]
    return scaled([weight if weight >= 1e-3 else 0.0 for weight in scaled(raised)])


@pytest.mark.parametrize("fusion", ["deepen", "union"])
def test_perplexity_is_static_weights_by_the_prompt(tables, fusion):
    """A batch of prompts that different members know, against each with the weights that it comes to."""
    options = {"max_new_tokens": 12, "ignore_eos": True, "logprobs": 1}
    prompts = [CORPUS[0][:30], CORPUS[5][:30], "zzz 123"]
    with Ensemble.from_members(tables, fusion=fusion, weights=PerplexityWeights([0.4, 0.6])) as ensemble:
        together = ensemble.generate(prompts, **options)
        scores = ensemble.score(prompts, [" and so on"] * 3)
    shares = [share(tables, prompt) for prompt in prompts]
    assert shares[0][0] > 0.6 > 0.4 > shares[1][0]  # or it would say nothing
    for prompt, weights, answer, score in zip(prompts, shares, together, scores, strict=True):
        with Ensemble.from_members(tables, fusion=fusion, weights=weights) as ensemble:
            same = ensemble.generate(prompt, **options)
            expected = ensemble.score(prompt, " and so on")
        assert answer.text == same.text
        assert [t.logprob for t in answer.logprobs] == pytest.approx([t.logprob for t in same.logprobs], abs=1e-4)
        assert score.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def test_a_member_that_was_dropped_leaves_its_weight_to_the_others():
    speaking = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    nats = torch.tensor([[-4.0, -4.01, -3.0]] * 3).where(speaking, -torch.inf)
    prompts = PromptLikelihoods(nats, torch.full((3,), 100.0))
    step = WeighingInputs([], speaking, torch.zeros(3, 3), prompts=prompts)
    found = PerplexityWeights(SHARES).weights(step).tolist()
    assert found[0] == [0, 0, pytest.approx(1)]
    assert found[1] == pytest.approx(scaled([0.2, 0.3 * math.exp(-0.4), 0]), abs=1e-4)
    assert found[2] == [1, 0, 0]
    assert PerplexityWeights([0.0, 0.5, 0.5]).weights(step)[2].tolist() == [0, 0, 0]


def test_a_weight_below_a_thousandth_is_zero():
    def weights(nats):
        prompts = PromptLikelihoods(torch.tensor([nats]), torch.tensor([100.0]))
        step = WeighingInputs([], torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2), prompts=prompts)
        return PerplexityWeights([0.5, 0.5]).weights(step)[0].tolist()

    assert weights([0.0, -0.17]) == pytest.approx(scaled([1.0, math.exp(-6.8)]), abs=1e-6)
    assert weights([0.0, -0.175]) == [1, 0]


class Counted(TableMember):
    """Counts the steps and the ids of prompts that it runs, and may fail from one step on."""

    def __init__(self, *given):
        super().__init__(*given)
        self.steps = self.prefilled = 0
        self.fails_at = None

    def next_logits(self, sequences):
        self.steps += len(sequences)
        if self.fails_at is not None and self.steps >= self.fails_at:
            raise RuntimeError("broken")
        return super().next_logits(sequences)

    def prefill(self, sequence, limit):
        ran = super().prefill(sequence, limit)
        self.prefilled += ran
        return ran


KNOWN = [CORPUS[0], CORPUS[5]]  # by the first and by the second member


@pytest.fixture
def counted():
    return [Counted("first", byte_level(), CORPUS[:4]), Counted("second", sentencepiece_bpe(), CORPUS[4:7])]


@pytest.mark.parametrize("fusion", ["deepen", "product", "union", "bytes"])
def test_a_member_without_weight_after_the_prompt_is_not_run(counted, fusion):
    """Main answers what it knows as if alone; for what the other one knows both are run, main for its tokens."""
    other = counted[1]
    options = {"max_new_tokens": 8, "ignore_eos": True, "logprobs": 1}
    with Ensemble.from_members(counted, fusion=fusion, weights="perplexity") as ensemble:
        alone = ensemble.alone(0).generate(KNOWN[0], **options)
        assert (other.steps, other.prefilled) == (0, 0)
        answer = ensemble.generate(KNOWN[0], **options)
        assert (other.steps, other.prefilled) == (0, 0)
        assert answer.token_ids == alone.token_ids
        assert [t.logprob for t in answer.logprobs] == pytest.approx([t.logprob for t in alone.logprobs], abs=1e-5)
        assert [work.steps for work in answer.member_work] == [8, 0]
        single = [ensemble.generate(prompt, **options).token_ids for prompt in KNOWN]
        before = other.steps
        assert before > 0
        together = ensemble.generate(KNOWN, **options)  # with a neighbour that needs both
        assert [answer.token_ids for answer in together] == single
        assert other.steps == 2 * before


def test_what_a_member_without_weight_has_not_read_delays_no_step(counted):
    """Nor does its context window end the answer."""
    other = counted[1]
    with Ensemble.from_members(counted, weights="perplexity") as ensemble:
        decoder = ensemble._engine.decoder
        sequence = decoder.start(KNOWN[0], SamplingParams(max_new_tokens=4, ignore_eos=True))
        decoder.prefill(sequence, 1000)
        assert sequence.needed == [True, False]
        sequence.main_sequence.cached = len(sequence.main_sequence.ids) - 1  # as after the rest of its prefill
        assert sequence.pending == sequence.main_sequence.unread < sequence.member_sequences[1].unread
        other.context_window = 1
        decoder.step([sequence])
    assert len(sequence.token_ids) == 1
    assert not sequence.warnings


def test_a_member_that_was_not_needed_steps_in_for_one_that_is_dropped(counted):
    """With the whole prompt and all that has been said so far, as if it had been there from the start."""
    main, third = counted[0], Counted("third", byte_level(), CORPUS[:4])
    lost = Counted("lost", sentencepiece_bpe(), CORPUS[4:7])
    lost.fails_at = 3
    options = {"max_new_tokens": 8, "ignore_eos": True, "on_member_error": "drop", "logprobs": 1}
    weights = PerplexityWeights([0.0, 0.5, 0.5])
    with Ensemble.from_members([main, third, lost], fusion="union", weights=weights) as ensemble:
        answer = ensemble.generate(KNOWN[1], **options)
    assert "'lost' failed and was dropped from token 3" in answer.warnings[0]
    assert [work.steps for work in answer.member_work] == [8, 5, 2]  # main alone says the third token
    with Ensemble.from_members([main, third], fusion="union", weights=[0.0, 1.0]) as ensemble:
        expected = ensemble.score(KNOWN[1], answer.text).logprobs
    assert [token.logprob for token in answer.logprobs][3:] == pytest.approx(expected[3:], abs=1e-4)


def test_of_a_conversation_the_text_counts_and_not_the_template():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert prompt_text(messages) == "Be brief.\n\nWhy?"
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]
    assert prompt_text([messages[0], {"role": "user", "content": parts}]) == "Be brief.\n\nWhy?"
    assert prompt_text("x" * 5000 + "the end") == "x" * 500 + "the end"
    assert prompt_text([{"role": "assistant", "content": None, "tool_calls": []}]) == ""


def test_a_member_whose_prompt_cannot_be_read(tables):
    class Broken(TableMember):
        def token_logprobs(self, ids, start):
            raise RuntimeError("no prompts today")

    pair = [tables[0], Broken("second", sentencepiece_bpe(), CORPUS[4:7])]
    with Ensemble.from_members(pair, weights="perplexity") as ensemble:
        with pytest.raises(MemberError, match=r"'second' failed .* no prompts today"):
            ensemble.generate("The quick brown", max_new_tokens=3)
        answer = ensemble.generate("The quick brown", max_new_tokens=3, on_member_error="drop")
        assert "dropped" in answer.warnings[0]
        with pytest.raises(MemberError, match="no prompts today"):
            ensemble.score("The quick brown", " fox")
    with Ensemble.from_members(tables[:1]) as alone:
        assert answer.text == alone.generate("The quick brown", max_new_tokens=3).text


@pytest.mark.parametrize("nats", [math.nan, -math.inf])
def test_a_likelihood_that_is_not_finite_says_nothing(tables, nats):
    """The shares stay, rather than main speaking alone without a word about it."""

    class Broken(TableMember):
        def token_logprobs(self, ids, start, source=None):
            return [nats] * (len(ids) - start)

    pair = [tables[0], Broken("second", sentencepiece_bpe(), CORPUS[4:7])]
    with Ensemble.from_members(pair, weights="perplexity") as ensemble:
        found = ensemble.generate(CORPUS[5][:30], max_new_tokens=4, logprobs=0)
    with Ensemble.from_members(tables, weights="static") as ensemble:
        expected = ensemble.generate(CORPUS[5][:30], max_new_tokens=4, logprobs=0)
        main = ensemble.alone(0).generate(CORPUS[5][:30], max_new_tokens=4, logprobs=0)
    assert [t.logprob for t in found.logprobs] == pytest.approx([t.logprob for t in expected.logprobs], abs=1e-4)
    assert [t.logprob for t in found.logprobs] != pytest.approx([t.logprob for t in main.logprobs], abs=1e-2)


def test_a_prompt_without_a_likelihood(tables):
    """There is one token only: the shares stay."""
    with Ensemble.from_members(tables, weights="perplexity") as ensemble:
        found = ensemble.generate("T", max_new_tokens=4, ignore_eos=True)
    with Ensemble.from_members(tables) as ensemble:
        assert found.text == ensemble.generate("T", max_new_tokens=4, ignore_eos=True).text


class Logged(TableMember):
    """Takes down whether a step is made while it reads a prompt for its likelihood."""

    def __init__(self, *given):
        super().__init__(*given)
        self.steps, self.reads = [], []

    def token_logprobs(self, ids, start, source=None):
        self.reads.append(bool(self.steps))
        return super().token_logprobs(ids, start)


def test_prompts_are_read_between_steps_and_count_in_the_budget(tables, monkeypatch):
    """So that a stream does not wait for all of a dozen prompts that arrive at once."""
    member, step = Logged("first", byte_level(), CORPUS[:4]), Decoder.step

    def watched(decoder, sequences):
        member.steps.append(1)
        step(decoder, sequences)
        member.steps.pop()

    monkeypatch.setattr(Decoder, "step", watched)
    with Ensemble.from_members([member, tables[1]], weights="perplexity", max_batch_size=16) as ensemble:
        stream = ensemble.submit("The quick brown", max_new_tokens=30, ignore_eos=True)
        others = [ensemble.submit(f"{n} the dog sleeps", max_new_tokens=2) for n in range(12)]
        for handle in (stream, *others):
            handle.result()
        assert member.reads == [False] * 13
        decoder, text = ensemble._engine.decoder, "the dog sleeps " * 10
        read, unread = (decoder.start(f"{text}{n}", SamplingParams(max_new_tokens=2)) for n in (1, 2))
        asked = max(len(one.tokenizer.encode(read.prompt_text)) for one in (member, tables[1]))
        assert decoder.prefill(read, 5) >= asked > 5  # of what is read, both members have the whole
        assert read.prompt_likelihood
        assert not unread.prompt_likelihood
        decoder.step([read, unread])  # an evaluation's sequences may come to a step without that
        assert unread.prompt_likelihood
        assert member.reads == [False] * 14 + [True]
