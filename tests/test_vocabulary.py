"""What token ids mean in bytes, for every kind of tokenizer."""

import json
import subprocess
import sys

import pytest
import tiny
from hypothesis import example, given
from hypothesis import strategies as st

from deepen_core.errors import NoCommonTokensError, TokenizerError
from deepen_core.fusion.anchors.shared_tokens import Anchors, common_tokens
from deepen_core.tokenization.fast_tokenizer import Backend
from deepen_core.tokenization.vocabulary import Vocabulary

KINDS = {
    "byte_level": tiny.byte_level,
    "sentencepiece_bpe": tiny.sentencepiece_bpe,
    "metaspace_first": tiny.metaspace_first,
    "unigram": tiny.unigram,
    "unigram_uncut": lambda: tiny.unigram(split=False),
    "gemma_like": tiny.gemma_like,
}
METASPACE = {"metaspace_first", "unigram"}
LOSSLESS = ["byte_level", "sentencepiece_bpe", "metaspace_first", "unigram", "unigram_uncut", "gemma_like"]


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make() for name, make in KINDS.items()} | {"wordpiece": tiny.wordpiece()}


@pytest.fixture(scope="module")
def backends(tokenizers):
    return {name: Backend(t) for name, t in tokenizers.items()}


@pytest.fixture(scope="module")
def vocabularies(tokenizers):
    return {name: Vocabulary.from_tokenizer(t) for name, t in tokenizers.items()}


@pytest.mark.parametrize("name", LOSSLESS)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60))
@example(text="a <unk></s> <0x41> <|turn|>")
def test_bytes_of_the_ids_spell_the_text(backends, vocabularies, name, text):
    ids = backends[name].encode(text)
    spelled = vocabularies[name].join(ids, at_start=True)
    # A Metaspace pre-tokenizer adds its dummy space only where the text has none: " a" and "a" are the same to it.
    same = {text.encode(), text.encode().removeprefix(b" ")} if name in METASPACE else {text.encode()}
    assert spelled in same


def test_kinds(vocabularies):
    kinds = {name: v.kind for name, v in vocabularies.items()}
    assert kinds.pop("wordpiece") == "wordpiece"
    assert kinds.pop("byte_level") == "byte-level"
    assert set(kinds.values()) == {"sentencepiece"}


def test_wordpiece_puts_a_space_before_words(tokenizers, vocabularies):
    ids = tokenizers["wordpiece"]("The quick, lazy foxes", add_special_tokens=False)["input_ids"]
    assert vocabularies["wordpiece"].join(ids, at_start=True) == b"the quick , lazy foxes"


def test_byte_pieces_come_after_plain_ones(tokenizers, vocabularies):
    vocabulary, pieces = vocabularies["sentencepiece_bpe"], tokenizers["sentencepiece_bpe"].get_vocab()
    assert vocabulary.token_bytes(pieces["<0x61>"]) == vocabulary.token_bytes(pieces["a"]) == b"a"
    assert vocabulary.id_of(b"a") == pieces["a"]
    assert vocabulary.id_of(b"\xe4") == pieces["<0xE4>"]


def test_byte_pieces_that_are_added_tokens_too_are_bytes():
    tokenizer = tiny.sentencepiece_bpe()
    tokenizer.add_tokens(["<0xE4>", "<0x0A>"])
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert vocabulary.token_bytes(tokenizer.convert_tokens_to_ids("<0xE4>")) == b"\xe4"
    assert vocabulary.token_bytes(tokenizer.convert_tokens_to_ids("<0x0A>")) == b"\n"


@pytest.mark.parametrize("make", [*KINDS.values(), tiny.wordpiece, tiny.plain_bpe], ids=[*KINDS, "wordpiece", "plain"])
def test_the_copy_is_the_tokenizer_but_for_what_is_changed(make):
    """The parts are taken over without the vocabulary's JSON, and come to the same."""
    tokenizer = make()
    source = getattr(tokenizer, "backend_tokenizer", tokenizer)
    expected, backend = json.loads(source.to_str()), Backend(tokenizer)
    found = json.loads(backend._first.to_str())
    changed = {"truncation", "padding", "post_processor", "pre_tokenizer"}  # the last one only to shut control tokens
    assert {k: v for k, v in found.items() if k not in changed} == {
        k: v for k, v in expected.items() if k not in changed
    }
    assert backend.added_tokens == expected["added_tokens"]
    assert backend.model.items() <= expected["model"].items()
    assert found["post_processor"] is None


def test_special_tokens_have_no_bytes(tokenizers, vocabularies):
    vocabulary, pieces = vocabularies["byte_level"], tokenizers["byte_level"].get_vocab()
    assert vocabulary.token_bytes(pieces["<|turn|>"]) is None
    assert vocabulary.stop_ids == {pieces["<|eos|>"], pieces["<|end|>"]}
    assert vocabulary.special_ids >= vocabulary.stop_ids | {pieces["<|turn|>"], pieces["<|bos|>"]}
    assert vocabulary.token_bytes(vocabulary.size) is None
    assert vocabulary.token_bytes(-1) is None


def test_further_stop_ids_of_the_generation_config(tokenizers):
    pieces = tokenizers["byte_level"].get_vocab()
    vocabulary = Vocabulary.from_tokenizer(tokenizers["byte_level"], stop_ids=[pieces["<|turn|>"]])
    assert vocabulary.stop_ids == {pieces["<|turn|>"], pieces["<|eos|>"]}
    assert vocabulary.token_bytes(pieces["<|end|>"]) is None
    # The EOS alone says nothing about turns.
    vocabulary = Vocabulary.from_tokenizer(tokenizers["byte_level"], stop_ids=[pieces["<|eos|>"]])
    assert vocabulary.stop_ids == {pieces["<|end|>"], pieces["<|eos|>"]}


def test_the_end_of_a_harmony_message_ends_no_turn():
    """gpt-oss closes its thoughts with `<|end|>` and goes on."""
    tokenizer = tiny.byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|return|>", "<|call|>"]})
    ids = tokenizer.convert_tokens_to_ids
    assert Vocabulary.from_tokenizer(tokenizer).stop_ids == {ids("<|eos|>"), ids("<|return|>"), ids("<|call|>")}
    given = Vocabulary.from_tokenizer(tokenizer, stop_ids=[ids("<|return|>")])
    assert given.stop_ids == {ids("<|eos|>"), ids("<|return|>")}


@pytest.mark.parametrize(
    "make", [tiny.byte_level, tiny.sentencepiece_bpe, tiny.metaspace_first, tiny.unigram, tiny.wordpiece]
)
@pytest.mark.parametrize("text", ["x <tool> y", "a foo b", "a<tool>b", "foo"])
def test_added_tokens_mean_what_the_tokenizer_decodes(make, text):
    tokenizer = make()
    tokenizer.add_tokens(["<tool>", "foo"])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert Vocabulary.from_tokenizer(tokenizer).join(ids, at_start=True).decode() == tokenizer.decode(ids)


def test_pieces_that_are_added_tokens_too_mean_what_the_tokenizer_decodes():
    """Gemma lists its runs of blanks twice."""
    tokenizer = tiny.gemma_like()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    for piece, text in (("▁▁", b"  "), ("▁▁▁▁", b"    ")):
        token_id = tokenizer.convert_tokens_to_ids(piece)
        assert vocabulary.token_bytes(token_id) == text
        assert vocabulary.id_of(text) == token_id
        assert tokenizer.decode([token_id]).encode() == text


def test_a_piece_of_text_that_pads_is_read_as_before():
    """Here the model finds it in text by itself, as it finds control tokens, which are kept from it."""
    tokenizer = tiny.unigram()
    usual = Backend(tokenizer)
    pieces = (
        p for p, i in tokenizer.get_vocab().items() if len(p) > 2 and p.isalpha() and usual.encode_inside(p)[-1:] == [i]
    )
    piece = next(pieces)
    expected = usual.encode(f"a {piece} {piece}</s>")
    tokenizer.add_special_tokens({"pad_token": piece})
    assert Backend(tokenizer).encode(f"a {piece} {piece}</s>") == expected
    assert Vocabulary.from_tokenizer(tokenizer).token_bytes(tokenizer.pad_token_id) == piece.encode()


def test_a_text_token_that_pads_is_text():
    tokenizer = tiny.byte_level()
    tokenizer.pad_token = "!"
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert vocabulary.join(Backend(tokenizer).encode("Hi!")) == b"Hi!"
    assert tokenizer.pad_token_id not in vocabulary.special_ids
    tokenizer.eos_token = "!"
    assert tokenizer.pad_token_id in Vocabulary.from_tokenizer(tokenizer).stop_ids
    tokenizer = tiny.byte_level()
    tokenizer.pad_token = "<|turn|>"
    assert tokenizer.pad_token_id in Vocabulary.from_tokenizer(tokenizer).special_ids


def test_added_plain_token_is_text(tokenizers):
    tokenizer = tiny.byte_level()
    tokenizer.add_tokens(["<tool>", "  é"])
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert vocabulary.token_bytes(tokenizer.convert_tokens_to_ids("<tool>")) == b"<tool>"
    assert vocabulary.token_bytes(tokenizer.convert_tokens_to_ids("  é")) == "  é".encode()


def test_end_of_word_marks_are_refused():
    from tokenizers import Tokenizer, models

    clip_like = Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>"))
    with pytest.raises(TokenizerError, match="marks the end of words"):
        Vocabulary.from_tokenizer(clip_like)


def test_slow_tokenizers_are_refused():
    with pytest.raises(TokenizerError, match="no fast version"):
        Vocabulary.from_tokenizer(object())


def test_anchors_are_shared_sorted_and_canonical(vocabularies):
    three = [vocabularies[n] for n in ("byte_level", "sentencepiece_bpe", "unigram")]
    tokens = common_tokens(three)
    assert tokens == sorted(tokens)
    assert len(tokens) > 50
    assert all(v.token_bytes(v.id_of(t)) == t for t in tokens for v in three)
    anchors = Anchors.shared_by(three, ["a", "b", "c"])
    for vocabulary, ids in zip(three, anchors.ids, strict=True):
        assert [vocabulary.token_bytes(i) for i in ids.tolist()] == anchors.tokens
        assert not set(ids.tolist()) & vocabulary.special_ids


@pytest.mark.slow
def test_anchors_do_not_depend_on_the_hash_seed(shared):
    program = (
        "from transformers import AutoTokenizer as T; from deepen_core.tokenization.vocabulary import Vocabulary as V;"
        "from deepen_core.fusion.anchors.shared_tokens import Anchors;"
        f"f = {str(shared / 'models')!r};"
        "v = [V.from_tokenizer(T.from_pretrained(f'{f}/{n}')) for n in ('stories260K', 'babyllama105')];"
        "a = Anchors.shared_by(v, 'ab'); print(a.tokens, [i.tolist() for i in a.ids])"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert "b' '" in found[0]


def test_no_common_token():
    from tokenizers import Tokenizer, models

    members = [Vocabulary.from_tokenizer(Tokenizer(models.BPE({c: 0}, []))) for c in "ab"]
    with pytest.raises(NoCommonTokensError, match=r"share no token \(x has 1 tokens, y has 1 tokens\)"):
        Anchors.shared_by(members, ["x", "y"])


def test_tokens_that_are_not_shared_go_by_their_beginning(vocabularies):
    a, b = vocabularies["byte_level"], vocabularies["sentencepiece_bpe"]
    anchors = Anchors.shared_by([a, b], ["a", "b"])
    columns = anchors.fixed_columns(a, a.size + 3, by_prefix=True).tolist()
    for token_id, column in enumerate(columns):
        value = a.token_bytes(token_id)
        if token_id in a.stop_ids:
            assert column == len(anchors)
        elif value is None:
            assert column == len(anchors) + 1
        elif value in anchors.tokens:
            assert column == -1
        else:
            starts = [t for t in anchors.tokens if value.startswith(t)]
            assert column == (anchors.tokens.index(max(starts, key=len)) if starts else -1)
    plain = anchors.fixed_columns(a, a.size, by_prefix=False).tolist()
    assert all((c == -1) == (a.token_bytes(i) is not None) for i, c in enumerate(plain))
