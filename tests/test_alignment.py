"""Canonical re-tokenisation: appending equals encoding the whole text, always."""

import itertools
import random
import re

import pytest
import tiny
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from deepen_core.sampling.detokenizer import Utf8Stream
from deepen_core.tokenization.fast_tokenizer import Backend
from deepen_core.tokenization.retokenizer import AlignedText, Boundaries
from deepen_core.tokenization.vocabulary import Vocabulary

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
    "plain_bpe": tiny.plain_bpe,
    "metaspace_words": tiny.metaspace_words,
    "gemma_like": tiny.gemma_like,
}
# Pre-tokenizers in use, and what tests of unspaced scripts are made of.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"\p{N}{1,3}|[一-龥぀-ゟ゠-ヿ]+|[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UNSPACED = {
    "zh": "今天天气很好，我们去公园散步。他说：“你好！”然后（慢慢地）走了；为什么？"
    "因为累、因为热……第3章ABC公司的iPhone很贵。",
    "ja": "今日は天気がいいので、公園へ散歩に行きました。「コーヒーを飲みませんか？」"
    "と彼女は言った。佐々木さんの時々ＡＢＣ１２３ｶﾞ！",
    "th": "วันนี้อากาศดีมาก เราไปเดินเล่นที่สวนสาธารณะกันเถอะน้ำใจดีๆก็มีอยู่ทั่วไปในเมืองไทย",
    "ko": "오늘은날씨가좋아서공원에갔다。한국어。",
}
MIXED = st.lists(
    st.sampled_from([c for text in UNSPACED.values() for c in text])
    | st.sampled_from(
        [
            "'s",
            "'",
            "A",
            "aB",
            "国Ab",
            "กเ说",
            "iPhone",
            "12",
            " ",
            "\n",
            "!",
            "。」",
            "，，",
            "\u3099",
            "ﾞ",
            "가",
            "\u0e31",
        ]
    )
    | st.characters(categories=["Lo", "Lm", "Mn", "Po", "Lu"]),
    min_size=60,
    max_size=200,
)
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
        """`transformers` on the whole text, control tokens read as text.

        Its Unigram models read them as such all the same, and bytes by their names; ours do not, which
        `tests/test_prompt.py` shows.
        """
        if self.backend.model_type == "Unigram" and re.search(r"<(unk|/?s|0x[0-9A-F]{2})>", text):
            return self.backend.encode(text)
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
@settings(max_examples=examples(150), deadline=None)
@given(pair=st.sampled_from(list(itertools.permutations(REAL, 2))), text=WORDS)
def test_real_tokenizers_on_random_text(real, pair, text):
    ids, heard, _ = relay(real[pair[0]], real[pair[1]], text)
    assert ids == real[pair[1]].reference(heard)


@settings(max_examples=examples(300), deadline=None)
@given(pair=st.sampled_from(list(itertools.permutations(KINDS, 2))), text=WORDS)
def test_every_kind_of_tokenizer_on_random_text(sides, pair, text):
    ids, heard, _ = relay(sides[pair[0]], sides[pair[1]], text)
    assert ids == sides[pair[1]].reference(heard)


@settings(max_examples=examples(200), deadline=None)
@given(
    name=st.sampled_from(list(KINDS)), pieces=st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=40)
)
def test_ids_are_canonical_after_every_piece(sides, name, pieces):
    side = sides[name]
    aligned, text, settled = AlignedText(side.backend, side.boundaries), "", []
    for piece in pieces:
        text += piece
        aligned.append(piece)
        assert aligned.ids == side.reference(text)
        assert aligned.ids[: len(settled)] == settled
        assert aligned.settled >= len(settled)
        settled = aligned.ids[: aligned.settled]


def assert_canonical(side, pieces):
    aligned, text = AlignedText(side.backend, side.boundaries), ""
    for piece in pieces:
        text += piece
        aligned.append(piece)
        assert aligned.ids == side.reference(text)


@pytest.fixture(scope="module")
def by_regex():
    lines = [*tiny.CORPUS, *UNSPACED.values(), "国Ab", "人AB国Ab", "กเ说กข说"] * 9
    patterns = {"llama-3": LLAMA_3, "gpt-4o": GPT_4O, "deepseek": DEEPSEEK}
    sides = {name: Side(tiny.cut_by_regex(pattern, lines)) for name, pattern in patterns.items()}
    for form in ("NFC", "NFKC"):
        tokenizer = tiny.cut_by_regex(LLAMA_3, lines)
        tokenizer.backend_tokenizer.normalizer = getattr(normalizers, form)()
        sides[form] = Side(tokenizer)
    return sides


@settings(max_examples=examples(150), deadline=None)
@given(name=st.sampled_from(["llama-3", "gpt-4o", "deepseek", "NFC", "NFKC"]), pieces=MIXED)
def test_text_without_blanks_behind_patterns_in_use(by_regex, name, pieces):
    assert_canonical(by_regex[name], pieces)


@pytest.mark.slow
@settings(max_examples=examples(80), deadline=None)
@given(name=st.sampled_from(REAL), pieces=MIXED)
def test_text_without_blanks_and_real_tokenizers(real, name, pieces):
    assert_canonical(real[name], pieces)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("language", list(UNSPACED))
def test_long_text_without_blanks_is_cut_soundly(real, name, language):
    """Piece by piece the same ids, and the work per piece stays small."""
    rng, side = random.Random(name + language), real[name]
    aligned, text, source, longest = AlignedText(side.backend, side.boundaries), "", UNSPACED[language], 0
    while len(text) < 2500:
        start = rng.randrange(len(source))
        piece = source[start : start + rng.randint(1, 12)]
        text += piece
        aligned.append(piece)
        longest = max(longest, len(aligned._open))
        if rng.random() < 0.2:
            assert aligned.ids == side.reference(text)
    assert aligned.ids == side.reference(text)
    assert longest < 800  # Thai for tekken: encoding begins again at blanks only


@pytest.mark.parametrize("name", ["llama-3", "gpt-4o", "deepseek", "NFC"])
def test_a_short_tail_of_text_without_blanks(by_regex, name):
    side = by_regex[name]
    aligned = AlignedText(side.backend, side.boundaries, UNSPACED["zh"] * 20)
    assert len(aligned._open) < 120


@pytest.mark.parametrize("name", ["gemma_like", "metaspace_words"])
def test_a_short_tail_of_words_without_blanks(sides, name):
    """What is cut at blanks alone, or not at all, is still no merge across characters that no piece holds together."""
    side = sides[name]
    aligned = AlignedText(side.backend, side.boundaries, "世界你好，" * 60)
    assert len(aligned._open) < 120


def test_encoding_begins_again_only_where_it_comes_to_the_same(by_regex):
    """The pattern takes "a国国国" and "Ab" as two words, but "国国国Ab" as one, and "国A" is a token."""
    side = by_regex["gpt-4o"]
    assert len(side.reference("国Ab")) < len(side.reference("国") + side.reference("Ab"))
    assert_canonical(side, ["a", *"国" * 130, "A", "b"])


def bpe_of(pieces, merges, unknown=None, added=()):
    """A BPE tokenizer with nothing around it."""
    model = models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token=unknown)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), clean_up_tokenization_spaces=False)
    tokenizer.add_tokens([AddedToken(a, normalized=False) for a in added])
    return Side(tokenizer)


def test_characters_that_vanish_let_their_neighbours_meet():
    """BPE without an unknown token drops what it does not know."""
    assert_canonical(bpe_of(["x", "a", "b", "ab"], [("a", "b")]), ["x" * 60 + "aก", "b"])


def test_a_piece_that_grows_from_its_end():
    side = bpe_of(["<unk>", "x", "a", "b", "c", "bc", "abc"], [("b", "c"), ("a", "bc")], "<unk>")
    assert_canonical(side, ["x" * 60 + "ab", "c"])


def test_runs_of_blanks_that_are_added_tokens_too():
    """Gemma has them; the normalizer makes them of blanks that the added tokens do not match."""
    side = bpe_of(["<unk>", "x", "▁", "▁▁", "▁▁▁▁"], [("▁", "▁"), ("▁▁", "▁▁")], "<unk>", added=["▁▁", "▁▁▁▁"])
    side.tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    side = Side(side.tokenizer)
    assert side.boundaries.last("x   ", 1) is None
    assert_canonical(side, ["x" * 60 + "   ", " ", "x"])


def test_blanks_in_pieces_as_they_are():
    side = bpe_of(["<unk>", "x", " ", "a", "b", " b", "a b"], [(" ", "b"), ("a", " b")], "<unk>")
    assert_canonical(side, ["x" * 60 + "a ", "b"])


def test_no_cut_where_a_normalizer_may_join(by_regex):
    assert by_regex["NFKC"].boundaries.last("ｶﾞ", 0) is None
    assert by_regex["llama-3"].boundaries.last("ﾃﾞ", 0) == 1


def test_no_place_is_looked_at_twice_where_none_is_safe(sides, monkeypatch):
    side = sides["byte_level"]
    looked = []
    safe = Boundaries._safe
    monkeypatch.setattr(
        Boundaries, "_safe", lambda self, text, place, firm: looked.append(place) or safe(self, text, place, firm)
    )
    aligned = AlignedText(side.backend, side.boundaries, "x" * 500)
    for _ in range(50):
        aligned.append("x")
    assert aligned.ids == side.reference("x" * 550)
    assert len(looked) == len(set(looked)) == 549


@pytest.mark.parametrize("make", [tiny.sentencepiece_bpe, tiny.byte_level, tiny.plain_bpe, tiny.metaspace_first])
@pytest.mark.parametrize("flag", ["lstrip", "rstrip"])
def test_added_tokens_that_swallow_blanks(make, flag):
    tokenizer = make()
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False, **{flag: True})])
    side = Side(tokenizer)
    rng = random.Random(flag)
    for _ in range(60):
        assert_canonical(
            side, [rng.choice(["  ", " ", "\n", "dog ", "<to", "ol>", "<tool>", "x" * 20]) for _ in range(40)]
        )


def test_added_tokens_found_in_lower_case():
    for tokenizer in (tiny.wordpiece(), tiny.byte_level()):
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.add_tokens(["FOO BAR"])
        words = "the quick brown fox jumps over the lazy dog by the sea and FOo"
        side = Side(tokenizer)
        assert side.boundaries.last(words + " ", len(words) - 1) is None
        assert_canonical(side, [words + " ", "b", "ar"])


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
