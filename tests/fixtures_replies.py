"""What a form says of an answer, by its grammar."""

import random

import pytest
import tiny

from deepen_core.chat.thoughts import Thoughts
from deepen_core.config import SamplingParams
from deepen_core.constraints.matcher import Constraints
from deepen_core.members.tokenizer import MemberTokenizer

_PLAIN = SamplingParams()


@pytest.fixture(scope="module")
def tokenizer():
    return MemberTokenizer(tiny.byte_level(), "main")


@pytest.fixture(scope="module")
def constraints(tokenizer):
    return Constraints(tokenizer.vocabulary)


@pytest.fixture
def spoken(tokenizer, constraints):
    """An answer of tokens chosen at random among those that a constraint allows; ended where it may end."""

    def speak(given, seed):
        constraint, chosen = constraints.start(given, starts_text=False), []
        size, dice = tokenizer.vocabulary.size, random.Random(seed)
        stops = tokenizer.vocabulary.stop_ids
        while not constraint.complete:
            allowed = constraint.allowed(size, "cpu")
            if allowed[min(stops)] and dice.random() < 0.2:
                break
            chosen.append(dice.choice([i for i in allowed.nonzero().flatten().tolist() if i not in stops]))
            constraint.advance(chosen[-1])
        return tokenizer.vocabulary.join(chosen).decode(errors="replace")

    return speak


@pytest.fixture
def verdict(tokenizer, constraints):
    """What a form, or a request without one, says of an answer: "whole", "more" if it may not end there, "no" if it may
    not begin so."""

    def judge(form, text, thinking="never", given=_PLAIN):
        params = form.params(given, Thoughts(thinking)) if form else given
        constraint = constraints.start(params, starts_text=False)
        size = tokenizer.vocabulary.size
        stop = min(tokenizer.vocabulary.stop_ids)
        for token in tokenizer.encode(text):
            if constraint.complete or not constraint.allowed(size, "cpu")[token]:
                return "no"
            constraint.advance(token)
        return "whole" if constraint.allowed(size, "cpu")[stop] else "more"

    return judge
