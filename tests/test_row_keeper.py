"""Rows that outlive an ensemble: found again, never trusted, never in the way."""

import pytest
import torch

from deepen_core import Ensemble
from deepen_core.fusion.deepen.store import RowStore

PROMPT = "The quick brown fox"


@pytest.fixture(autouse=True)
def _keep_small_ones_too(monkeypatch):
    monkeypatch.setattr("deepen_core.fusion.deepen.store.keeper._WORTH_KEEPING", 10)


@pytest.fixture
def again(folders, tmp_path):
    """Loads the same two members with the same store."""

    def load(**options):
        members = [folders["alpha"], folders["beta"]]
        return Ensemble.load(members, cache_dir=tmp_path, progress=False, device="cpu", **options)

    return load


def rows_built(ensemble):
    return [space.rows_built for space in ensemble._engine.fusion.spaces]


def test_rows_are_found_again_and_answers_are_the_same(again, tmp_path):
    with again() as first:
        assert rows_built(first) == [0, 0]
        answer = first.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
        built = rows_built(first)
    assert min(built) > 0
    assert len(RowStore(tmp_path).entries()) == 2
    with again() as second:
        assert rows_built(second) == built
        assert second.generate(PROMPT, max_new_tokens=20, ignore_eos=True).token_ids == answer.token_ids
        assert rows_built(second) == built


def test_other_settings_have_other_rows(again):
    with again() as first:
        first.generate(PROMPT, max_new_tokens=5)
    for options in ({"fusion": {"temperature": 50.0}}, {"fusion": {"row_entries": 8}}, {"dtype": "bfloat16"}):
        with again(**options) as other:
            assert rows_built(other) == [0, 0]


def test_prepare_builds_every_row(again):
    with again() as first:
        first.prepare(progress=False)
        everything = rows_built(first)
        assert everything == [int((space.fixed < 0).sum()) for space in first._engine.fusion.spaces]
        assert min(everything) >= len(first._engine.fusion._anchors)
        first.generate(PROMPT, max_new_tokens=20)
        assert rows_built(first) == everything
    with again() as second:
        assert rows_built(second) == everything


def test_a_damaged_file_is_said_and_built_again(again, tmp_path):
    with again() as first:
        answer = first.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    for path in tmp_path.rglob("rows-*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-7] ^= 0x10
        path.write_bytes(data)
    with pytest.warns(UserWarning, match="rows-") as said:
        second = again()
    assert len(said) == 2
    with second:
        assert rows_built(second) == [0, 0]
        assert second.generate(PROMPT, max_new_tokens=20, ignore_eos=True).token_ids == answer.token_ids
    with again() as third:
        assert min(rows_built(third)) > 0


def test_small_vocabularies_are_left_out(again, tmp_path, monkeypatch):
    monkeypatch.undo()
    with again() as ensemble:
        ensemble.generate(PROMPT, max_new_tokens=5)
        ensemble.prepare(progress=False)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_nothing_new_is_not_written_again(again, tmp_path):
    with again() as first:
        first.prepare(progress=False)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("rows-*.safetensors")}
    with again() as second:
        second.generate(PROMPT, max_new_tokens=5)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("rows-*.safetensors")} == before


def test_rows_of_two_processes_add_up(again):
    """Each leaves what the other has not built: the later save does not undo the earlier one."""
    with again() as first, again() as second:
        first.generate(PROMPT, max_new_tokens=10, ignore_eos=True)
        second.generate("def mean(values):", max_new_tokens=10, ignore_eos=True)
        ids = [
            {int(i) for e in (first, second) for i in (e._engine.fusion.spaces[m]._slot >= 0).nonzero()} for m in (0, 1)
        ]
        assert [len(i) for i in ids] > rows_built(first)
    with again() as third:
        assert [{int(i) for i in (space._slot >= 0).nonzero()} for space in third._engine.fusion.spaces] == ids
        dense = third._engine.fusion.spaces[0].dense()
        rows = third._engine.fusion.spaces[0].rows(torch.tensor(sorted(ids[0])))
        picked = dense[sorted(ids[0])].gather(-1, rows.index)
        torch.testing.assert_close(picked, rows.value, atol=1e-5, rtol=0)


def test_a_long_build_is_kept_as_it_goes(again, monkeypatch):
    """What a build that is killed has done so far is found by the next one."""
    monkeypatch.setattr("deepen_core.fusion.deepen.store.keeper._SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("deepen_core.fusion.deepen.relative_space._CHUNK_FLOATS", 50 * 420)
    saved = []
    save = RowStore.save

    def save_twice(store, key, tensors):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(len(tensors["spread"]) - 1)
        return save(store, key, tensors)

    first = again()
    with monkeypatch.context() as patch:
        patch.setattr(RowStore, "save", save_twice)
        with pytest.raises(KeyboardInterrupt):
            first.prepare(progress=False)
    assert saved == [50, 100]
    with again() as second:
        assert rows_built(second) == [100, 0]
        second.prepare(progress=False)
        assert rows_built(second) == [int((space.fixed < 0).sum()) for space in second._engine.fusion.spaces]
    first.close()
