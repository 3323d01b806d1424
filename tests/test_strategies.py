"""Strategies without embeddings on toy vocabularies, against the plain words of their definitions in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_strategies import plain_deepen, plain_product, plain_union
from strategy_parts import (
    SHARED,
    WEIGHTS,
    bytes_of,
    deepen_of,
    distributions,
    members,
    product_of,
    translate_of,
    union_of,
    vocabulary,
)

from deepen_core.config import (
    PRESETS,
    BytesConfig,
    FusionConfig,
    ProductConfig,
    TranslateConfig,
    UnionConfig,
    resolve_fusion,
)
from deepen_core.errors import ConfigurationError
from deepen_core.fusion import strategy_of
from deepen_core.fusion.anchors.shared_tokens import Anchors
from deepen_core.fusion.anchors.token_healing import Healing
from deepen_core.fusion.base import StepInputs
from deepen_core.fusion.deepen.relative_space import RelativeSpace
from deepen_core.fusion.deepen.strategy import DeepenStrategy

BY_COLUMN = [
    *((product_of, plain_product, "floor", floor) for floor in (0.001, 0.02, 0.5)),
    *((deepen_of, plain_deepen, "power", power) for power in (0.25, 0.5, 1.0)),
]


@given(
    count=st.sampled_from([2, 3]),
    main=st.integers(0, 1),
    seed=st.integers(0, 10**6),
    strategy=st.sampled_from(BY_COLUMN),
)
def test_strategies_by_column_are_what_their_definitions_say(count, main, seed, strategy):
    make, plain, option, value = strategy
    vocabularies = members(count)
    logprobs = distributions(vocabularies, seed=seed)
    found = make(vocabularies, main, **{option: value})[0].fuse(
        StepInputs(logprobs, torch.tensor([WEIGHTS[count]] * 3))
    )
    for row in range(3):
        expected = plain(vocabularies, [p[row] for p in logprobs], WEIGHTS[count], main, value)
        torch.testing.assert_close(found[row].double(), expected.double(), atol=1e-4, rtol=1e-4)


@given(seed=st.integers(0, 10**6))
def test_sharp_rows_are_the_limit_of_soft_ones(seed):
    """Where each anchor keeps all its mass, and each token begins with one, EM ends where the closed form does."""
    vocabularies = [vocabulary([*SHARED, b"the", b"bb"], 0), vocabulary([b"them", b" ab", b"aa", *SHARED], 1)]
    logprobs = distributions(vocabularies, seed=seed)
    anchors = Anchors.shared_by(vocabularies, ["a", "b"])
    spaces = [
        RelativeSpace(
            torch.eye(v.size) + 0.01,
            anchors.ids[n],
            fixed=anchors.fixed_columns(v, v.size, by_prefix=True),
            temperature=1e4,
        )
        for n, v in enumerate(vocabularies)
    ]
    inputs = StepInputs(logprobs, torch.tensor([[0.7, 0.3]] * 3))
    soft = DeepenStrategy(spaces, 0, FusionConfig(exact=True)).fuse(inputs)
    sharp = deepen_of(vocabularies, power=1.0)[0].fuse(inputs)
    torch.testing.assert_close(sharp.exp(), soft.exp(), atol=1e-4, rtol=1e-3)


@given(count=st.sampled_from([2, 3]), main=st.integers(0, 1), seed=st.integers(0, 10**6), top_k=st.integers(1, 14))
def test_the_union_is_what_its_definition_says(count, main, seed, top_k):
    vocabularies = members(count)
    logprobs = distributions(vocabularies, seed=seed)
    found = union_of(vocabularies, main, top_k=top_k).fuse(StepInputs(logprobs, torch.tensor([WEIGHTS[count]] * 3)))
    for row in range(3):
        expected = plain_union(vocabularies, [p[row] for p in logprobs], WEIGHTS[count], main, top_k)
        torch.testing.assert_close(found[row].exp().double(), expected.exp().double(), atol=1e-5, rtol=1e-4)


def strategies(vocabularies, main=0):
    return {
        "deepen": deepen_of(vocabularies, main)[0],
        "product": product_of(vocabularies, main)[0],
        "union": union_of(vocabularies, main),
        "translate": translate_of(vocabularies, main),
        "bytes": bytes_of(vocabularies, main),
        "bytes, mixture": bytes_of(vocabularies, main, mode="mixture"),
    }


@pytest.mark.parametrize("name", ["deepen", "product", "union", "translate", "bytes", "bytes, mixture"])
class TestEveryStrategy:
    def test_main_alone_is_main_bit_for_bit(self, name):
        vocabularies = members()
        logprobs = distributions(vocabularies)
        fused = strategies(vocabularies)[name].fuse(StepInputs(logprobs, torch.tensor([[1.0, 0.0]] * 3)))
        assert torch.equal(fused, logprobs[0])

    def test_sequences_do_not_mix(self, name):
        """Whatever the others weigh; one in which a member abstains counts as if it were not there."""
        vocabularies = members(3)
        logprobs = distributions(vocabularies, rows=4)
        weights = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.5, 0.0, 0.5], [0.2, 0.8, 0.0]])
        fusion = strategies(vocabularies)[name]
        together = fusion.fuse(StepInputs(logprobs, weights))
        assert torch.equal(together[1], logprobs[0][1]), "main alone is main bit for bit, beside others too"
        for row in range(4):
            alone = fusion.fuse(StepInputs([p[row : row + 1] for p in logprobs], weights[row : row + 1]))
            torch.testing.assert_close(together[row], alone[0])
        absent = [logprobs[0][2:3], None, logprobs[2][2:3]]
        torch.testing.assert_close(fusion.fuse(StepInputs(absent, weights[2:3]))[0], together[2])
        for meaningless in (0.0, torch.nan):
            spoiled = [logprobs[0][2:3], torch.full_like(logprobs[1][2:3], meaningless), logprobs[2][2:3]]
            torch.testing.assert_close(fusion.fuse(StepInputs(spoiled, weights[2:3]))[0], together[2])

    def test_the_logprob_of_one_token_is_that_of_the_whole(self, name):
        vocabularies = members(3)
        logprobs = distributions(vocabularies, rows=4)
        weights = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.5, 0.0, 0.5], [0.0, 0.8, 0.2]])
        fusion = strategies(vocabularies)[name]
        whole = fusion.fuse(StepInputs(logprobs, weights))
        comparison = fusion.compare(StepInputs(logprobs, torch.ones(4, 3))) if fusion.compares_tokens else None
        for token in range(vocabularies[0].size):
            for compared in (None, comparison):
                found = fusion.logprobs_of(StepInputs(logprobs, weights, comparison=compared), [token] * 4)
                torch.testing.assert_close(found, whole[:, token], atol=1e-5, rtol=1e-5)

    def test_control_tokens_are_for_main_to_decide(self, name):
        """However sure another member is of one of its own."""
        vocabularies = members()
        logprobs = distributions(vocabularies, rows=1)
        control = [next(iter(v.special_ids - v.stop_ids)) for v in vocabularies]
        logits = torch.full((1, vocabularies[1].size), -5.0).index_fill(1, torch.tensor([control[1]]), 5.0)
        told = [logprobs[0], torch.log_softmax(logits, -1)]
        fused = strategies(vocabularies)[name].fuse(StepInputs(told, torch.tensor([[0.5, 0.5]])))
        assert float(fused[0, control[0]]) == pytest.approx(float(logprobs[0][0, control[0]]), abs=0.02)

    def test_equal_members_stay_as_they_are(self, name):
        """Two that say the same say it together."""
        (same, _) = members()
        vocabularies = [same, same]
        logprobs = distributions([same])
        fused = strategies(vocabularies)[name].fuse(StepInputs([logprobs[0]] * 2, torch.tensor([[0.4, 0.6]] * 3)))
        torch.testing.assert_close(fused, logprobs[0], atol=1e-4, rtol=1e-4)

    def test_main_without_a_weight_says_what_the_other_thinks(self, name):
        """Main's tokens, the other's choice."""
        vocabularies = members()
        logprobs = distributions(vocabularies, rows=1)
        wanted = vocabularies[1].tokens[b"th"]
        logits = torch.zeros(1, vocabularies[1].size).index_fill(1, torch.tensor([wanted]), 9.0)
        told = [logprobs[0], torch.log_softmax(logits, -1)]
        fused = strategies(vocabularies)[name].fuse(StepInputs(told, torch.tensor([[0.0, 1.0]])))
        begun = {vocabularies[0].tokens[b"th"], vocabularies[0].tokens[b"the"]}
        assert int(fused.argmax()) in begun
        assert bool(torch.isfinite(fused).all())

    def test_a_member_that_is_sure_of_what_main_rules_out(self, name):
        """Minus infinity stays: it cannot be chosen, and nothing becomes NaN."""
        vocabularies = members()
        logprobs = distributions(vocabularies, rows=1)
        ruled_out = torch.tensor([vocabularies[0].tokens[token] for token in (b"th", b"the")])
        main = torch.log_softmax(logprobs[0].index_fill(1, ruled_out, -torch.inf), -1)
        sure = torch.zeros(1, vocabularies[1].size).index_fill(1, torch.tensor([vocabularies[1].tokens[b"th"]]), 99.0)
        fused = strategies(vocabularies)[name].fuse(
            StepInputs([main, torch.log_softmax(sure, -1)], torch.tensor([[0.5, 0.5]]))
        )
        assert not bool(torch.isnan(fused).any())
        assert float(fused.exp().sum()) == pytest.approx(1.0, abs=1e-5)

    def test_main_sure_of_a_control_token(self, name):
        """There is nothing left for the others to have a say in."""
        vocabularies = members()
        logprobs = distributions(vocabularies, rows=1)
        control = next(iter(vocabularies[0].special_ids - vocabularies[0].stop_ids))
        main = torch.full((1, vocabularies[0].size), -torch.inf).index_fill(1, torch.tensor([control]), 0.0)
        fused = strategies(vocabularies)[name].fuse(StepInputs([main, logprobs[1]], torch.tensor([[0.5, 0.5]])))
        assert int(fused.argmax()) == control
        assert not bool(torch.isnan(fused).any())

    def test_the_end_of_a_text_is_one_thing(self, name):
        """Members that end it by different tokens agree; main's own ways to end it share as they did."""
        vocabularies = members()
        logits = [torch.zeros(1, v.size) for v in vocabularies]
        first, second = sorted(vocabularies[0].stop_ids)
        logits[0][0, [first, second]] = torch.tensor([1.0, 2.0])
        logits[1][0, sorted(vocabularies[1].stop_ids)[1]] = 9.0
        logprobs = [torch.log_softmax(x, -1) for x in logits]
        fused = strategies(vocabularies)[name].fuse(StepInputs(logprobs, torch.tensor([[0.3, 0.7]])))
        assert float(fused[0, second] - fused[0, first]) == pytest.approx(1.0, abs=1e-4)
        assert int(fused.argmax()) == second


def test_a_floor_of_nothing_lets_a_member_forbid():
    vocabularies = members()
    logprobs = distributions(vocabularies, rows=1)
    # Nor is it sure of anything that main would have to distribute.
    never = [i for i in range(vocabularies[1].size) if (vocabularies[1].token_bytes(i) or b"th").startswith(b"th")]
    never = [i for i in never if i not in vocabularies[1].stop_ids]
    never += [vocabularies[1].tokens[b"y"]]
    other = torch.log_softmax(logprobs[1].index_fill(1, torch.tensor(never), -torch.inf), -1)
    step = StepInputs([logprobs[0], other], torch.tensor([[0.5, 0.5]]))
    forbidden = product_of(vocabularies, floor=0.0)[0].fuse(step)
    allowed = product_of(vocabularies, floor=0.1)[0].fuse(step)
    token = vocabularies[0].tokens[b"th"]
    assert float(forbidden[0, token]) < -20
    assert float(allowed[0, token]) > -20


def test_the_product_is_healed():
    """A member's mass goes where its healer says before it is multiplied."""
    vocabularies = members()
    logprobs = distributions(vocabularies, rows=2)
    _, anchors = product_of(vocabularies)
    moved = torch.zeros(2, anchors.columns.width)
    moved[1, anchors.tokens.index(b"b")] = 0.75
    seen = []

    class Everything:
        def healed(self, mass, heard, own):
            seen.append(heard)
            return Healing(torch.tensor([1.0, 0.25]), moved).applied(mass)

    plain = product_of(vocabularies)[0].fuse(StepInputs(logprobs, torch.tensor([[0.5, 0.5]] * 2)))
    step = StepInputs(logprobs, torch.tensor([[0.5, 0.5]] * 2), lambda member: [f"heard by {member}"] * 2)
    healed = product_of(vocabularies, healers=[None, Everything()])[0].fuse(step)
    assert seen == [["heard by 1"] * 2]
    torch.testing.assert_close(healed[0], plain[0])
    token = vocabularies[0].tokens[b"b"]
    assert float(healed[1, token]) > float(plain[1, token])


def test_nothing_is_healed_where_a_member_abstains():
    """There its healer sees what main says: looking at each of a vocabulary's tokens would take long."""
    vocabularies, seen = members(), []
    logprobs = distributions(vocabularies, rows=2)

    class Watching:
        def healed(self, mass, heard, own):
            seen.extend([mass.clone(), own])
            return mass

    logprobs[1][1] = 0.0
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    fusion = product_of(vocabularies, healers=[None, Watching()])[0]
    fusion._combine(StepInputs(logprobs, weights))
    mass, own = seen
    torch.testing.assert_close(mass[1, :-1], own[1])
    assert not torch.allclose(mass[0, :-1], own[0])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("product", ProductConfig()),
        ("union", UnionConfig(top_k=10)),
        ({"strategy": "union", "top_k": 3}, UnionConfig(top_k=3)),
        ({"strategy": "product", "healing": False}, ProductConfig(healing=False)),
        ({"strategy": "deepen-paper", "steps": 9}, PRESETS["deepen-paper"].model_copy(update={"steps": 9})),
        ({"steps": 9}, FusionConfig(rows="soft", steps=9)),
        ({"power": 1}, FusionConfig(rows="sharp", power=1.0)),
        (UnionConfig(top_k=4), UnionConfig(top_k=4)),
        ({"strategy": "translate", "by_uncertainty": False}, TranslateConfig(by_uncertainty=False)),
        ({"strategy": "bytes", "mode": "mixture"}, BytesConfig(mode="mixture")),
    ],
)
def test_options_name_their_strategy(given, expected):
    assert resolve_fusion(given) == expected
    assert resolve_fusion(expected.model_dump()) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("producd", "choose 'deepen' or 'deepen-paper' or 'product' or 'union' or 'translate' or 'bytes'"),
        ({"strategy": "unions"}, "Unknown fusion 'unions'"),
        ({"strategy": ["union"]}, "Unknown fusion"),
        ({"strategy": "union", "steps": 3}, "Unknown option 'steps'"),
        ({"strategy": "product", "floor": 1.5}, "floor"),
        ({"rows": "sharp", "search": "adamw", "steps": 9}, "With sharp rows there is no search and no steps"),
        ({"power": 1.0, "exact": True}, "With soft rows there is no power"),
        ({"power": 0.0}, "greater than 0"),
    ],
)
def test_wrong_options_of_a_strategy(given, message):
    with pytest.raises(ConfigurationError, match=message):
        resolve_fusion(given)


def test_every_preset_has_a_strategy_and_a_label():
    for name, preset in PRESETS.items():
        assert strategy_of(preset).build
        assert preset.label == name
    assert UnionConfig(top_k=3).label == "custom (union)"
