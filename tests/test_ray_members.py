"""Members in actors: the same answers as in this process, and little to send. Actors are threads here, without Ray."""

import copy
import pickle

import numpy as np
import pytest
import tiny
import torch
from ray_parts import ThreadStarter, far_member, near_member

from deepen_core import Ensemble, MemberConfig
from deepen_core.config import RayConfig
from deepen_core.config.named_ensembles import ensemble_options
from deepen_core.errors import ConfigurationError, MemberError
from deepen_core.members.base import has_embeddings, tree_run_of
from deepen_core.members.loading import describe_member
from deepen_core.members.ray.messages import Reply, Step, Update, WrongReplyError, top_of
from deepen_core.results import Elsewhere

PROMPTS = ["Once upon a time", "The quick brown fox", "def mean(values):\n    to", "你好，世界", "Numbers: 1, 22"]
OPTIONS = {"max_new_tokens": 24, "ignore_eos": True, "logprobs": 2}
WITHIN = 1e-4


def same(one, other):
    """Compares answers: the same tokens, and their log-probabilities."""
    assert one.token_ids == other.token_ids
    for left, right in zip(one.logprobs, other.logprobs, strict=True):
        assert left.logprob == pytest.approx(right.logprob, abs=WITHIN)
        for mine, its in zip(left.members, right.members, strict=True):
            assert mine.logprob == pytest.approx(its.logprob, abs=WITHIN)


def answers(members, prompts=PROMPTS, options=OPTIONS, **how):
    """Answers of an ensemble in one batch, then alone, and a score."""
    with Ensemble.from_members(members, **how) as ensemble:
        return [
            *ensemble.generate(list(prompts), **options),
            ensemble.generate(prompts[0], **options),
            ensemble.score(prompts[0], " there was a girl."),
        ]


def compared(near, far, **how):
    *expected, score = answers(near, **how)
    *found, far_score = answers(far, **how)
    for one, other in zip(expected, found, strict=True):
        same(one, other)
    assert far_score.total == pytest.approx(score.total, abs=WITHIN)


@pytest.mark.parametrize(
    ("far", "fusion"), [([0], "deepen"), ([1], "bytes"), ([0, 1], "deepen"), ([0, 1], "union")], ids=str
)
def test_answers_are_those_of_members_in_this_process(folders, far, fusion):
    pair = [folders["alpha"], folders["beta"]]
    members = [far_member(path)[0] if number in far else near_member(path) for number, path in enumerate(pair)]
    compared([near_member(path) for path in pair], members, fusion=fusion)


def test_strategies_of_embeddings_fetch_them_once(folders):
    pair = [folders["alpha"], folders["beta"]]
    far, starter = far_member(pair[1])
    compared([near_member(path) for path in pair], [near_member(pair[0]), far], fusion="deepen-paper")
    assert [method for method, *_ in starter.links[0].asked].count("embeddings") == 1
    assert has_embeddings(far)
    assert tree_run_of(far, 10) is None


@pytest.mark.filterwarnings("ignore:.*runs one sequence at a time")
@pytest.mark.parametrize("kind", ["falcon_h1", "t5"])
def test_members_of_other_kinds(tmp_path, folders, seq2seq_folders, kind):
    """One that continues from copies of a state, which depends on which ids are settled, and one with an encoder."""
    folder = seq2seq_folders["t5"] if kind == "t5" else tmp_path / kind
    if kind == "falcon_h1":
        tiny.save_falcon_h1(folder, tiny.sentencepiece_bpe())
    far, _ = far_member(folder)
    compared([near_member(folders["alpha"]), near_member(folder)], [near_member(folders["alpha"]), far], fusion="union")
    assert (far.source_window is not None) == (kind == "t5")
    assert far.batching.startswith("one" if kind == "falcon_h1" else "ragged")


def test_a_deterministic_answer_shares_nothing_there_either(folders):
    far, starter = far_member(folders["beta"])
    with Ensemble.from_members([near_member(folders["alpha"]), far]) as ensemble:
        ensemble.generate(PROMPTS[0], max_new_tokens=3, deterministic=True)
    updates = [update for step in starter.links[0].steps() for update in step.updates]
    assert updates
    assert not any(update.shares for update in updates)


def test_only_new_ids_are_sent(folders):
    far, starter = far_member(folders["beta"])
    with Ensemble.from_members([near_member(folders["alpha"]), far]) as ensemble:
        ensemble.generate("Once upon a time " * 8, max_new_tokens=30, ignore_eos=True)
        told = ensemble.info.members[1].elsewhere
    first, *others = [step.updates[0] for step in starter.links[0].steps()]
    assert len(first.new) > 50
    assert sum(len(update.new) for update in others) < 0.1 * sum(update.length for update in others)
    replied = sum(step.size for step in starter.links[0].steps())
    assert told == Elsewhere(told.place, None, replied, told.bytes_received, 0)
    assert told.bytes_received > len(others) * 4 * far.vocabulary_size
    assert "process" in told.place


def test_a_long_prompt_is_run_ahead_and_what_another_has_read_is_copied(folders):
    long = "Once upon a time there was a little girl named Mira. " * 4
    far, starter = far_member(folders["beta"])
    with Ensemble.from_members([near_member(folders["alpha"]), far], weights="adaptive") as ensemble:
        ensemble.generate([long + "She", long + "He"], max_new_tokens=2, ignore_eos=True)
    assert [step.ahead for step in starter.links[0].steps() if step.ahead is not None]
    assert far.work.ids_copied > 100
    assert far.work.ids_run < 1.5 * len(far.tokenizer.encode(long))


def test_the_top_is_sent_and_the_others_share_the_rest(folders):
    near, (far, starter) = near_member(folders["beta"]), far_member(folders["beta"], top_k=20)
    with Ensemble.from_members([near]) as ensemble, Ensemble.from_members([far]) as other:
        (one,) = ensemble.generate(PROMPTS[0], max_new_tokens=1, logprobs=20).logprobs
        (its,) = other.generate(PROMPTS[0], max_new_tokens=1, logprobs=20).logprobs
        assert other.info.members[0].elsewhere.top_k == 20
    assert {i: p for i, _, p in its.top} == pytest.approx({i: p for i, _, p in one.top}, abs=WITHIN)
    assert starter.links


def test_all_actors_begin_a_step_before_one_is_waited_for(folders):
    """Both messages of a step are sent before the first actor, which is slow, replies."""
    pair = [far_member(folders[name]) for name in ("alpha", "beta")]
    with Ensemble.from_members([member for member, _ in pair]) as ensemble:
        ensemble.generate(PROMPTS[0], max_new_tokens=2, ignore_eos=True)
        links = [starter.links[0] for _, starter in pair]
        before = len(links[1].steps())
        seen = []
        links[0].spoils = lambda reply: seen.append(len(links[1].steps())) or reply
        ensemble.generate(PROMPTS[0], max_new_tokens=1, ignore_eos=True)
    assert seen[-1] > before


def test_an_actor_drops_sequences_that_have_ended(folders):
    far, starter = far_member(folders["beta"])
    with Ensemble.from_members([near_member(folders["alpha"]), far]) as ensemble:
        for prompt in PROMPTS:
            ensemble.generate(prompt, max_new_tokens=2)
        assert len(starter.links[0].actor._sequences) == 1
        assert sum(len(step.released) for step in starter.links[0].steps()) >= len(PROMPTS) - 1


def test_closing(folders):
    far, starter = far_member(folders["beta"])
    with Ensemble.from_members([far]) as ensemble:
        ensemble.generate(PROMPTS[0], max_new_tokens=2)
    assert starter.links[0].alive  # the caller's own member
    far.close()
    far.close()
    assert not starter.links[0].alive
    assert starter.closed
    with pytest.raises(MemberError, match="was closed, and its actor ended"):
        far.token_logprobs([1, 2], 1)


def test_another_model_at_the_path_there_is_refused(folders):
    described, given = (MemberConfig(model=str(folders[name]), name="b") for name in ("beta", "gamma"))
    starter = ThreadStarter(describe_member(described, "cpu", None, progress=False), RayConfig(), given)
    with pytest.raises(ConfigurationError, match="Member 'b' is another model on"):
        starter.start()


class TestOptions:
    def test_they_are_plain_data(self, tmp_path):
        config = MemberConfig(model="m", ray={"num_gpus": 0.5, "resources": {"big": 1}, "runtime_env": {"pip": ["x"]}})
        assert config.ray == RayConfig(num_gpus=0.5, resources={"big": 1.0}, runtime_env={"pip": ["x"]})
        for again in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), MemberConfig(**config.model_dump())):
            assert again == config
            assert hash(again) == hash(config)
        assert config != config.model_copy(update={"ray": RayConfig()})
        path = tmp_path / "far.yaml"
        path.write_text("models:\n  - near\n  - {model: m, ray: {num_gpus: 0.5, top_k: 64}}\n")
        given = MemberConfig(**ensemble_options(path)["models"][1])
        assert given.ray == RayConfig(num_gpus=0.5, top_k=64)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"gpus": 1}, r"ray\.gpus"),
            ({"num_gpus": -1}, r"ray\.num_gpus"),
            ({"top_k": 0}, r"ray\.top_k"),
            ({"step_timeout": 0}, r"ray\.step_timeout"),
            ({"resources": {"big": "much"}}, r"ray\.resources\.big"),
            ({"max_restarts": -2}, r"ray\.max_restarts"),
        ],
    )
    def test_wrong_ones(self, options, message):
        with pytest.raises(ConfigurationError, match=message):
            Ensemble.load([{"model": "m", "ray": options}], progress=False)

    def test_without_ray_it_is_named(self, folders, monkeypatch):
        monkeypatch.setattr("deepen_core.members.ray.cluster.find_spec", lambda _: None)
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)  # nothing heavy
        with pytest.raises(ConfigurationError, match=r"needs Ray.*deepen-integrations\[ray\]"):
            Ensemble.load([folders["alpha"], MemberConfig(model=str(folders["beta"]), ray={})], progress=False)

    def test_a_budget_is_read_without_a_cluster(self, folders):
        """Nor is the device of the other machine looked for on this one."""
        near, far = (
            Ensemble.read_budget([folders["alpha"], MemberConfig(model=str(folders["beta"]), **more)])
            for more in ({}, {"device": "cuda:7", "ray": {}})
        )
        assert near.context_window == far.context_window
        assert near.count(PROMPTS[0]) == far.count(PROMPTS[0])


class TestReplies:
    STEP = Step(4, [Update(7, 2, 2, np.array([1, 2, 3], dtype=np.int32), 5, 2, True, None)], [])

    def reply(self, **changes):
        ids, logprobs = top_of([torch.randn(2, 9, generator=torch.Generator().manual_seed(1))], 4)
        plain = {"lengths": {7: 5}, "unknown": [], "ran": [], "places": [2], "ids": ids, "logprobs": logprobs}
        return Reply(**{"actor": "a", "number": 4, "work": (1, 2, 3, 4), **plain, **changes})

    def test_the_right_one(self):
        reply = self.reply()
        reply.check(self.STEP, "a", 9)
        (logits,) = reply.logits(9)
        assert logits.shape == (2, 9)
        assert torch.equal(logits.topk(4).indices, torch.from_numpy(reply.ids).long())
        assert reply.size == 2 * 4 * 8 + 8 * 9

    @pytest.mark.parametrize(
        "changes",
        [
            {"actor": "b"},
            {"number": 3},
            {"lengths": {7: 4}},
            {"lengths": {8: 5}},
            {"lengths": {}},
            {"places": [3]},
            {"places": [0]},
            {"places": []},
            {"ids": np.zeros((2, 4), dtype=np.int32)},
            {"ids": np.array([[0, 1, 2, 9]] * 2, dtype=np.int32)},
            {"ids": np.array([[0, 1, 2, -1]] * 2, dtype=np.int32)},
            {"ids": np.zeros((2, 0), dtype=np.int32), "logprobs": np.zeros((2, 0), dtype=np.float32)},
            {"ids": None},
            {"logprobs": np.zeros((1, 4), dtype=np.float32)},
            {"logprobs": np.zeros((2, 4), dtype=np.float64)},
        ],
        ids=str,
    )
    def test_wrong_ones(self, changes):
        with pytest.raises(WrongReplyError):
            self.reply(**changes).check(self.STEP, "a", 9)

    @pytest.mark.parametrize("ran", [[], [(4, 5)], [(-1, 2)], [(3, 2)], [(3, 5)], [(1, 1), (1, 1)]], ids=str)
    def test_wrong_ones_to_what_runs_ahead(self, ran):
        step = Step(4, self.STEP.updates, [], ahead=3)
        self.reply(ran=[(3, 4)]).check(step, "a", 9)
        with pytest.raises(WrongReplyError):
            self.reply(ran=ran).check(step, "a", 9)
