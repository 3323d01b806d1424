"""Actors that die, are late, or reply to something else, while 16 requests decode: no wrong token, and no hang."""

import threading
import time

import numpy as np
import pytest
from ray_parts import NO_MACHINE, far_member, near_member, other
from tiny import CORPUS

from deepen_core import Ensemble
from deepen_core.errors import MemberError, MemberTimeoutError

PROMPTS = [line[:at] for at in (9, 14, 21) for line in CORPUS[:7]][:16]
OPTIONS = {"max_new_tokens": 12, "ignore_eos": True}
SOON = 30  # seconds in which whatever is to happen has happened


@pytest.fixture(scope="module")
def expected(folders):
    """The tokens of each answer, of the pair in this process and of main alone."""
    with Ensemble.from_members([near_member(folders["alpha"]), near_member(folders["beta"])]) as ensemble:
        return tokens(ensemble.generate(PROMPTS, **OPTIONS)), tokens(ensemble.alone(0).generate(PROMPTS, **OPTIONS))


def tokens(answers):
    return [answer.token_ids for answer in answers]


class Pair:
    """A member in this process, which is main, and one in an actor."""

    def __init__(self, folders, *later, **options):
        self.far, self.starter = far_member(folders["beta"], *later, **options)
        self.ensemble = Ensemble.from_members([near_member(folders["alpha"]), self.far])

    @property
    def link(self):
        return self.starter.links[-1]

    def ask(self, **options):
        return self.ensemble.generate(PROMPTS, **{**OPTIONS, **options})

    def outcomes(self, **options):
        return self.ensemble.generate(PROMPTS, return_exceptions=True, **{**OPTIONS, **options})


@pytest.fixture
def pair_of(folders):
    made = []

    def make(*later, **options):
        made.append(Pair(folders, *later, **options))
        return made[-1]

    yield make
    for pair in made:
        pair.ensemble.close()
        pair.far.close()


def at_step(number):
    """True in one of the steps that are asked."""
    count = iter(range(10_000))
    return lambda step: step.ahead is None and next(count) == number


@pytest.mark.parametrize("number", [0, 1, 5])
def test_one_that_dies_is_started_again_and_told_everything(pair_of, expected, number):
    pair = pair_of()
    pair.link.dies = at_step(number)
    assert tokens(pair.ask()) == expected[0]
    assert pair.ensemble.info.members[1].elsewhere.restarts == 1
    first = pair.link.steps()[0]
    assert len(first.updates) > 8
    assert all(update.known == 0 for update in first.updates)
    assert tokens(pair.ask()) == expected[0]


def test_one_that_dies_between_requests(pair_of, expected):
    pair = pair_of()
    assert tokens(pair.ask()) == expected[0]
    done = pair.far.work.forwards
    pair.link.kill()
    assert tokens(pair.ask()) == expected[0]
    assert pair.far.work.forwards > done


def test_one_that_dies_while_a_prompt_is_read_or_scored(pair_of, expected):
    pair = pair_of()
    score = pair.ensemble.score(PROMPTS[0], " the end").total
    pair.link.dies = lambda step: step.ahead is not None
    pair.ensemble.generate([f"{number} Once upon a time " * 6 for number in range(2)], max_new_tokens=2)
    assert len(pair.starter.links) == 2
    pair.link.kill()
    assert pair.ensemble.score(PROMPTS[0], " the end").total == pytest.approx(score, abs=1e-4)
    assert len(pair.starter.links) == 3
    assert tokens(pair.ask()) == expected[0]


def test_a_sequence_that_kills_it_twice_fails_and_the_others_go_on(pair_of, expected):
    """Every actor dies of one prompt."""
    pair = pair_of(max_restarts=-1)
    start, deadly = pair.starter.start, pair.far.tokenizer.encode("zzzz")[1:3]
    keys = set()

    def kills(step):
        for update in step.updates:
            ids = update.new.tolist()
            keys.update({update.key} if any(ids[n : n + 2] == deadly for n in range(len(ids))) else ())
        return any(update.key in keys for update in step.updates)

    def starts():
        loaded = start()
        loaded.link.dies = kills
        return loaded

    pair.starter.start = starts
    pair.link.dies = kills
    found = pair.ensemble.generate([*PROMPTS[:15], "zzzz"], return_exceptions=True, **OPTIONS)
    assert "died twice in one step" in str(found[15])
    assert tokens(found[:15]) == expected[0][:15]
    assert keys


@pytest.mark.parametrize("policy", ["raise", "drop"])
@pytest.mark.parametrize("why", ["never", "no machine", "another model"])
def test_one_that_is_not_started_again_follows_the_policy(pair_of, folders, expected, policy, why):
    pair = pair_of(*[folders["gamma"]] * (why == "another model"), max_restarts=0 if why == "never" else 3)
    pair.starter.fails = NO_MACHINE if why == "no machine" else None
    pair.link.dies = at_step(0)
    found = pair.outcomes(on_member_error=policy)
    said = {"never": "max_restarts is 0", "no machine": "no machine has", "another model": "is another model on"}[why]
    if policy == "raise":
        assert all(isinstance(one, MemberError) and said in str(one) for one in found)
    else:
        assert tokens(found) == expected[1]
        assert all(said in one.warnings[0] for one in found)
    started = time.monotonic()
    assert tokens(pair.ask(on_member_error="drop")) == expected[1]
    assert time.monotonic() - started < SOON


@pytest.mark.parametrize("policy", ["raise", "drop"])
def test_one_that_is_late_is_left_alone_until_it_is_done(pair_of, expected, policy):
    pair = pair_of(step_timeout=0.8)
    pair.link.late = 3.0
    started = time.monotonic()
    found = pair.outcomes(on_member_error=policy)
    if policy == "raise":
        assert all(isinstance(one, MemberTimeoutError) and "0.8 s (step_timeout" in str(one) for one in found)
        assert time.monotonic() - started < 3.0
    else:
        assert tokens(found) == expected[1]
    pair.link.late = 0.0
    while not pair.far._actor._overdue.done():
        (again,) = pair.ensemble.generate([PROMPTS[0]], return_exceptions=True, max_new_tokens=1)
        assert isinstance(again, MemberTimeoutError) or pair.far._actor._overdue is None
        if pair.far._actor._overdue is None:
            break
        time.sleep(0.05)
    assert tokens(pair.ask()) == expected[0]
    assert len(pair.starter.links) == 1


WRONG = {
    "of another step": other("number", lambda reply: reply.number - 1),
    "of another actor": other("actor", lambda _: "nobody"),
    "of another length": other("lengths", lambda reply: {key: n + 1 for key, n in reply.lengths.items()}),
    "of other sequences": other("lengths", lambda reply: {key + 1: n for key, n in reply.lengths.items()}),
    "too short": other("logprobs", lambda reply: reply.logprobs[:, :-1]),
    "of no place": other("logprobs", lambda reply: reply.logprobs[:0]),
    "not known there": other("unknown", lambda reply: list(reply.lengths)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_reply_is_not_used(pair_of, expected, wrong):
    pair = pair_of()
    due = at_step(4)
    pair.link.spoils = lambda reply: WRONG[wrong](reply) if reply.places and due(pair.link.steps()[0]) else reply
    assert tokens(pair.ask()) == expected[0]
    whole = [step for step in pair.link.steps()[1:] if len(step.updates) > 1 and not any(u.known for u in step.updates)]
    assert len(whole) == 1


@pytest.mark.parametrize("wrong", ["of another step", "not known there"])
def test_replies_that_stay_wrong_follow_the_policy(pair_of, expected, wrong):
    pair = pair_of()
    pair.link.spoils = WRONG[wrong]
    assert tokens(pair.ask(on_member_error="drop")) == expected[1]
    found = pair.outcomes(on_member_error="raise")
    assert all(isinstance(one, MemberError) for one in found)
    assert "actor of member 'beta'" in str(found[0])
    pair.link.spoils = lambda reply: reply
    assert tokens(pair.ask()) == expected[0]


def test_garbage_is_no_finite_logit(pair_of, expected):
    pair = pair_of()
    pair.link.spoils = other("logprobs", lambda reply: np.full_like(reply.logprobs, np.nan))
    found = pair.ask(on_member_error="drop")
    assert tokens(found) == expected[1]
    assert "NonFiniteLogitsError" in found[0].warnings[0]


def test_what_the_model_raises_there_is_raised_here(pair_of, expected):
    pair = pair_of()
    member = pair.link.actor._loaded
    run, member.next_logits = member.next_logits, lambda _: (_ for _ in ()).throw(RuntimeError("CUDA out of memory"))
    (found,) = pair.ensemble.generate([PROMPTS[0]], return_exceptions=True, **OPTIONS)
    assert "CUDA out of memory. Lower max_batch_size" in str(found)
    member.next_logits = run
    assert tokens(pair.ask()) == expected[0]


def test_an_actor_that_has_forgotten_is_told_everything(pair_of, expected):
    pair = pair_of()
    due = at_step(3)
    actor = pair.link.actor
    pair.link.spoils = lambda reply: actor.forget() if due(pair.link.steps()[0]) else None
    spoils = pair.link.spoils
    pair.link.spoils = lambda reply: (spoils(reply), reply)[1]
    assert tokens(pair.ask()) == expected[0]
    pair.far.forget()
    assert tokens(pair.ask()) == expected[0]
    assert pair.ensemble.info.members[1].elsewhere.restarts == 0


def test_closing_ends_whoever_waits(pair_of):
    pair = pair_of()
    pair.link.late = 60.0
    found = []
    asks = threading.Thread(target=lambda: found.extend(pair.outcomes()))
    asks.start()
    while not pair.link.steps():
        time.sleep(0.01)
    pair.far.close()
    asks.join(SOON)
    assert not asks.is_alive()
    assert all("was closed" in str(one) for one in found)
    assert len(pair.starter.links) == 1
