"""GGUF members answer as the same weights do in transformers: alone, in batches and beside other members."""

import pytest
import torch
from ids_parts import IdsSequence, made_up, plain
from schedules import GROW, TURN, follow, search_schedules
from tiny import CORPUS
from transformers import AutoModelForCausalLM

from deepen_core import Ensemble, MemberConfig
from deepen_core.config import member_config
from deepen_core.members.loading import describe_member, member_configs

pytest.importorskip("xllamacpp")

PROMPTS = ["Once upon a time", "The quick brown", "def mean", "你好", "Numbers: 1"]
OPTIONS = {"max_new_tokens": 16, "ignore_eos": True}


def member_at(path, **options):
    (config,) = member_configs([{"model": str(path), **options}])
    return describe_member(config, None, None, progress=False).load(progress=False)


@pytest.fixture(scope="module")
def beta(gguf_files):
    return member_at(gguf_files["beta"])


@pytest.fixture(scope="module")
def model(folders):
    return AutoModelForCausalLM.from_pretrained(folders["beta"]).eval()


def test_a_plain_schedule(model, beta):
    """Sequences of any length run together, are prefilled, rewound, joined and share beginnings: logits as alone."""
    events = [
        ("join", 40, 3),
        ("prefill", 4, 16),
        ("step", 23, GROW),
        ("step", 13, TURN),
        ("join_alike", 5, 4),
        ("step", 63, TURN),
        ("leave", 0),
        ("step", 31, GROW),
        ("step", 2, TURN),
        ("step", 31, GROW),
    ]
    copied = beta.work.ids_copied
    with torch.inference_mode():
        assert follow(model, beta, events, atol=1e-4) == 6
    assert beta.work.ids_copied > copied
    assert beta.batching == "ragged"


@pytest.mark.slow
def test_any_schedule(model, beta):
    search_schedules(model, beta, atol=1e-4)


def test_logits_at_every_place(model, beta):
    ids = made_up(50, 1)
    found = beta.token_logprobs(ids, 3)
    expected = torch.log_softmax(plain(model, ids)[2:-1], -1).gather(-1, torch.tensor(ids)[3:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fusion", ["product", "union", "translate", "bytes", {"rows": "soft"}, "deepen-paper"])
@pytest.mark.parametrize("main", [0, 1])
def test_every_strategy_answers_as_with_the_folder(folders, gguf_files, fusion, main):
    """Also those that compare embeddings, which are read from the file; beside a model of transformers."""
    # A search by gradient carries rounding on: 1.2e-4 on one CPU, less on another.
    apart = 3e-4 if fusion == "deepen-paper" else 1e-4
    answers = []
    for model in (folders["beta"], gguf_files["beta"]):
        with Ensemble.load([model, folders["alpha"]], main=main, fusion=fusion, progress=False, device="cpu") as one:
            answers.append(one.generate(PROMPTS, logprobs=2, **OPTIONS))
    for folder, gguf in zip(*answers, strict=True):
        assert gguf.token_ids == folder.token_ids
        assert [t.logprob for t in gguf.logprobs] == pytest.approx([t.logprob for t in folder.logprobs], abs=apart)


def test_two_files_with_other_tokenizers_and_a_given_score(gguf_files, folders):
    found = []
    for models in (["beta", "delta"], [folders["beta"], gguf_files["folder of delta"]]):
        paths = [gguf_files.get(model, model) for model in models]
        with Ensemble.load(paths, fusion="product", progress=False, device="cpu") as ensemble:
            answers = ensemble.generate(PROMPTS, **OPTIONS)
            found.append(([a.token_ids for a in answers], ensemble.score(PROMPTS[0], " there was a girl").total))
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-3)


def test_conversations_and_stop_ids(folders, gguf_files):
    """The chat template and what ends a turn come from the file."""
    messages = [{"role": "user", "content": "The fox?"}]
    answers = []
    for model in (folders["beta"], gguf_files["beta"]):
        with Ensemble.load([model], progress=False, device="cpu") as ensemble:
            answers.append(ensemble.generate([messages], max_new_tokens=24, ignore_eos=True)[0].token_ids)
            info = ensemble.info.members[0]
            assert info.has_chat_template
    assert answers[0] == answers[1]
    assert info.stop_tokens == ["</s>", "<|end|>"]
    assert info.architecture == "llama (GGUF F32)"
    assert (info.context_window, info.vocabulary_size) == (256, 520)


@pytest.mark.parametrize("prompt", [CORPUS[0], CORPUS[1] * 3])
def test_deterministic_answers_depend_on_no_other(gguf_files, prompt):
    """With weights of 8 bits, the logits of a batch differ from those of each sequence alone."""
    with Ensemble.load([gguf_files["beta-q8"]], progress=False) as ensemble:
        assert "deterministic=True" in ensemble.info.members[0].batching
        options = {**OPTIONS, "logprobs": 1, "deterministic": True}
        alone = ensemble.generate(prompt, **options)
        together = ensemble.generate([CORPUS[3], prompt, CORPUS[2], prompt], **options)
        for answer in (together[1], together[3]):
            assert (answer.token_ids, repr(answer.logprobs)) == (alone.token_ids, repr(alone.logprobs))


def test_weights_of_8_bits_are_near_the_exact_ones(gguf_files, model):
    ids = made_up(40, 7)
    sequence = IdsSequence(ids)
    found = member_at(gguf_files["beta-q8"]).next_logits([sequence])[0]
    expected = plain(model, ids)[-1]
    assert 1e-6 < float((found - expected).norm() / expected.norm()) < 0.05


def test_it_is_described_without_its_weights(gguf_files, monkeypatch):
    loaded = []
    monkeypatch.setattr("deepen_core.members.llama_cpp.loader.GgufDescription.load", lambda *_, **__: loaded.append(1))
    (config,) = member_configs([gguf_files["beta-q8"]])
    described = describe_member(config, None, None, 100, progress=False)
    described.check_files()
    weights, size = described.weight_bytes(), gguf_files["beta-q8"].stat().st_size
    assert (weights.files, weights.memory, weights.dtype) == (size, size, "Q8_0")
    assert weights.parameters == 520 * 32 + 32 + 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 64)
    assert described.context_window == 100
    assert described.name == "beta-q8.gguf"
    assert loaded == []


def test_another_tokenizer_and_template(gguf_files, folders):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}:"
    config = {"model": str(gguf_files["beta"]), "tokenizer": str(folders["beta"]), "chat_template": template}
    with Ensemble.load([config, {"model": str(gguf_files["delta"])}], progress=False, fusion="product") as ensemble:
        answer = ensemble.generate([{"role": "user", "content": "The fox"}], max_new_tokens=4, ignore_eos=True)
        assert len(answer.token_ids) == 4


def test_what_is_known_before_it_is_loaded(gguf_files, tmp_path):
    from deepen_integrations.load_options import LoadOptions
    from deepen_integrations.model_facts import facts_from_files

    facts = facts_from_files(LoadOptions(models=[MemberConfig(model=str(gguf_files["beta"]))]))
    assert (facts.main_window, facts.has_chat_template) == (256, True)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    facts = facts_from_files(LoadOptions(models=[MemberConfig(model=str(tmp_path / "x.gguf"))]))
    assert (facts.main_window, facts.has_chat_template) == (None, False)


def test_which_kind_a_name_means():
    assert member_config("some/x.GGUF").loaded_as == "gguf"
    assert member_config("some/model").loaded_as == "transformers"
    assert MemberConfig(model="weights.bin", kind="gguf").loaded_as == "gguf"


def test_nothing_is_held_after_an_answer(gguf_files):
    with Ensemble.load([gguf_files["beta"]], progress=False, device="cpu") as ensemble:
        ensemble.generate(PROMPTS, **OPTIONS)
        pool = ensemble._engine.members[0]._runner._pool
        with pool.busy():
            assert pool.slots == []


def test_a_text_is_scored_in_few_decodes_as_step_by_step(folders, gguf_files, monkeypatch):
    """Also where another tokenizer cuts the growing text otherwise, so that its states are a tree."""
    texts = [(PROMPTS[0], CORPUS[0][:120]), (PROMPTS[1], " fox, 12345 naïve 你好")]
    with Ensemble.load([gguf_files["beta"], gguf_files["delta"]], device="cpu", progress=False) as ensemble:
        members = ensemble._opened().members
        before = [member.work.forwards for member in members]
        scores = [ensemble.score(*text) for text in texts]
        decodes = sum(member.work.forwards - old for member, old in zip(members, before, strict=True))
        monkeypatch.delattr("deepen_core.members.llama_cpp.member.LlamaCppMember.tree_run")
        before = [member.work.forwards for member in members]
        stepwise = [ensemble.score(*text) for text in texts]
        steps = sum(member.work.forwards - old for member, old in zip(members, before, strict=True))
    assert decodes < steps / 2
    for score, other in zip(scores, stepwise, strict=True):
        assert score.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        for own, its in zip(score.members, other.members, strict=True):
            assert own.logprobs == pytest.approx(its.logprobs, abs=1e-4)
