"""Members behind model servers answer as the same model in this process does."""

import threading

import pytest
import torch
from fake_model_server import Fault, Model, serving

from deepen_core import Ensemble, MemberConfig
from deepen_core.errors import CompatibilityWarning, MemberTimeoutError

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

ALL = 10_000  # more tokens than a tiny model has
PROMPT = "The quick brown fox"


@pytest.fixture(scope="module", params=["llama.cpp", "vllm"])
def server(request, folders):
    """A server of `beta`."""
    with serving(request.param, Model(folders["beta"]), max_logprobs=ALL) as running:
        yield running


@pytest.fixture
def joined(folders):
    """Loads `alpha` from its folder and `beta` from a server."""

    def load(server, **options):
        given = {"fusion": "union", "device": "cpu", "progress": False, **options}
        top_k = given.pop("top_k", ALL)
        member = MemberConfig(model=str(folders["beta"]), server={"url": server.url, "top_k": top_k})
        return Ensemble.load([folders["alpha"], member], **given)

    return load


@pytest.mark.parametrize("fusion", ["union", "product", "bytes"])
@pytest.mark.parametrize("main", [0, 1])
def test_answers_are_those_of_the_model_in_this_process(server, joined, load, fusion, main):
    options = {"fusion": fusion, "main": main, "weights": "static" if fusion == "union" else "adaptive"}
    with joined(server, **options) as remote, load("alpha", "beta", **options) as local:
        for prompt in (PROMPT, "def mean(values):\n    total", [{"role": "user", "content": "Hallo, wie geht's?"}]):
            own, its = (ens.generate(prompt, max_new_tokens=24, logprobs=3) for ens in (local, remote))
            assert its.token_ids == own.token_ids
            torch.testing.assert_close(
                torch.tensor([token.logprob for token in its.logprobs]),
                torch.tensor([token.logprob for token in own.logprobs]),
                atol=1e-4,
                rtol=0,
            )


def test_scores_are_those_of_the_model_in_this_process(server, joined, load):
    text = " jumps over the lazy dog, Straße."
    with joined(server) as remote, load("alpha", "beta", fusion="union") as local:
        own, its = (ens.score(PROMPT, text) for ens in (local, remote))
    torch.testing.assert_close(torch.tensor(its.logprobs), torch.tensor(own.logprobs), atol=1e-4, rtol=0)
    for one, other in zip(own.members, its.members, strict=True):
        torch.testing.assert_close(torch.tensor(other.logprobs), torch.tensor(one.logprobs), atol=1e-4, rtol=0)


def test_tokens_that_are_not_among_the_top_are_scored_too(server, joined, load):
    with joined(server, top_k=4) as remote, load("alpha", "beta") as local:
        ids = local._engine.members[1].tokenizer.encode("Hund schläft 333")
        own, its = (ens._engine.members[1].token_logprobs(ids, 1) for ens in (local, remote))
    torch.testing.assert_close(torch.tensor(its), torch.tensor(own), atol=1e-4, rtol=0)


def test_a_member_with_the_top_tokens_alone_chooses_as_the_whole_one_mostly(server, joined, load):
    prompts = [f"{PROMPT} {word}" for word in ("sleeps", "and", "was", "über", "mean", "1, 22,")]
    with joined(server, top_k=200, main=1) as remote, load("alpha", "beta", fusion="union", main=1) as local:
        own, its = (ens.generate(prompts, max_new_tokens=8, ignore_eos=True) for ens in (local, remote))
    same = [a.token_ids == b.token_ids for a, b in zip(own, its, strict=True)]
    assert sum(same) >= len(same) - 1


@pytest.mark.parametrize("main", [0, 1])
def test_each_step_evaluates_the_new_ids_alone(folders, main):
    with serving("llama.cpp", Model(folders["beta"])) as server:
        config = MemberConfig(model=str(folders["beta"]), server=server.url)
        models = [folders["alpha"], config]
        with Ensemble.load(models, main=main, fusion="union", device="cpu", progress=False) as ensemble:
            member = ensemble._engine.members[1]
            ensemble.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
            first = member.work.ids_run
            answer = ensemble.generate(PROMPT + " jumps", max_new_tokens=20, ignore_eos=True)
            work = answer.member_work[1]
        assert member.work.ids_rerun <= 2  # a text that begins another may end before it
        assert member.work.ids_copied >= 4  # of the prompt that both begin with, in the same slot
        assert member.work.ids_run - first <= work.prompt_tokens + work.tokens_run + 2
        assert len(set(server.slots[1:])) == 1
        assert all(0 <= slot < 4 for slot in server.slots[1:])


def test_each_sequence_has_a_slot_and_the_least_used_is_given_away(folders):
    with serving("llama.cpp", Model(folders["beta"]), slots=3) as server:
        config = MemberConfig(model=str(folders["beta"]), server={"url": server.url, "top_k": ALL})
        with Ensemble.load([config], fusion="union", progress=False) as ensemble:
            member = ensemble._engine.members[0]
            apart = [ensemble.generate(f"{word} {PROMPT}", max_new_tokens=5, ignore_eos=True) for word in "abcde"]
            start = len(server.slots)
            few = ensemble.generate([f"{word} {PROMPT}" for word in "abc"], max_new_tokens=5, ignore_eos=True)
            of_three = {
                tuple(ids[:3]): slot for ids, slot in zip(server.asked[start:], server.slots[start:], strict=True)
            }
            all_five = ensemble.generate([f"{word} {PROMPT}" for word in "abcde"], max_new_tokens=5, ignore_eos=True)
            again = member.work.ids_rerun
        assert sorted(of_three.values()) == [0, 1, 2]
        assert [answer.token_ids for answer in [*few, *all_five]] == [a.token_ids for a in [*apart[:3], *apart]]
        assert again > 20  # five sequences on three slots push each other out
        assert server.most_at_once > 1


def test_long_prompts_are_run_ahead(server, joined):
    long = " ".join(["The dog sleeps near the sea."] * 10)
    with joined(server) as ensemble:
        start = len(server.asked)
        answers = ensemble.generate([long, f"Once {long}"], max_new_tokens=2)
        asked = {len(ids) for ids in server.asked[start:]}
    for answer in answers:
        prompt = answer.member_work[1].prompt_tokens
        assert {prompt - 2, prompt - 1, prompt} <= asked  # ahead, then before the last id and after it


def test_members_of_servers_run_at_the_same_time(folders):
    """The first request of each is answered only while the other's is waited for too."""
    model, meeting = Model(folders["beta"]), threading.Barrier(2)
    with serving("llama.cpp", model) as one, serving("vllm", model, max_logprobs=ALL) as other:
        members = [MemberConfig(model=str(folders["beta"]), server=server.url) for server in (one, other)]
        with Ensemble.load(members, fusion="union", progress=False) as ensemble:
            expected = ensemble.generate(PROMPT, max_new_tokens=4, ignore_eos=True)
            for server in (one, other):
                server.fault = Fault("meet", at=[len(server.asked) + 1], meeting=meeting)
            answer = ensemble.generate(PROMPT, max_new_tokens=4, ignore_eos=True, on_member_error="raise")
    assert answer.token_ids == expected.token_ids
    assert not meeting.broken
    assert all(server.fault.met for server in (one, other))


def test_answers_to_a_constraint(server, joined):
    with joined(server, main=1) as ensemble:
        answer = ensemble.generate(PROMPT, regex="[0-9]{3}", max_new_tokens=10)
    assert answer.text.isdigit()
    assert len(answer.text) == 3


def test_logits_that_pad_the_model_are_no_tokens(folders):
    with serving("llama.cpp", Model(folders["beta"], padding=40)) as server:
        config = MemberConfig(model=str(folders["beta"]), server={"url": server.url, "top_k": ALL})
        with Ensemble.load([config], fusion="union", progress=False) as ensemble:
            member = ensemble._engine.members[0]
            assert member.vocabulary_size == member.tokenizer.vocabulary.size == server.model.size - 40
            assert ensemble.generate(PROMPT, max_new_tokens=4).usage.completion_tokens


def test_a_server_with_one_slot_is_warned_about(folders):
    with serving("llama.cpp", Model(folders["beta"]), slots=1) as server:
        config = MemberConfig(model=str(folders["beta"]), server=server.url)
        with (
            pytest.warns(CompatibilityWarning, match=r"its server has one slot \(start it with --parallel 8\)"),
            Ensemble.load([config], fusion="union", progress=False) as ensemble,
        ):
            answers = ensemble.generate([PROMPT, "Once upon"], max_new_tokens=3, deterministic=True)
    assert len(answers) == 2


def test_a_step_may_have_a_limit_too(folders):
    with serving("llama.cpp", Model(folders["beta"])) as server:
        config = MemberConfig(model=str(folders["beta"]), server=server.url)
        models = [folders["alpha"], config]
        with Ensemble.load(models, fusion="union", device="cpu", progress=False, step_timeout=2.0) as ensemble:
            ensemble.generate(PROMPT, max_new_tokens=6, ignore_eos=True)
            server.fault = Fault("delay", at=[len(server.asked) + 3], seconds=4.0)
            with pytest.raises(MemberTimeoutError, match=r"has not ended a step after 2 s"):
                ensemble.generate(PROMPT, max_new_tokens=6, ignore_eos=True)


def test_the_default_weights(server, joined):
    """A llama.cpp server has to be asked for each token of a prompt, vLLM once."""
    with joined(server, fusion="product") as ensemble:
        kind = ensemble.info.members[1].elsewhere.place.partition(" at ")[0]
        assert ensemble.info.weight_policy == {"llama.cpp": "adaptive", "vllm": "context"}[kind]
