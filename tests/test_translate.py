"""Token translation: the map between vocabularies, and the average, against its definition in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategy_parts import (
    WEIGHTS,
    cuts,
    distributions,
    members,
    translate_of,
)
from tiny import byte_level, metaspace_first, sentencepiece_bpe, unigram, wordpiece
from tokenizers import Tokenizer, models

from deepen_core.fusion.anchors.segmentation import Segmentation
from deepen_core.fusion.base import StepInputs
from deepen_core.fusion.translate import translation
from deepen_core.tokenization.fast_tokenizer import Backend
from deepen_core.tokenization.vocabulary import Vocabulary


def plain_translate(vocabularies, logprobs, weights, main, by_uncertainty, prefer):
    """One sequence, as the definition has it."""
    mine = vocabularies[main]
    lines = [line.double().exp().tolist() for line in logprobs]
    mean = [i for i in range(mine.size) if i in mine.stop_ids or mine.token_bytes(i) is not None]
    room = sum(lines[main][i] for i in mean)
    own = {i: lines[main][i] / room for i in mean}
    ending = sum(own[i] for i in mine.stop_ids)

    def meant(v, token_id):
        value = v.token_bytes(token_id)
        if token_id in v.stop_ids:
            return {i: own[i] / ending for i in mine.stop_ids}
        ways = cuts(value, mine.tokens) if value else []
        first = prefer(ways, key=len)[:1] if ways else [(value or b"")[:n] for n in range(len(value or b""), 0, -1)]
        return next(({mine.tokens[token]: 1.0} for token in first if token in mine.tokens), own)

    told = []
    for n, v in enumerate(vocabularies):
        mass = dict.fromkeys(mean, 0.0)
        for token_id, value in enumerate(lines[n]):
            for i, share in meant(v, token_id).items():
                mass[i] += value * share
        told.append(own if n == main else mass)
    if by_uncertainty:
        sure = [math.exp(sum(m * math.log(m) for m in mass.values() if m)) for mass in told]
        weights = [w * s for w, s in zip(weights, sure, strict=True)]
    average = {i: sum(w * mass[i] for w, mass in zip(weights, told, strict=True)) / sum(weights) for i in mean}
    return torch.tensor([average[i] * room if i in average else value for i, value in enumerate(lines[main])]).log()


@given(
    count=st.sampled_from([2, 3]),
    main=st.integers(0, 1),
    seed=st.integers(0, 10**6),
    by_uncertainty=st.booleans(),
    prefer=st.sampled_from([min, max]),
)
def test_the_translated_average_is_what_its_definition_says(count, main, seed, by_uncertainty, prefer):
    vocabularies = members(count)
    logprobs = distributions(vocabularies, seed=seed)
    fusion = translate_of(vocabularies, main, prefer, by_uncertainty=by_uncertainty)
    found = fusion.fuse(StepInputs(logprobs, torch.tensor([WEIGHTS[count]] * 3)))
    for row in range(3):
        lines = [p[row] for p in logprobs]
        expected = plain_translate(vocabularies, lines, WEIGHTS[count], main, by_uncertainty, prefer)
        torch.testing.assert_close(found[row].double(), expected.double(), atol=1e-4, rtol=1e-4)


TOKENIZERS = [byte_level, sentencepiece_bpe, unigram, metaspace_first, wordpiece]


@pytest.mark.parametrize("other", TOKENIZERS)
@pytest.mark.parametrize("main", TOKENIZERS)
def test_a_token_is_translated_as_main_would_go_on_with_it(main, other):
    """As it cuts this text alone, inside another one; what is no text, or what it changes, goes by its beginning."""
    tokenizer = main()
    mine, v = Vocabulary.from_tokenizer(tokenizer), Vocabulary.from_tokenizer(other())
    main_cuts = Segmentation(mine, Backend(tokenizer))
    found = translation(v, v.size, mine, mine.size, main_cuts.firsts).tolist()
    for token_id, told in enumerate(found):
        value = v.token_bytes(token_id)
        longest = None if value is None else mine.longest_beginning(value)
        if value is None:
            assert told == mine.size + (token_id not in v.stop_ids)
        elif (first := main_cuts.after((), value)) is not None:
            assert mine.token_bytes(told) == first
        else:
            assert told == (mine.size + 1 if longest is None else longest)


def test_the_first_token_need_not_be_the_longest():
    """This one joins "bc" before "ab"."""
    pieces = {"a": 0, "b": 1, "c": 2, "bc": 3, "ab": 4}
    tokenizer = Tokenizer(models.BPE(pieces, [("b", "c"), ("a", "b")]))
    firsts = Segmentation(Vocabulary.from_tokenizer(tokenizer), Backend(tokenizer)).firsts
    assert firsts([b"abc", b"abb", b"c", b"x", b"a\xff"]) == [0, 4, 2, None, None]


def test_who_is_sure_counts_for_more():
    """And with `by_uncertainty=False` for what it was given."""
    vocabularies = members()
    wanted = [v.tokens[b"th"] for v in vocabularies]
    logits = [torch.zeros(2, v.size) for v in vocabularies]
    for member, line in enumerate(logits):
        line[member, wanted[member]] = 9.0  # each is sure in one of the sequences
    step = StepInputs([torch.log_softmax(x, -1) for x in logits], torch.tensor([[0.5, 0.5]] * 2))
    weighed, given = (translate_of(vocabularies, by_uncertainty=by).fuse(step).exp() for by in (True, False))
    for row in range(2):
        assert float(weighed[row, wanted[0]]) > 0.75
        assert float(given[row, wanted[0]]) < 0.7


def test_main_without_stop_tokens_cannot_end_a_text():
    """What the other gives to the end is then for main to distribute, as where main rules out to end it."""
    vocabularies = members()
    (mine, _), (first, second) = vocabularies, sorted(vocabularies[0].stop_ids)
    ends = sorted(vocabularies[1].stop_ids)
    logprobs = distributions(vocabularies, rows=1)
    never = torch.log_softmax(logprobs[0].index_fill(1, torch.tensor([first, second]), -torch.inf), -1)
    sure = torch.full((1, vocabularies[1].size), -torch.inf).index_fill(1, torch.tensor(ends), math.log(0.5))
    step = StepInputs([never, sure], torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(translate_of(vocabularies).fuse(step), never)
    mine.stop_ids = frozenset()
    torch.testing.assert_close(translate_of(vocabularies).fuse(step), never)
