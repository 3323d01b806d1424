"""What happens to requests whose member's server fails while sixteen of them are decoded."""

import threading
import time
from contextlib import contextmanager
from copy import copy

import pytest
from fake_model_server import Fault, Model, serving

from deepen_core import Ensemble, MemberConfig
from deepen_core.errors import MemberError

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

ALL = 10_000
TIMEOUT = 2.0
PROMPTS = [f"The quick brown fox {number} jumps over" for number in range(16)]
HIT = 5
OPTIONS = {"max_new_tokens": 4, "ignore_eos": True}
SERVER = {"slots": 16, "max_logprobs": ALL}

FAULTS = ["delay", "trickle", "endless", "cut", "close", "busy", "redirect", "garbage", "shape", "nan", "length", "few"]
OF_ONE = {"llama.cpp": ["rising", "mass", "twice", "beyond"], "vllm": ["text"]}
CASES = [(api, kind) for api, own in OF_ONE.items() for kind in [*FAULTS, *own] if kind != "redirect"]


@pytest.fixture(scope="module")
def models(folders):
    return {name: Model(folders[name]) for name in ("beta", "gamma")}


@pytest.fixture(scope="module")
def right(load):
    """The answers of both members, and those of `alpha` alone."""
    with load("alpha", "beta", fusion="union") as ensemble:
        both = ensemble.generate(PROMPTS, **OPTIONS)
        alone = ensemble.alone("alpha").generate(PROMPTS, **OPTIONS)
    return [[answer.token_ids for answer in answers] for answers in (both, alone)]


@pytest.fixture(scope="module")
def load_joined(folders):
    """Loads `alpha` from its folder and `beta` from a server."""

    def loaded(server, **options):
        given = {"url": server.url, "top_k": ALL, "timeout": TIMEOUT}
        models = [folders["alpha"], MemberConfig(model=str(folders["beta"]), server=given)]
        return Ensemble.load(models, fusion="union", device="cpu", progress=False, **options)

    return loaded


@pytest.fixture(scope="module")
def pairs(models, load_joined):
    """A server and its ensemble for each kind of server."""
    with (
        serving("llama.cpp", models["beta"], **SERVER) as one,
        serving("vllm", models["beta"], **SERVER) as other,
        load_joined(one) as first,
        load_joined(other) as second,
    ):
        yield {"llama.cpp": (one, first), "vllm": (other, second)}


@contextmanager
def failing(server, kind, **options):
    """Has the server fail while the block runs."""
    server.fault = Fault(kind, seconds=2 * TIMEOUT, **options)
    try:
        yield
    finally:
        server.fault = None


@pytest.mark.parametrize(("api", "kind"), CASES)
def test_a_request_that_fails_once_is_repeated(pairs, right, api, kind):
    server, ensemble = pairs[api]
    first = len(server.asked)
    with failing(server, kind, at=[first + 3, first + 30, first + 61]):
        answers = ensemble.generate(PROMPTS, **OPTIONS)
    assert [answer.token_ids for answer in answers] == right[0]
    assert not any(answer.warnings for answer in answers)


@pytest.mark.parametrize("policy", ["raise", "drop"])
@pytest.mark.parametrize("kind", ["delay", "cut", "redirect", "garbage", "length"])
@pytest.mark.parametrize("api", OF_ONE)
def test_of_sixteen_requests_only_the_one_that_fails_follows_the_policy(pairs, right, api, kind, policy):
    server, ensemble = pairs[api]
    tokenizer = ensemble._engine.members[1].tokenizer
    ids = tokenizer.reader.read_text(PROMPTS[HIT]).ids + tokenizer.encode(PROMPTS[HIT])
    started = time.monotonic()
    with failing(server, kind, on=True, text=ids[:-1]):
        answers = ensemble.generate(PROMPTS, on_member_error=policy, return_exceptions=True, **OPTIONS)
    took = time.monotonic() - started
    hit, others = answers.pop(HIT), [ids for number, ids in enumerate(right[0]) if number != HIT]
    assert [answer.token_ids for answer in answers] == others
    if policy == "raise":
        assert isinstance(hit, MemberError)
        assert server.url in str(hit)
    else:
        assert hit.token_ids == right[1][HIT]
        assert "was dropped from token 1" in hit.warnings[0]
    assert took < 4 * TIMEOUT


@pytest.mark.parametrize("api", OF_ONE)
def test_a_server_that_is_killed_drops_the_member_and_is_used_again_when_it_is_back(models, load_joined, right, api):
    with serving(api, models["beta"], **SERVER) as server, load_joined(server, on_member_error="drop") as ensemble:
        port, first = server.server_address[1], len(server.asked)
        answers = []
        asking = threading.Thread(target=lambda: answers.extend(ensemble.generate(PROMPTS, **OPTIONS)))
        asking.start()
        while len(server.asked) < first + 40:  # in the second of their steps, or the third
            time.sleep(0.001)
        server.kill()
        asking.join(20 * TIMEOUT)
        assert not asking.is_alive()
        assert all("failed and was dropped from token" in answer.warnings[0] for answer in answers)
        for answer, both in zip(answers, right[0], strict=True):
            steps = int(answer.warnings[0].partition("from token ")[2].split()[0]) - 1
            assert answer.token_ids[:steps] == both[:steps]
        with serving(api, models["beta"], port, **SERVER):
            again = ensemble.generate(PROMPTS, **OPTIONS)
    assert [answer.token_ids for answer in again] == right[0]
    assert not any(answer.warnings for answer in again)


@pytest.mark.parametrize("name", ["tiny", "other"])
@pytest.mark.parametrize("api", OF_ONE)
def test_a_server_that_is_restarted_with_another_model_is_not_used(models, load_joined, right, api, name):
    other = copy(models["gamma"])
    other.name, other.window = name, other.window + 1
    with serving(api, models["beta"], **SERVER) as server, load_joined(server, on_member_error="drop") as ensemble:
        assert [answer.token_ids for answer in ensemble.generate(PROMPTS, **OPTIONS)] == right[0]
        port = server.server_address[1]
        server.kill()
        with serving(api, other, port, **SERVER):
            answers = ensemble.generate(PROMPTS, **OPTIONS)
    assert [answer.token_ids for answer in answers] == right[1]
    assert all("has another model now" in answer.warnings[0] for answer in answers)
