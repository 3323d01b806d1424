"""Canonical re-tokenisation: appending equals encoding the whole text, always."""

import itertools
import random

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from deepen_core.alignment import AlignedText, Boundaries
from deepen_core.backend import Backend
from deepen_core.text import Utf8Stream
from deepen_core.vocabulary import Vocabulary

REAL = ["gpt-2", "falcon", "mistral-v1", "mistral-tekken"]
KINDS = {
    "byte_level": tiny.byte_level,
    "nfc_byte_level": tiny.nfc_byte_level,
    "sentencepiece_bpe": tiny.sentencepiece_bpe,
    "across_words": lambda: tiny.sentencepiece_bpe(across_words=True),
    "metaspace_first": tiny.metaspace_first,
    "unigram": tiny.unigram,
    "unigram_uncut": lambda: tiny.unigram(split=False),
    "wordpiece": tiny.wordpiece,
}
FRAGMENTS = [
    "def f(x):\n    return x\n",
    "\t\tif a:\n\t\t\tb\r\n",
    "你好，世界。",
    "こんにちは ",
    "😀👩\u200d👩\u200d👧 ",
    "é ạ̀ ",
    "  ",
    "   ",
    "\n\n",
    " \n  \n",
    "\n\t",
    "don't we'll I'm ",
    "1234567 ",
    "3.14",
    "ß ñ é ",
    "\xa0",
    "\u200b",
    "\ufeff",
    "<s>",
    "<0x41>",
    "</s>",
    "<|turn|>",
    "▁",
    "Ġ",
    "x" * 30,
    "foo_bar(baz)[0];",
    "//",
    "...",
    "?!",
    '"quoted"',
    "http://a.b/c?d=e&f",
    "ÀÉ",
    "кот и пёс ",
    "العربية ",
    "हिन्दी ",
    "กขค",
    "𒀀",
    "\x00",
    "\x07",
    "-----",
    "Hello world. ",
    "The quick brown fox ",
    "'",
    "'s",
    "’s",
    "<tool>",
    " <tool> x",
]
WORDS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=6), max_size=25).map("".join)


class Side:
    """A tokenizer with everything that alignment needs."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.backend = Backend(tokenizer)
        self.vocabulary = Vocabulary.from_tokenizer(tokenizer, backend=self.backend)
        self.boundaries = Boundaries(self.backend, self.vocabulary.kind)

    def reference(self, text):
        """`transformers` on the whole text, control tokens read as text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def relay(main, other, text):
    """Main speaks a text; returns the other's ids, the text that it heard, and the tokens it had to run."""
    stream, aligned = Utf8Stream(), AlignedText(other.backend, other.boundaries)
    heard, held, run = "", [], 0
    at_start = main.vocabulary.starts_with_space
    for token_id in main.backend.encode(text):
        value = main.vocabulary.token_bytes(token_id) or b""
        if at_start and value:
            value, at_start = value.removeprefix(b" "), False
        piece = stream.feed(value)
        heard += piece
        place, tail = aligned.append(piece)
        now = held[:place] + tail
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(held, now, strict=False)))
        run += len(now) - same
        held = now
        assert held == aligned.ids
    return held, heard, run


@pytest.fixture(scope="module")
def sides():
    return {name: Side(make()) for name, make in KINDS.items()}


@pytest.fixture(scope="module")
def real(shared):
    from transformers import AutoTokenizer

    return {n: Side(AutoTokenizer.from_pretrained(shared / "tokenizers" / n)) for n in REAL}


def _texts(count, seed=0):
    rng = random.Random(seed)
    return ["".join(rng.choice(FRAGMENTS) for _ in range(rng.randint(1, 60))) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(("main", "other"), list(itertools.permutations(REAL, 2)))
def test_real_tokenizers_on_two_hundred_texts(real, main, other):
    for text in _texts(200):
        ids, heard, _ = relay(real[main], real[other], text)
        assert heard == (text.replace("▁", " ") if main == "mistral-v1" else text)
        assert ids == real[other].reference(heard)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(pair=st.sampled_from(list(itertools.permutations(REAL, 2))), text=WORDS)
def test_real_tokenizers_on_random_text(real, pair, text):
    ids, heard, _ = relay(real[pair[0]], real[pair[1]], text)
    assert ids == real[pair[1]].reference(heard)


@settings(max_examples=300, deadline=None)
@given(pair=st.sampled_from(list(itertools.permutations(KINDS, 2))), text=WORDS)
def test_every_kind_of_tokenizer_on_random_text(sides, pair, text):
    ids, heard, _ = relay(sides[pair[0]], sides[pair[1]], text)
    assert ids == sides[pair[1]].reference(heard)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(list(KINDS)), pieces=st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=40)
)
def test_ids_are_canonical_after_every_piece(sides, name, pieces):
    side = sides[name]
    aligned, text = AlignedText(side.backend, side.boundaries), ""
    for piece in pieces:
        text += piece
        aligned.append(piece)
        assert aligned.ids == side.reference(text)


def test_added_plain_tokens_are_found_across_pieces():
    tokenizer = tiny.byte_level()
    tokenizer.add_tokens(["<tool>", "x y"])
    side = Side(tokenizer)
    aligned = AlignedText(side.backend, side.boundaries)
    text = "The quick brown fox jumps over the lazy dog x y and <tool> again " * 3
    for char in text:
        aligned.append(char)
    assert aligned.ids == side.reference(text)
    assert tokenizer.convert_tokens_to_ids("<tool>") in aligned.ids
    assert tokenizer.convert_tokens_to_ids("x y") in aligned.ids


def test_text_behind_a_control_token_gets_no_dummy_space(sides):
    side = sides["metaspace_first"]
    whole = side.tokenizer("<s>The dog", add_special_tokens=False)["input_ids"]
    inside = AlignedText(side.backend, side.boundaries, inside=True)
    for piece in ("T", "he", " dog"):
        inside.append(piece)
    assert [side.tokenizer.bos_token_id, *inside.ids] == whole


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece_bpe", "unigram", "wordpiece"])
def test_only_a_short_tail_is_encoded_again(sides, name):
    """The work per piece does not grow with the text, or there would be no point to it all."""
    side = sides[name]
    aligned = AlignedText(side.backend, side.boundaries)
    longest = 0
    for word in ("The quick brown fox jumps over the lazy dog. " * 60).split(" "):
        aligned.append(word + " ")
        longest = max(longest, len(aligned._open))
    assert longest < 150


@pytest.mark.slow
def test_work_where_mains_tokens_are_not_shorter(real, shared):
    """At most 1.3 tokens run per token of the member's own text: falcon speaks, gpt-2 listens."""
    stories = (shared / "data" / "tinystories_valid.txt").read_text().split("\n")
    run = own = 0
    for text in [*stories, *_texts(40)]:
        ids, _, tokens = relay(real["falcon"], real["gpt-2"], text)
        run, own = run + tokens, own + len(ids)
    print(f"falcon with gpt-2: {run / own:.3f} tokens run per token of its own text")
    assert run / own <= 1.3
