"""The store of rows: what comes back is what was saved, or nothing; and damage is said."""

import hashlib
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from store_parts import GOOD_FILE, SPACE, TOKENS, child, header, made_from, names, put, same, some_rows

from deepen_core.errors import DeepenError
from deepen_core.fusion.deepen.store import FORMAT_VERSION, RowStore, StoreWarning
from deepen_core.fusion.deepen.store import files as rows_module
from deepen_core.fusion.deepen.store import fingerprints as fingerprints_module

# What is saved comes back


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_rows_come_back_bit_for_bit(store, dtype):
    rows = {**some_rows(), "extra": torch.tensor([True, False])}
    rows["value"] = rows["value"].to(dtype)
    assert store.save(SPACE, rows)
    assert same(store.load(SPACE), rows)
    assert names(store.folder) == [SPACE.file_name]


def test_a_later_save_replaces_the_rows(store):
    store.save(SPACE, some_rows(seed=1))
    assert store.save(SPACE, some_rows(n=9, seed=2))
    assert same(store.load(SPACE), some_rows(n=9, seed=2))


def test_a_part_of_a_buffer_is_saved_as_that_part(store):
    buffer = some_rows(n=20, k=4)
    rows = {**{name: buffer[name][:5] for name in ("index", "value", "spread")}, "slot": buffer["slot"]}
    rows["value"] = buffer["value"].T.contiguous().T[:5]  # not contiguous
    store.save(SPACE, rows)
    assert same(store.load(SPACE), rows)
    assert (store.folder / SPACE.file_name).stat().st_size < 1500


def test_nothing_there_is_no_news(store):
    assert store.load(SPACE) is None
    assert not store.folder.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"spread": None}, "spread is missing"),
        ({"slot": torch.zeros(TOKENS + 1, dtype=torch.int32)}, r"slot has shape \[12\] where tokens is \[11\]"),
        ({"value": torch.zeros(7, 3)}, r"value has shape \[7, 3\] where rows x entries is \[7, 4\]"),
        ({"index": torch.zeros(7, dtype=torch.int32)}, r"index has shape \[7\]"),
        ({"index": torch.zeros(7, 5), "value": torch.zeros(7, 5)}, "rows have 5 entries, but at most 4 are allowed"),
    ],
)
def test_rows_that_fit_nowhere_are_refused(store, change, told):
    rows = {name: tensor for name, tensor in {**some_rows(), **change}.items() if tensor is not None}
    with pytest.raises(DeepenError, match=told):
        store.save(SPACE, rows)
    assert store.entries() == []


# Fingerprints


def test_everything_that_rows_depend_on_changes_the_fingerprint():
    last_bit = torch.arange(TOKENS * 3, dtype=torch.float32).view(TOKENS, 3)
    last_bit.view(torch.int32)[-1, -1] ^= 1
    variants = [
        {},
        {"embeddings": last_bit},
        {"embeddings": torch.arange(TOKENS * 3, dtype=torch.float32).view(3, TOKENS)},
        {"embeddings": torch.arange(TOKENS * 3, dtype=torch.int32).view(TOKENS, 3)},
        {"vocabulary_digest": "d2"},
        {"anchors": [b"bc", b"a"]},
        {"anchors": [b"ab", b"c"]},
        {"temperature": 41.500000000000007},
        {"entries": 5},
        {"dtype": "float32"},
        {"fixed": torch.zeros(TOKENS, dtype=torch.int32)},
    ]
    keys = [made_from(**variant).key for variant in variants]
    assert len(set(keys)) == len(variants)


def test_the_version_of_the_format_changes_the_fingerprint(monkeypatch):
    monkeypatch.setattr(fingerprints_module, "FORMAT_VERSION", 999)
    assert made_from().key != SPACE.key


def test_the_name_of_the_model_does_not_change_the_fingerprint():
    assert made_from(model="other").key == SPACE.key


def test_the_fingerprint_of_today_is_that_of_tomorrow():
    """If this fails on purpose, raise FORMAT_VERSION too."""
    assert SPACE.key == "822739c777552f26233236fe1b16dbc8f5cc4be8f8f0cafaa9a6dba4e0168221"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_only_the_content_of_embeddings_counts_not_their_layout(dtype, monkeypatch):
    monkeypatch.setattr(fingerprints_module, "_CHUNK_BYTES", 40)  # many chunks
    wide = torch.randn(30, 14, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = made_from(embeddings=wide[:, ::2].contiguous())
    assert made_from(embeddings=wide[:, ::2]).key == whole.key
    assert made_from(embeddings=torch.nn.Parameter(wide[:, ::2].clone())).key == whole.key
    flipped = wide[:, ::2].clone()
    flipped[17, 3] += 1
    assert made_from(embeddings=flipped).key != whole.key


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_fingerprint_on_a_gpu_is_that_on_the_cpu():
    embeddings = torch.randn(5000, 1000).bfloat16()
    assert made_from(embeddings=embeddings.cuda()).key == made_from(embeddings=embeddings).key


@pytest.mark.slow
def test_another_process_with_another_hash_seed_finds_the_rows(store):
    store.save(SPACE, some_rows())
    code = """
        found = parts.RowStore(folder).load(parts.made_from())
        print(parts.same(found, parts.some_rows()))
    """
    for seed in ("1", "77"):
        with child(code, store.folder, PYTHONHASHSEED=seed) as process:
            assert process.communicate()[0] == "True\n"


# Damage


@settings(max_examples=examples(400), deadline=None)
@given(st.integers(0, 8 * len(GOOD_FILE) - 1))
def test_one_flipped_bit_anywhere_is_noticed(bit):
    content = bytearray(GOOD_FILE)
    content[bit // 8] ^= 1 << bit % 8
    with tempfile.TemporaryDirectory() as folder:
        store = RowStore(Path(folder))
        put(store, content)
        with pytest.warns(StoreWarning, match="is not used, and the rows of general are built"):
            assert store.load(SPACE) is None
        assert names(store.folder) == []


@settings(max_examples=examples(200), deadline=None)
@given(
    st.one_of(st.binary(max_size=200), st.integers(0, len(GOOD_FILE) - 1), st.binary(min_size=1, max_size=20)),
    st.data(),
)
def test_no_other_content_is_taken_for_rows(content, data):
    if isinstance(content, int):
        content = GOOD_FILE[:content]  # cut short
    elif data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(GOOD_FILE)))
        cut = data.draw(st.integers(0, 20))
        content = GOOD_FILE[:at] + content + GOOD_FILE[at + cut :]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = RowStore(Path(folder))
        put(store, content)
        found = store.load(SPACE)
    assert (content == GOOD_FILE) == (found is not None)
    assert [warning.category for warning in caught] == ([] if found else [StoreWarning])


def sealed_by_hand(metadata, tensors, missing=0):
    """A file with a right checksum and anything else in it, less some bytes at its end."""
    data = save(tensors, {**metadata, "checksum": "0" * 64})
    data = data[: len(data) - missing]
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode())


OURS = {"format_version": str(FORMAT_VERSION), "key": SPACE.key, "model": "other", "rows": "7"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "has no header of this store"),
        (b"%PDF-1.7 a paper that somebody put there", "has no header of this store"),
        (b"\x10" + b"\0" * 7 + b"[" * 16, "has no header of this store"),
        (b"\xff\xff\xff\0" + b"\0" * 4 + b"[" * 100_000, "has no header of this store"),
        (header([1]), "has no header of this store"),
        (save(some_rows()), "has no header of this store"),
        (header({"__metadata__": 5}), "is not of format 3"),
        (save(some_rows(), {"by": "another program"}), "is not of format 3"),
        (save(some_rows(), OURS), "is damaged"),
        (sealed_by_hand({**OURS, "format_version": "0"}, some_rows()), "is not of format 3"),
        (sealed_by_hand({**OURS, "key": "f" * 64}, some_rows()), r"holds the rows of another space \(of other\)"),
        (sealed_by_hand(OURS, {**some_rows(), "slot": torch.zeros(3)}), r"does not fit: slot has shape \[3\]"),
        (sealed_by_hand(OURS, some_rows(), missing=1), "is not a safetensors file"),
        (sealed_by_hand(OURS, {"spread": torch.zeros(7)}), "does not fit: slot is missing"),
    ],
)
def test_a_foreign_file_is_told_once_and_replaced(store, content, told):
    put(store, content)
    with pytest.warns(StoreWarning, match=f"{SPACE.file_name} {told}.*general are built") as caught:
        assert store.load(SPACE) is None
    assert caught[0].filename == __file__
    put(store, content)
    assert store.load(SPACE) is None  # the second time without a word: warnings are errors here
    assert store.save(SPACE, some_rows())
    assert same(store.load(SPACE), some_rows())


def test_a_right_seal_made_by_hand_is_taken(store):
    put(store, sealed_by_hand(OURS, some_rows()))
    assert same(store.load(SPACE), some_rows())


def test_a_file_that_cannot_be_read_is_told(store):
    (store.folder / SPACE.file_name).mkdir(parents=True)
    with pytest.warns(StoreWarning, match="cannot be read"):
        assert store.load(SPACE) is None
    with pytest.warns(StoreWarning, match="cannot be saved"):
        assert not store.save(SPACE, some_rows())
    assert names(store.folder) == [SPACE.file_name]


def test_a_damaged_file_that_was_replaced_meanwhile_stays(store, monkeypatch):
    put(store, b"damaged")
    unsealed = rows_module.unsealed

    def replaced_now(data, space):
        store.save(SPACE, some_rows())
        return unsealed(data, space)

    monkeypatch.setattr(rows_module, "unsealed", replaced_now)
    with pytest.warns(StoreWarning):
        assert store.load(SPACE) is None
    monkeypatch.undo()
    assert same(store.load(SPACE), some_rows())


def test_pickles_are_not_read(store):
    import pickle

    put(store, pickle.dumps(some_rows()))
    with pytest.warns(StoreWarning, match="no header of this store"):
        assert store.load(SPACE) is None
