"""What a form says of an answer, by its grammar."""

import pytest
import tiny

from deepen_core.chat.thoughts import Thoughts
from deepen_core.config import SamplingParams
from deepen_core.constraints.matcher import Constraints
from deepen_core.members.tokenizer import MemberTokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return MemberTokenizer(tiny.byte_level(), "main")


@pytest.fixture(scope="module")
def constraints(tokenizer):
    return Constraints(tokenizer.vocabulary)


@pytest.fixture
def verdict(tokenizer, constraints):
    """What a form says of an answer: "whole", "more" if it may not end there, "no" if it may not begin so."""

    def judge(form, text, thinking="never", given=SamplingParams()):
        params = form.params(given, Thoughts(thinking))
        constraint = constraints.start(params, starts_text=False)
        size = tokenizer.vocabulary.size
        stop = min(tokenizer.vocabulary.stop_ids)
        for token in tokenizer.encode(text):
            if constraint.complete or not constraint.allowed(size, "cpu")[token]:
                return "no"
            constraint.advance(token)
        return "whole" if constraint.allowed(size, "cpu")[stop] else "more"

    return judge
