"""Fusing: the restricted search against whole matrices, abstaining members, the stop class."""

import pytest
import torch
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from space_parts import ANCHORS, MAIN, OTHER, spaces

from deepen_core import Ensemble
from deepen_core.config import FusionConfig
from deepen_core.errors import CompatibilityWarning, ConfigurationError
from deepen_core.fusion.base import StepInputs
from deepen_core.fusion.deepen.search import DenseRows, adamw, em_search, expectation_maximisation
from deepen_core.fusion.deepen.strategy import DeepenStrategy


def distributions(rows=6, sharpness=4.0):
    random = torch.Generator().manual_seed(1)
    return [torch.log_softmax(sharpness * torch.randn(rows, n, generator=random), -1) for n in (MAIN, OTHER)]


EVEN = torch.full((6, 2), 0.5)


@pytest.mark.parametrize("search", ["em", "adamw"])
@pytest.mark.parametrize("temperature", ["auto", 100.0])
def test_all_candidates_equal_whole_matrices(search, temperature):
    """With every token a candidate and every entry kept, the restricted search is the exact one."""
    config = {"search": search, "temperature": temperature, "candidates": 512, "row_entries": 128, "row_floor": 0.0}
    members, logprobs = spaces(temperature=temperature), distributions()
    near = DeepenStrategy(members, 0, FusionConfig(**config)).fuse(StepInputs(logprobs, EVEN))
    exact = DeepenStrategy(members, 0, FusionConfig(**config, exact=True)).fuse(StepInputs(logprobs, EVEN))
    torch.testing.assert_close(near.exp(), exact.exp(), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("unshared", ["prefix", "embedding"])
@pytest.mark.parametrize("search", ["em", "adamw"])
def test_few_candidates_stay_near_whole_matrices(search, unshared):
    members, logprobs = spaces(prefix=unshared == "prefix"), distributions(sharpness=3.0)
    config = FusionConfig(search=search, unshared=unshared, candidates=40, images=20)
    near = DeepenStrategy(members, 0, config).fuse(StepInputs(logprobs, EVEN))
    exact = DeepenStrategy(members, 0, config.model_copy(update={"exact": True})).fuse(StepInputs(logprobs, EVEN))
    distance = 0.5 * (near.exp() - exact.exp()).abs().sum(-1)
    assert float(distance.mean()) < 0.02
    assert float(distance.max()) < 0.05
    assert torch.equal(near.argmax(-1), exact.argmax(-1))


@pytest.mark.parametrize("search", ["em", "adamw"])
def test_ties_are_decided_as_whole_matrices_do(search, monkeypatch):
    """Main's chance of a token is raised until the exact choice tips over; four entries a row are not enough there."""
    config = FusionConfig(search=search, row_entries=4, row_floor=0.0)
    near = DeepenStrategy(spaces(entries=4), 0, config)
    exact = DeepenStrategy(spaces(), 0, config.model_copy(update={"exact": True}))
    wrong = {True: 0, False: 0}
    monkeypatch.setattr("deepen_core.fusion.deepen.sparse_fusion._CLEAR", 1e-3)
    # All tokens, as none is much weightier in so small a world.
    monkeypatch.setattr("deepen_core.fusion.deepen.sparse_fusion._WEIGHTY", 0.0)
    for seed in range(40):
        random = torch.Generator().manual_seed(seed)
        mine, theirs = (4.0 * torch.randn(1, n, generator=random) for n in (MAIN, OTHER))
        low, high = 0.0, 20.0
        for _ in range(12):
            middle = (low + high) / 2
            values = [torch.log_softmax(x, -1) for x in (mine + middle * (torch.arange(MAIN) == 7), theirs)]
            right = int(exact.fuse(StepInputs(values, EVEN[:1])).argmax())
            low, high = (low, middle) if right == 7 else (middle, high)
        for exact_tail in (True, False):
            with monkeypatch.context() as patch:
                patch.setattr("deepen_core.fusion.deepen.sparse_fusion._TIE", 0.5 if exact_tail else -1.0)
                wrong[exact_tail] += int(near.fuse(StepInputs(values, EVEN[:1])).argmax()) != right
    assert wrong[False] > 8
    # AdamW scales gradients to size one, also where they are mere rounding.
    assert wrong[True] == 0 if search == "em" else wrong[True] <= wrong[False] / 2


def test_exact_em_equals_em_search():
    """The strategy against the function, through plain tensors."""
    members, logprobs = spaces(), distributions(rows=1)
    for values in logprobs:
        values[:, -4:] = -torch.inf  # control tokens are for main to decide
    logprobs = [torch.log_softmax(values, -1) for values in logprobs]
    fused = DeepenStrategy(members, 0, FusionConfig(exact=True)).fuse(StepInputs(logprobs, EVEN[:1]))
    matrices = [s.dense() for s in members]
    target = 0.5 * logprobs[0][0].exp() @ matrices[0] + 0.5 * logprobs[1][0].exp() @ matrices[1]
    expected = em_search(logprobs[0][0].exp(), matrices[0], target, 5)
    torch.testing.assert_close(fused[0].exp(), expected / expected.sum(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("search", ["em", "adamw"])
def test_fused_rows_are_distributions(search, exact):
    fused = DeepenStrategy(spaces(), 0, FusionConfig(search=search, exact=exact)).fuse(
        StepInputs(distributions(), EVEN)
    )
    torch.testing.assert_close(fused.exp().sum(-1), torch.ones(6), atol=1e-5, rtol=0)
    assert not torch.isnan(fused).any()


def test_main_alone_is_untouched_bit_for_bit():
    logprobs = distributions()
    weights = EVEN.clone()
    weights[[1, 4]] = torch.tensor([1.0, 0.0])
    fusion = DeepenStrategy(spaces(), 0, FusionConfig())
    fused = fusion.fuse(StepInputs(logprobs, weights))
    assert torch.equal(fused[[1, 4]], logprobs[0][[1, 4]])
    assert not torch.equal(fused[0], logprobs[0][0])
    assert torch.equal(fusion.fuse(StepInputs([logprobs[0], None], torch.tensor([[1.0, 0.0]] * 6))), logprobs[0])


def test_what_stands_where_a_weight_is_zero_does_not_matter():
    logprobs = distributions()
    weights = EVEN.clone()
    weights[2] = torch.tensor([1.0, 0.0])
    fusion = DeepenStrategy(spaces(), 0, FusionConfig())
    before = fusion.fuse(StepInputs(logprobs, weights))
    logprobs[1][2] = 0.0  # what a member that abstains in this row alone leaves there
    assert torch.equal(fusion.fuse(StepInputs(logprobs, weights)), before)


def test_a_row_does_not_depend_on_its_neighbours():
    logprobs = distributions()
    together = DeepenStrategy(spaces(), 0, FusionConfig(candidates=40)).fuse(StepInputs(logprobs, EVEN))
    for row in range(6):
        alone = DeepenStrategy(spaces(), 0, FusionConfig(candidates=40)).fuse(
            StepInputs([p[row : row + 1] for p in logprobs], EVEN[:1])
        )
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


def test_weights_need_not_sum_to_one():
    fusion = DeepenStrategy(spaces(), 0, FusionConfig())
    torch.testing.assert_close(
        fusion.fuse(StepInputs(distributions(), EVEN)), fusion.fuse(StepInputs(distributions(), 3 * EVEN))
    )


def test_ending_is_a_joint_decision():
    """A member that is sure of the end moves the end of main, through ids that have nothing else in common."""
    members = spaces()
    stop_main, stop_other = MAIN - 5, OTHER - 5
    logits = [torch.zeros(1, MAIN), torch.zeros(1, OTHER)]
    logits[0][0, 3] = 8.0
    logits[0][0, stop_main] = 6.5
    logits[1][0, stop_other] = 12.0
    logprobs = [torch.log_softmax(x, -1) for x in logits]
    fused = DeepenStrategy(members, 0, FusionConfig()).fuse(StepInputs(logprobs, EVEN[:1]))[0].exp()
    assert int(logprobs[0].argmax()) == 3
    assert int(fused.argmax()) == stop_main
    assert float(fused[stop_main]) == pytest.approx(
        0.5 * float(logprobs[0].exp()[0, stop_main]) + 0.5 * float(logprobs[1].exp()[0, stop_other]), abs=0.02
    )


def test_tokens_only_the_other_favours_are_candidates():
    """An anchor that main hardly gives any mass can win if the other is sure and main is not."""
    members = spaces()
    logits = [torch.zeros(1, MAIN), torch.zeros(1, OTHER)]
    logits[0][0, :50] = 6.0
    logits[0][0, 55] = -6.0
    favoured = int(members[1].anchor_ids[55])
    logits[1][0, favoured] = 15.0
    logprobs = [torch.log_softmax(x, -1) for x in logits]
    fused = DeepenStrategy(members, 0, FusionConfig(candidates=10, images=4)).fuse(StepInputs(logprobs, EVEN[:1]))
    assert int(fused.argmax()) == 55


@pytest.mark.parametrize("search", ["em", "adamw"])
def test_minus_infinity_stays(search):
    logprobs = distributions()
    logits = logprobs[0].clone()
    logits[:, :5] = -torch.inf
    logprobs[0] = torch.log_softmax(logits, -1)
    fused = DeepenStrategy(spaces(), 0, FusionConfig(search=search)).fuse(StepInputs(logprobs, EVEN))
    assert torch.isneginf(fused[:, :5]).all()
    assert torch.isfinite(fused[:, 5:60]).all()


def test_three_members():
    members, logprobs = spaces(), distributions()
    weights = torch.tensor([[0.4, 0.3, 0.3]] * 6)
    three = DeepenStrategy([*members, members[1]], 0, FusionConfig()).fuse(
        StepInputs([*logprobs, logprobs[1]], weights)
    )
    two = DeepenStrategy(members, 0, FusionConfig()).fuse(StepInputs(logprobs, torch.tensor([[0.4, 0.6]] * 6)))
    torch.testing.assert_close(three, two, atol=1e-5, rtol=0)


@pytest.mark.parametrize("exact", [True, False])
def test_what_an_abstaining_member_leaves_is_not_looked_at(exact):
    """Not even where the others share a row without it."""
    members, logprobs = spaces(), distributions()
    left = torch.full_like(logprobs[1], torch.nan)
    fusion = DeepenStrategy([*members, members[1]], 0, FusionConfig(exact=exact))
    three = fusion.fuse(StepInputs([*logprobs, left], torch.tensor([[0.5, 0.5, 0.0]] * 6)))
    two = DeepenStrategy(members, 0, FusionConfig(exact=exact)).fuse(StepInputs(logprobs, EVEN))
    torch.testing.assert_close(three, two)


def test_adamw_equals_autograd_in_double():
    """The closed-form gradient against torch's own optimizer and loss."""
    random = torch.Generator().manual_seed(2)
    matrix = torch.softmax(3 * torch.randn(40, 25, generator=random, dtype=torch.float64), -1)
    logits = torch.randn(40, generator=random, dtype=torch.float64)
    target = torch.softmax(torch.randn(25, generator=random, dtype=torch.float64), -1)
    moved = logits.clone().requires_grad_()
    optimizer = torch.optim.AdamW([moved], lr=0.15)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.15 / 4)
    for _ in range(7):
        optimizer.zero_grad()
        projected = torch.softmax(moved, -1) @ matrix
        (torch.xlogy(target, target / projected).sum() / len(target)).backward()
        optimizer.step()
        schedule.step()
    found = adamw(logits, DenseRows(matrix), target, 0.15, 7)
    torch.testing.assert_close(found, moved.detach(), atol=1e-9, rtol=0)


def test_adamw_with_tokens_that_do_not_move_equals_autograd_in_double():
    """The others keep their logits and lose or gain only by the normalisation."""
    random = torch.Generator().manual_seed(6)
    matrix = torch.softmax(3 * torch.randn(40, 25, generator=random, dtype=torch.float64), -1)
    logits = torch.randn(40, generator=random, dtype=torch.float64)
    target = torch.softmax(2 * torch.randn(25, generator=random, dtype=torch.float64), -1)
    moved = logits[:15].clone().requires_grad_()
    optimizer = torch.optim.AdamW([moved], lr=0.8)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.2)
    for _ in range(7):
        optimizer.zero_grad()
        projected = torch.softmax(torch.cat([moved, logits[15:]]), -1) @ matrix
        (torch.xlogy(target, target / projected).sum() / len(target)).backward()
        optimizer.step()
        schedule.step()
    found = adamw(logits[:15], DenseRows(matrix), target, 0.8, 7, logits[15:].exp())
    torch.testing.assert_close(found, moved.detach(), atol=1e-9, rtol=0)


def test_em_never_raises_the_divergence():
    random = torch.Generator().manual_seed(3)
    for _ in range(20):
        matrix = torch.softmax(4 * torch.randn(50, 30, generator=random, dtype=torch.float64), -1)
        probs = torch.softmax(2 * torch.randn(50, generator=random, dtype=torch.float64), -1)
        target = torch.softmax(2 * torch.randn(30, generator=random, dtype=torch.float64), -1)
        last = float("inf")
        for _ in range(10):
            now = float(torch.xlogy(target, target / (probs @ matrix)).sum())
            assert now <= last + 1e-12
            last, probs = now, expectation_maximisation(probs, DenseRows(matrix), target, 1)
        assert float(probs.sum()) == pytest.approx(1.0)


def _extreme(kind, rows, size, random):
    """Log-probabilities of one kind: random of some sharpness, one-hot, all on a stop or a control token, with gaps."""
    logits = torch.randn(rows, size, generator=random)
    if isinstance(kind, float):
        logits = kind * logits
    elif kind == "gaps":
        logits = (4 * logits).masked_fill(torch.rand(rows, size, generator=random) < 0.5, -torch.inf)
        logits[:, 0] = 0.0
    else:
        places = {"one-hot": 7, "stop": size - 5, "control": size - 1}
        logits = torch.full((rows, size), -torch.inf)
        logits[:, places[kind]] = 0.0
    return torch.log_softmax(logits, -1)


KINDS = st.sampled_from([0.0, 0.5, 3.0, 10.0, 40.0, "gaps", "one-hot", "stop", "control"])


@settings(max_examples=examples(150), deadline=None)
@given(
    kinds=st.tuples(KINDS, KINDS),
    share=st.sampled_from([0.0, 1e-12, 0.3, 0.5, 0.999]),
    search=st.sampled_from(["em", "adamw"]),
    candidates=st.sampled_from([8, 20, 512]),
    seed=st.integers(0, 1000),
)
def test_extremes_give_distributions_near_the_exact_ones(kinds, share, search, candidates, seed):
    random = torch.Generator().manual_seed(seed)
    logprobs = [_extreme(kind, 3, size, random) for kind, size in zip(kinds, (MAIN, OTHER), strict=True)]
    weights = torch.tensor([[share, 1 - share]] * 3)
    config = FusionConfig(search=search, candidates=candidates, row_floor=0.0, row_entries=ANCHORS)
    near = DeepenStrategy(spaces(), 0, config).fuse(StepInputs(logprobs, weights))
    exact = DeepenStrategy(spaces(), 0, config.model_copy(update={"exact": True})).fuse(StepInputs(logprobs, weights))
    for fused in (near, exact):
        assert not torch.isnan(fused).any()
        torch.testing.assert_close(fused.exp().sum(-1), torch.ones(3), atol=1e-4, rtol=0)
    # AdamW scales gradients to size one, also where they are mere rounding: there the two may differ.
    if candidates == 512 and search == "em":
        torch.testing.assert_close(near.exp(), exact.exp(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("exact", [True, False])
def test_what_main_has_no_word_for_has_no_say(exact):
    """A member that is sure of a control token of its own leaves the choice to main, control tokens included."""
    logits = [torch.randn(1, MAIN, generator=torch.Generator().manual_seed(8)), torch.zeros(1, OTHER)]
    logits[1][0, OTHER - 1] = 20.0
    logprobs = [torch.log_softmax(x, -1) for x in logits]
    fused = DeepenStrategy(spaces(), 0, FusionConfig(exact=exact)).fuse(StepInputs(logprobs, EVEN[:1]))
    torch.testing.assert_close(fused.exp(), logprobs[0].exp(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("search", ["em", "adamw"])
def test_equal_members_agree_with_themselves(exact, search):
    """Control tokens included: averaging a distribution with itself changes nothing."""
    (space, _), (logprobs, _) = spaces(), distributions(sharpness=2.0)
    config = FusionConfig(exact=exact, search=search, trust_radius=1e-4)
    fused = DeepenStrategy([space, space], 0, config).fuse(StepInputs([logprobs, logprobs], EVEN))
    torch.testing.assert_close(fused.exp(), logprobs.exp(), atol=2e-4, rtol=0)


def test_whole_matrices_that_cannot_fit_are_refused_before_anything_is_loaded(folders, monkeypatch):
    monkeypatch.setattr("deepen_core.fusion.deepen.exact_fusion._memory", lambda device: 2**20)
    monkeypatch.setattr("deepen_core.ensemble.load_members", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(ConfigurationError, match=r"matrices of 420 x \d+ and 520 x .* only 0.0 GiB are available"):
        Ensemble.load([folders["alpha"], folders["beta"]], fusion={"exact": True}, progress=False, device="cpu")


def test_a_space_without_signal_is_told_with_its_number(folders):
    with pytest.warns(CompatibilityWarning) as said:
        ensemble = Ensemble.load(
            [folders["alpha"], folders["beta"]], fusion={"temperature": 0.5}, progress=False, device="cpu"
        )
    with ensemble:
        info = ensemble.info
        assert [str(w.message) for w in said] == info.warnings
        for member, warning in zip(info.members, info.warnings, strict=True):
            assert f"{member.name!r} carries little signal: the median anchor keeps {member.self_mass:.3f}" in warning
            assert warning.endswith('Use temperature="auto".')
            assert member.effective_support > 50
