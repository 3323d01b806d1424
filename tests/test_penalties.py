"""Biases and penalties on logits, against sums in plain Python."""

import random
from collections import Counter

import pytest
import torch

from deepen_core.config import SamplingParams
from deepen_core.errors import SamplingError
from deepen_core.sampling.sampler import Sampler

SIZE = 30
PROMPT = "The quick brown fox"


def penalised(logits, history, answer, p):
    """The logits as the options define them: bias, repetition of prompt and answer, then counts in the answer."""
    scores = [float(logit) + (p.logit_bias or {}).get(token, 0.0) for token, logit in enumerate(logits)]
    since = 0 if p.penalty_window is None else -p.penalty_window
    for token in set(history[since:]):
        scores[token] *= p.repetition_penalty if scores[token] < 0 else 1 / p.repetition_penalty
    for token, count in Counter(answer[since:]).items():
        scores[token] -= p.frequency_penalty * count + p.presence_penalty
    return scores


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("seed", range(8))
def test_choices_follow_biases_and_penalties(window, seed):
    rng = random.Random(seed)
    for _ in range(25):
        params = SamplingParams(
            repetition_penalty=rng.choice([1.0, 1.3, 0.7]),
            frequency_penalty=rng.uniform(-1, 1),
            presence_penalty=rng.uniform(-1, 1),
            logit_bias={rng.randrange(SIZE): rng.uniform(-3, 3) for _ in range(rng.randrange(4))},
            penalty_window=window,
        )
        logits = torch.tensor([rng.gauss(0, 1) for _ in range(SIZE)], dtype=torch.float64)
        answer = [rng.randrange(SIZE) for _ in range(rng.randrange(9))]
        history = [rng.randrange(SIZE) for _ in range(3)] + answer
        expected = penalised(logits.tolist(), history, answer, params)
        assert Sampler(params).choose(logits, history, answer) == max(range(SIZE), key=expected.__getitem__)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forbidden_tokens_are_never_chosen(temperature):
    """However high they score, also by a bias, and if they tie with others."""
    params = SamplingParams(temperature=temperature, logit_bias={2: 90.0}, seed=1)
    logits = torch.tensor([50.0, 60.0, 0.0, 1.0, 1.0, 60.0])
    for never in ([1, 2, 5], [0, 1, 2, 5], [2], []):
        chosen = Sampler(params, never).choose(logits.clone(), ())
        scores = logits + torch.tensor([0.0, 0.0, 90.0, 0.0, 0.0, 0.0])
        assert chosen not in never
        assert scores[chosen] == max(score for n, score in enumerate(scores) if n not in never)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_of_equal_scores_is_chosen(dtype):
    """As `transformers` does; in lower precision many are equal."""
    for seed in range(20):
        logits = torch.randint(0, 4, (SIZE,), generator=torch.Generator().manual_seed(seed)).to(dtype)
        scores = logits.tolist()
        assert Sampler(SamplingParams()).choose(logits, ()) == scores.index(max(scores))


def test_a_window_forgets():
    answer, logits = [1, 2, 3], torch.tensor([0.0, 1.0, 0.9, 0.8])
    options = {"frequency_penalty": 2.0}
    assert Sampler(SamplingParams(**options)).choose(logits, (), answer) == 0
    assert Sampler(SamplingParams(**options, penalty_window=1)).choose(logits, (), answer) == 1


def test_a_bias_rules_tokens_out_and_in(pair):
    plain = pair.generate(PROMPT, max_new_tokens=5, ignore_eos=True).token_ids
    without = pair.generate(PROMPT, max_new_tokens=5, ignore_eos=True, logit_bias={plain[0]: -100, str(plain[1]): -100})
    assert not {plain[0], plain[1]} & set(without.token_ids)
    wanted = pair.tokenize("z")[-1]
    assert set(pair.generate(PROMPT, max_new_tokens=3, logit_bias={wanted: 100}).token_ids) == {wanted}


@pytest.mark.parametrize(
    ("bias", "told"),
    [
        ({"Paris": 5}, "'Paris' is no token id: a text may be several tokens"),
        ({True: 5}, "True is no token id"),
        ({-1: 5}, "-1 is no token id"),
        ({1: 101}, "the bias of token 1 is 101: give a number from -100 to 100"),
        ({1: float("nan")}, "the bias of token 1 is nan"),
        ([1], "give a mapping of token ids to numbers"),
        ({10**6: 1}, "logit_bias names token 1000000, but 'alpha' has "),
    ],
)
def test_wrong_biases_are_refused(pair, bias, told):
    with pytest.raises(SamplingError, match=told):
        pair.generate(PROMPT, logit_bias=bias)
