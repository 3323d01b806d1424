"""The relative space: sparse rows against the whole matrix, the columns of all other tokens, calibration, memory."""

import pytest
import torch
from space_parts import ANCHORS, MAIN, spaces

from deepen_core.fusion.deepen.relative_space import RelativeSpace, relative_matrix
from deepen_core.fusion.deepen.sparse_matrix import SparseRows, TokenRows


def whole(rows, tokens, rest):
    """Sparse rows of one batch row as a matrix [tokens, anchors + 2], by plain loops."""
    matrix = torch.zeros(tokens, ANCHORS + 2, dtype=torch.float64)
    for token in range(tokens):
        for column, value in zip(rows.index[token].tolist(), rows.value[token].tolist(), strict=True):
            matrix[token, column] += value
        matrix[token, :ANCHORS] += float(rows.spread[token]) * rest
    return matrix


def test_rows_equal_the_dense_matrix():
    (space, _) = spaces()
    rows = space.rows(torch.arange(MAIN))
    torch.testing.assert_close(whole(rows, MAIN, space.tail).float(), space.dense(), atol=1e-6, rtol=0)
    assert float(rows.spread.max()) == 0.0  # all entries are kept


def test_rows_that_are_not_wanted_are_not_built():
    (space, _) = spaces()
    rows = space.rows(torch.tensor([[3, 4, 99]]), torch.tensor([[True, False, False]]))
    assert space.rows_built == 1
    torch.testing.assert_close(rows.value[0, 0].sum(), torch.tensor(1.0))
    assert int(rows.index.max()) < ANCHORS + 2


def test_kept_entries_are_the_largest_and_no_mass_is_lost():
    (space, _) = spaces(entries=7, temperature=10.0)
    rows, dense = space.rows(torch.arange(MAIN)), space.dense()
    torch.testing.assert_close(rows.value.sum(-1) + rows.spread, torch.ones(MAIN))
    torch.testing.assert_close(rows.value[:80].sum(-1), dense[:80].topk(7).values.sum(-1))
    assert float(rows.spread[:80].min()) > 0


def test_rows_do_not_depend_on_when_they_are_built():
    (at_once, _), (one_by_one, _) = spaces(entries=7), spaces(entries=7)
    whole = at_once.rows(torch.arange(MAIN))
    for token_id in reversed(range(MAIN)):
        one_by_one.rows(torch.tensor([token_id]))
    again = one_by_one.rows(torch.arange(MAIN))
    assert torch.equal(whole.index, again.index)
    torch.testing.assert_close(whole.value, again.value)


@pytest.mark.parametrize("column", [3, 4, 5])
def test_a_row_so_sharp_that_its_entries_underflow_names_anchors_only(column):
    """What fills up its places has no mass: no anchor, with the column stop, unknown or none, is ever among it."""
    embeddings = torch.tensor([[-1.0, -1.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.2]])
    fixed = torch.tensor([column if column < 5 else -1, -1, -1, -1], dtype=torch.int32)
    space = RelativeSpace(embeddings, torch.tensor([1, 2, 3]), fixed=fixed, temperature=5000.0, entries=2)
    ids = torch.tensor([1, 2, 3])
    rows = space.rows(ids)
    assert int(rows.index.max()) < space.anchors
    assert torch.equal(space.exact_tails(ids), torch.zeros(3, 3))
    probs = torch.tensor([[0.5, 0.2, 0.3]])
    token_rows = TokenRows(space.rows(ids[None]), space.tail, space.self_mass)
    padded = torch.cat([probs, torch.zeros(1, space.anchors + 3)], dim=-1)
    torch.testing.assert_close(token_rows.project(padded)[0, :3], probs[0])
    torch.testing.assert_close(token_rows.lift(torch.ones(1, space.anchors + 2))[0, :3], torch.ones(3))


@pytest.mark.parametrize("first", [True, False])
def test_rows_built_while_decoding_can_be_added_to_outside_of_it(first):
    """Buffers that inference mode has made cannot be written to outside of it."""
    space = spaces()[0]
    with torch.inference_mode(first):
        space.build(torch.arange(10, 40))
    with torch.inference_mode(not first):
        space.build(torch.tensor([5, 6]))
    assert space.rows_built == 32


def test_rows_looked_at_exact_tail_are_whole():
    (space, _), random = spaces(entries=7, temperature=10.0), torch.Generator().manual_seed(5)
    ids = torch.randperm(MAIN - 5, generator=random)[None, :20]
    places = torch.tensor([2, 7, 11])
    rows = TokenRows(space.rows(ids), space.tail, 0.9, (places, space.exact_tails(ids[0, places])))
    dense = space.dense()[ids[0, places]]
    for place, whole_row in zip(places, dense, strict=True):
        one = torch.zeros(1, 20 + ANCHORS + 3).index_fill(1, place, 1.0)
        torch.testing.assert_close(rows.project(one)[0], whole_row, atol=1e-6, rtol=0)
    columns = torch.rand(1, ANCHORS + 2, generator=random)
    torch.testing.assert_close(rows.lift(columns)[0, places], (dense @ columns[0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("keeps", [0.0, 0.8, 1.0])
def test_token_rows_are_the_matrix_that_they_stand_for(keeps):
    """Projecting and lifting against a matrix written out by its definition, in double precision."""
    (space, _), random = spaces(entries=7, temperature=10.0), torch.Generator().manual_seed(4)
    ids = torch.stack([torch.randperm(MAIN, generator=random)[:30] for _ in range(2)])
    sparse = space.rows(ids)
    rest = torch.softmax(torch.randn(ANCHORS, generator=random), -1)
    rows = TokenRows(sparse, rest, keeps)
    even = torch.cat([rest, torch.zeros(2)]).double()
    columns = torch.eye(ANCHORS + 2).double()
    columns[:ANCHORS] = keeps * columns[:ANCHORS] + (1 - keeps) * even
    for place in range(2):
        one = SparseRows(sparse.index[place], sparse.value[place].double(), sparse.spread[place].double())
        matrix = torch.cat([whole(one, 30, rest), columns, even[None]])
        torch.testing.assert_close(matrix.sum(-1), torch.ones(len(matrix)).double())
        probs = torch.softmax(torch.randn(2, len(matrix), generator=random), -1)
        torch.testing.assert_close(rows.project(probs)[place], (probs[place].double() @ matrix).float())
        across = torch.rand(2, ANCHORS + 2, generator=random)
        torch.testing.assert_close(rows.lift(across)[place], (matrix @ across[place].double()).float())


def test_gathered_tokens_are_the_sums_of_their_columns():
    (space, _) = spaces()
    probs = torch.softmax(torch.randn(3, MAIN, generator=torch.Generator().manual_seed(9)), -1)
    columns = torch.full((3, ANCHORS + 3), torch.nan)
    space.columns.sum_by_column(probs, into=columns)
    torch.testing.assert_close(columns[:, :ANCHORS], probs[:, :ANCHORS])  # anchors come first in this vocabulary
    torch.testing.assert_close(columns[:, ANCHORS], probs[:, MAIN - 5])  # the token that ends a text
    torch.testing.assert_close(columns[:, ANCHORS + 1], probs[:, MAIN - 4 :].sum(-1))  # control tokens
    torch.testing.assert_close(columns[:, ANCHORS + 2], probs[:, ANCHORS : MAIN - 5].sum(-1))  # shared with nobody
    told = space.columns.scatter_back(columns)
    torch.testing.assert_close(told[:, :ANCHORS], columns[:, :ANCHORS])
    torch.testing.assert_close(told[:, MAIN - 4 :], columns[:, ANCHORS + 1, None].expand(3, 4))


def test_tokens_that_go_by_their_beginning_are_gathered_there():
    embeddings = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    fixed = torch.tensor([-1, -1, 1, 1, 2], dtype=torch.int32)  # two anchors, two that begin as the second, an end
    space = RelativeSpace(embeddings, torch.tensor([0, 1]), fixed=fixed)
    columns = torch.empty(1, 5)
    space.columns.sum_by_column(torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.25]]), into=columns)
    torch.testing.assert_close(columns, torch.tensor([[0.1, 0.65, 0.25, 0.0, 0.0]]))


@pytest.mark.parametrize("target", [0.3, 0.9])
def test_calibration_reaches_its_target(target):
    random = torch.Generator().manual_seed(5)
    embeddings = torch.randn(300, 32, generator=random) + 0.8  # a common component, as real embeddings have
    fixed = torch.full((300,), -1, dtype=torch.int32)
    space = RelativeSpace(embeddings, torch.arange(200), fixed=fixed, target_self_mass=target)
    own = relative_matrix(embeddings, torch.arange(200), space.temperature)[:200].diagonal()
    assert float(own.median()) == pytest.approx(target, abs=0.01)
    assert space.self_mass == pytest.approx(target, abs=0.01)


def test_untrained_tokens_do_not_drive_the_calibration():
    random = torch.Generator().manual_seed(6)
    embeddings = torch.randn(300, 32, generator=random)
    fixed = torch.full((300,), -1, dtype=torch.int32)
    sound = RelativeSpace(embeddings, torch.arange(200), fixed=fixed)
    embeddings[100:160] = embeddings[100] + 1e-4 * torch.randn(60, 32, generator=random)
    spoiled = RelativeSpace(embeddings, torch.arange(200), fixed=fixed)
    assert spoiled.temperature < 1.6 * sound.temperature


def test_memory_is_reported_and_far_below_the_matrix():
    random = torch.Generator().manual_seed(7)
    embeddings = torch.randn(4000, 16, generator=random)
    space = RelativeSpace(embeddings, torch.arange(3000), fixed=torch.full((4000,), -1, dtype=torch.int32), entries=32)
    space.rows(torch.arange(0, 4000, 4))
    assert space.bytes_held < 0.02 * 4000 * 3000 * 4
    assert space.bytes_held > 3000 * 16 * 4


def test_the_rest_is_what_rows_have_below_their_entries():
    """Against whole rows; with all entries kept nothing is below, and it is even."""
    (space, _) = spaces(entries=7, temperature=10.0)
    dense = space.dense()[:ANCHORS, :ANCHORS]
    below = dense.scatter(-1, dense.topk(7).indices, 0.0).sum(0)
    torch.testing.assert_close(space.tail, below / below.sum())
    torch.testing.assert_close(spaces()[0].tail, torch.full((ANCHORS,), 1 / ANCHORS))
