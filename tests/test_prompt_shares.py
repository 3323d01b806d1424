"""Shares of members that are weighed by the prompt: as fitted, and as given by name."""

import copy
import itertools
import json
import math
import pickle
import random
from dataclasses import replace

import pytest
import torch
from evaluation_parts import ITEMS, TASK

from deepen_core import Ensemble
from deepen_core.engine.prompt_likelihood import prompt_likelihood
from deepen_core.errors import ConfigurationError, EvaluationError
from deepen_core.evaluation import fits
from deepen_core.evaluation.fitted_weights import FittedWeights
from deepen_core.evaluation.fitting import candidates, compared, fitted
from deepen_core.evaluation.items import ChoiceItem, CodeItem, OpenItem, Task, TextItem, TranslationItem
from deepen_core.evaluation.judged_task import JudgedTask
from deepen_core.evaluation.likelihood import ChoiceScores
from deepen_core.evaluation.plan import Plan
from deepen_core.evaluation.run import _fitted_label as _label
from deepen_core.evaluation.settings import Setting, equal
from deepen_core.fusion.policies import PerplexityWeights
from deepen_core.fusion.prompts import PromptLikelihoods
from deepen_core.fusion.weights import policy_and_shares
from deepen_integrations.cli.evaluation import told
from deepen_integrations.langchain import ChatDeepen
from deepen_integrations.llama_index import DeepenLLM

NAMES = ["general", "specialist"]
CODE = Task("code", (CodeItem("def f():\n", "def check(f):\n    pass\n", "f"),))
OPEN = Task("open", (OpenItem("Who runs?", ("a fox",)), OpenItem("Who sleeps?", ("a dog",))))


def long_prompts(nats):
    return PromptLikelihoods(torch.tensor(nats), torch.full((len(nats),), 500.0))


def judged(name, rights, prompts):
    return JudgedTask(name, torch.tensor(rights, dtype=torch.float32), long_prompts(prompts))


def tasks(lead):
    """The specialist answers programs right, and sums, whose prompts the general one finds likelier by `lead`."""
    prose = judged("prose", [[1, 0]] * 30 + [[0, 0]] * 10, [[-0.7, -0.95]] * 40)
    code = judged("code", [[0, 1]] * 30 + [[0, 0]] * 10, [[-0.5, -0.4]] * 40)
    sums = judged("sums", [[0, 1]] * 30 + [[0, 0]] * 10, [[-0.6, -0.6 - lead]] * 40)
    return [prose, code, sums]


def shares_of(found, main="general"):
    """The shares that are fitted to tasks that members have answered alone."""
    exercise = CodeItem("def f():", "def check(f): pass", "f")
    own = [(Task(task.name, (exercise,)), []) for task in found]
    return fitted(own, "deepen", NAMES, main, "score", found.__getitem__, "perplexity")


def test_a_specialist_that_answers_better_than_its_likelihoods_tell_has_the_larger_share():
    found = shares_of(tasks(0.05))
    assert found.weights[1] > 0.9
    assert found.policy == found.fitted_for == "perplexity"
    assert found.tasks == ["prose", "code", "sums"]
    assert found.alone_value == pytest.approx(0.25)
    assert found.value > 0.7 > found.equal_value + 0.1  # all right answers are 0.75
    assert found.option == f"perplexity:{found.weights[0]:.4g},{found.weights[1]:.4g}"
    assert sum(found.weights) == pytest.approx(1)


def test_equal_shares_are_kept_where_others_are_better_by_chance():
    prompts = [[-0.6, -0.61]] * 20
    chance = judged("chance", [[1, 0]] * 10 + [[0, 1]] * 10, prompts)
    assert shares_of([chance]).weights == [0.5, 0.5]
    clear = judged("clear", [[0, 1]] * 20, prompts)
    assert shares_of([clear]).weights[1] > 0.99


def test_static_weights_are_taken_where_prompts_mislead():
    """Each member finds the prompts likelier that the other one answers, and main answers more of them."""
    misled = judged("misled", [[1, 0]] * 30 + [[0, 1]] * 10, [[-0.9, -0.6]] * 30 + [[-0.6, -0.9]] * 10)
    found = shares_of([misled])
    assert (found.policy, found.fitted_for, found.weights, found.option) == ("static", "perplexity", [1, 0], [1, 0])
    assert (found.value, found.alone_value, found.equal_value) == (0.75, 0.75, 0.5)
    assert found.by_prompt < 0.75 - 1e-3
    assert shares_of([misled], "specialist").option == [0.9, 0.1]  # the better member is not main


@pytest.mark.parametrize("by", ["score", "likelihood"])
@pytest.mark.parametrize("lost", [0, 1, 40])
def test_equal_weights_are_taken_where_they_are_better_beyond_chance(by, lost):
    """Of 60 choices, weights by the prompt lose some that equal ones answer right."""
    items = (ChoiceItem("x", ("a", "b"), 0),) * 60

    def nats(is_right):
        return [-1.0, -2.0] if is_right else [-2.0, -1.0]

    scores = []
    for item in range(60):
        together = {s.label: nats(item >= lost) for s in compared("deepen", 2, ["perplexity"])}
        together |= {s.label: nats(item < 5) for s in candidates("deepen", 2)} | {"deepen 0.5 0.5": nats(True)}
        scores.append(ChoiceScores([1, 1], {"general": nats(item < 5), "specialist": nats(item < 5)}, together))
    found = fitted([(Task("x", items), scores)], "deepen", NAMES, "general", by, policy="perplexity")
    assert (found.weights, found.policy) == ([0.5, 0.5], "static" if lost == 40 else "perplexity")
    assert found.option == ([0.5, 0.5] if lost == 40 else "perplexity:0.5,0.5")
    if by == "score":
        followed = found.by_prompt if lost == 40 else found.value
        assert followed == pytest.approx(1 - lost / 60)
        assert found.equal_value == pytest.approx(1 if lost == 40 else 1 - lost / 60)


def test_how_static_weights_are_told_that_were_fitted_for_prompts():
    values = {"value": 0.75, "equal_value": 0.5, "alone_value": 0.25}
    rest = {"members": NAMES, "main": "general", "fusion": "deepen", "by": "score", "tasks": ["x"], **values}
    static = FittedWeights(weights=[0.9, 0.1], **rest)
    instead = FittedWeights(weights=[0.9, 0.1], **rest, by_prompt=0.625)
    followed = FittedWeights(weights=[0.9, 0.1], **rest, policy="perplexity")
    assert [_label(fit) for fit in (static, instead, followed)] == [
        "deepen, fitted 0.9 0.1",
        "deepen, fitted perplexity, static 0.9 0.1",
        "deepen, fitted perplexity 0.9 0.1",
    ]
    none = {"value": 0.0, "equal_value": 0.0, "alone_value": 0.0}
    nothing = FittedWeights(weights=[1.0, 0.0], **rest | none)
    assert nothing.tells_nothing
    assert "no member answers any example right" in told(nothing)
    for other in ({"value": 0.1}, {"equal_value": 0.1}, {"alone_value": 0.1}, {"by": "likelihood"}):
        assert not replace(nothing, **other).tells_nothing
    begin, end = "general and specialist, main general, fusion deepen", "25.0 % by main alone."
    assert told(static) == f"{begin}: 75.0 % right, 50.0 % at equal weights, {end}"
    assert told(followed) == f"{begin}, policy perplexity: 75.0 % right, 50.0 % at equal shares, {end}"
    assert told(instead) == (
        f"{begin}: 75.0 % right, 50.0 % at equal weights, {end} Weights that follow the prompt come to 62.5 %: these "
        "prompts do not show which member is right."
    )


def test_values_are_expected_rights():
    """Against the equation, with three members and partly right answers."""
    chosen = random.Random(3)
    rights = [[chosen.random() for _ in range(3)] for _ in range(5)]
    prompts = [[-chosen.random() for _ in range(3)] for _ in range(5)]
    shares = (0.2, 0.3, 0.5)
    values = judged("x", rights, prompts).values(PerplexityWeights(shares))
    for found, right, nats in zip(values, rights, prompts, strict=True):
        raised = [share * math.exp(40 * one) for share, one in zip(shares, nats, strict=True)]
        raised = [one if one >= sum(raised) / 1000 else 0.0 for one in raised]
        expected = sum(weight * one for weight, one in zip(raised, right, strict=True)) / sum(raised)
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("members", [1, 2, 3, 4, 5, 6])
def test_candidates(members):
    """Each once, equal ones first, and all orders of the members alike; the scores of all are asked for."""
    settings = candidates("product", members, "perplexity")
    assert settings[0] == Setting("product", "perplexity")
    found = [policy_and_shares(setting.weights) for setting in settings]
    assert {name for name, _ in found} == {"perplexity"}
    shares = [tuple(given or equal(members)) for _, given in found]
    assert all(sum(one) == pytest.approx(1, abs=1e-3) for one in shares)
    assert max(max(one) / min(one) for one in shares) == pytest.approx(1 if members == 1 else 1000, rel=1e-3)
    assert {order for one in shares for order in itertools.permutations(one)} == set(shares)
    assert len(set(shares)) == len(shares) < 70  # each is fused
    every = compared("product", members, ["static", "perplexity"])
    assert every == [*candidates("product", members), *settings] == compared("product", members, ["perplexity"])
    assert compared("product", members, ["static"]) == candidates("product", members)


def test_an_evaluation_fits_and_compares_them(pair, monkeypatch, tmp_path):
    """On exercises too, by how each member answers them alone; what is measured is kept, and not measured again."""
    judged, fitted = [], fits.fitted

    def kept(judge):
        return lambda number: judged.append(judge(number)) or judged[-1]

    monkeypatch.setattr(fits, "fitted", lambda *given: fitted(*given[:5], kept(given[5]), *given[6:]))
    for module in ("generation", "evaluation"):  # else no answer of such small models is right
        monkeypatch.setattr(f"deepen_core.evaluation.{module}.mark", lambda _, text, **__: sum(text.encode()) % 5 / 4)
    asked = Task("open", (*OPEN.items, OpenItem("Who jumps?", ("a fox",))))
    plan = Plan([TASK], [asked, CODE], fusions=["deepen", "union"], policies=["perplexity"], gates=[])
    outcome = pair.evaluate(plan, output=tmp_path, progress=False)
    found = {(fit.fitted_for, fit.fusion): fit for fit in outcome.weights}
    assert found.keys() == {(policy, fusion) for policy in ("static", "perplexity") for fusion in plan.fusions}
    names = [member.name for member in pair.info.members]
    assert all((fit.tasks, fit.by, fit.members) == (["open", "code"], "score", names) for fit in outcome.weights)
    rows = {row.label: row for row in outcome.summary.rows if ", fitted perplexity" in row.label}
    followed = [fit for fit in outcome.weights if fit.policy == "perplexity"]
    assert followed
    for fit in followed:
        asks = "perplexity" if fit.weights == [0.5, 0.5] else fit.option
        assert f"--weights {asks} --main" in rows[_label(fit)].options
    rows = pair.evaluate(Plan([asked], policies=[], gates=[]), progress=False).summary.rows
    shares = {row.label: row.shares["open"] for row in rows}
    assert shares["alpha alone"] != shares["beta alone"]  # or their order would not show
    own, *_ = [one for one in judged if one.name == "open"]
    assert own.rights.mean(0).tolist() == pytest.approx([shares["alpha alone"], shares["beta alone"]])
    held = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().split("\n") if line]
    assert [line["task"] for line in held] == ["open"] * 3 + ["code"]
    prompts = [*(f"Question: {item.question}\nAnswer:" for item in asked.items), "def f():\n"]
    likelihoods = [[prompt_likelihood(member, prompt) for member in pair._engine.members] for prompt in prompts]
    assert [line["nats"] for line in held] == [[nats for nats, _ in members] for members in likelihoods]
    assert [line["bytes"] for line in held] == [min(size for _, size in members) for members in likelihoods]
    assert own.prompts.nats.tolist() == [pytest.approx(line["nats"]) for line in held[:3]]
    assert own.prompts.bytes.tolist() == [line["bytes"] for line in held[:3]]
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    again = pair.evaluate(plan, output=tmp_path, progress=False)
    assert again.weights == outcome.weights
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == sizes


def test_static_weights_need_no_prompts(pair, tmp_path):
    plan = Plan([TASK], [OPEN, CODE], fusions=["deepen"], policies=["adaptive"], gates=[])
    pair.evaluate(plan, output=tmp_path, progress=False)
    assert not (tmp_path / "prompts.jsonl").exists()


def test_fit_weights(pair, folders, tmp_path):
    """What it returns can be given to `load`, also from a file."""
    path = tmp_path / "open.jsonl"
    items = [{"question": item.question, "choices": list(item.choices), "answer": item.answer} for item in ITEMS]
    path.write_text("\n".join(map(json.dumps, items)))
    found = pair.fit_weights(path, policy="perplexity", progress=False)
    found.save(tmp_path / "w.json")
    loaded = FittedWeights.load(tmp_path / "w.json")
    assert loaded == found
    models = [folders["alpha"], folders["beta"]]
    with Ensemble.load(models, weights=loaded.option, device="cpu", progress=False) as ensemble:
        assert ensemble.info.weight_policy == "perplexity"
        assert [member.weight for member in ensemble.info.members] == pytest.approx(found.weights, abs=1e-3)
        assert ensemble.generate("The quick", max_new_tokens=3, ignore_eos=True).text
    with pytest.raises(EvaluationError, match="for the policies static and perplexity, not 'adaptive'"):
        pair.fit_weights(path, policy="adaptive", progress=False)


def test_by_likelihood_they_are_fitted_on_texts(pair, tmp_path):
    """As static weights are; exercises have nothing to read."""
    texts = Task("texts", (TextItem("a", "b"),))
    Plan([TASK], [texts, OPEN], policies=["perplexity"], by="likelihood").check()
    with pytest.raises(EvaluationError, match="texts has texts without choices: fit by likelihood"):
        Plan([TASK], [texts]).check()
    with pytest.raises(EvaluationError, match="code has exercises, which have no right answer to read: fit by score"):
        Plan([TASK], [CODE, OPEN], policies=["perplexity"], by="likelihood").check()
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"prompt": "a", "text": " b"}))
    with pytest.raises(EvaluationError, match="texts has texts without choices: fit by likelihood"):
        pair.fit_weights(path, policy="perplexity", progress=False)
    found = pair.fit_weights(path, policy="perplexity", by="likelihood", progress=False)
    assert (found.by, found.fitted_for) == ("likelihood", "perplexity")
    bits = pair.score("a", " b")
    assert found.alone_value == pytest.approx(-bits.members[0].total / 2 / math.log(2), rel=1e-4)


def test_translations_that_are_judged_need_their_extra(monkeypatch):
    def missing():
        raise ConfigurationError("no sacrebleu")

    monkeypatch.setattr("deepen_core.evaluation.plan.chrf", missing)
    spoken = Task("spoken", (TranslationItem("a", "b"),))
    with pytest.raises(ConfigurationError, match="no sacrebleu"):
        Plan([TASK], [spoken], policies=["perplexity"]).check()
    with pytest.raises(ConfigurationError, match="no sacrebleu"):  # which right translations may be too long to write
        Plan([TASK], [spoken], policies=[]).check()
    Plan([TASK], [spoken], policies=[], by="likelihood").check()


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ("perplexity:0.9,0.1", ("perplexity", [0.9, 0.1])),
        ("adaptive: 3, 1", ("adaptive", [3, 1])),
        ("adaptive", ("adaptive", None)),
        ([0.5, 0.5], ("static", None)),
        (None, ("static", None)),
    ],
)
def test_shares_after_a_name(weights, found):
    assert policy_and_shares(weights) == found


@pytest.mark.parametrize("model", [DeepenLLM, ChatDeepen])
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("perplexity:", "one number per member after the colon, such as perplexity:0.7,0.3"),
        ("perplexity:a,b", "one number per member after the colon"),
        ("perplexed:1,2", "or the name of a policy: static, adaptive"),
        ("perplexity:1,2,3", "3 weights for 2 members"),
        ("perplexity:0,0", "at least one must be positive"),
    ],
)
def test_wrong_shares_are_told_before_anything_is_loaded(model, weights, message):
    with pytest.raises(ConfigurationError, match=message):
        model(models=["a/b", "c/d"], weights=weights)


@pytest.mark.parametrize("model", [DeepenLLM, ChatDeepen])
def test_shares_by_name_survive_copies_and_pickles(model):
    llm = model(models=["a/b", "c/d"], weights="perplexity:0.75,0.25")
    for other in (pickle.loads(pickle.dumps(llm)), copy.deepcopy(llm)):
        assert other.weights == "perplexity:0.75,0.25"


def test_shares_by_name_are_those_of_members(folders):
    """Given with the policy, or as each member's own weight."""
    models = [str(folders["alpha"]), str(folders["beta"])]
    options = {"device": "cpu", "progress": False}
    weighed = [{"model": models[0], "weight": 3}, {"model": models[1], "weight": 1}]
    answers, members = [], []
    for given, weights in ((models, "perplexity:0.75,0.25"), (weighed, "perplexity")):
        with Ensemble.load(given, weights=weights, **options) as ensemble:
            answers.append(ensemble.generate("The quick", max_new_tokens=8, logprobs=1).logprobs)
            members.append([(member.name, member.weight) for member in ensemble.info.members])
    assert answers[0] == answers[1]
    assert members[0] == members[1] == [("alpha", 0.75), ("beta", 0.25)]
