"""Blanks before a word: members that leave the last one to the word, together with members that do not."""

from functools import cache

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from table_member import TableMember
from test_alignment import KINDS, LLAMA_3

from deepen_core import Ensemble
from deepen_core.fusion.anchors.blank_columns import BlankColumns
from deepen_core.fusion.anchors.main_tokens import MainTokens
from deepen_core.fusion.anchors.segmentation import WORD, Segmentation
from deepen_core.fusion.anchors.shared_tokens import Anchors
from deepen_core.fusion.bytes.byte_order import ByteOrder
from deepen_core.fusion.bytes.overhang import OverhangFinder
from deepen_core.members.opening import ids_after_blank
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.tokenization.fast_tokenizer import Backend
from deepen_core.tokenization.retokenizer import AlignedText, Boundaries
from deepen_core.tokenization.vocabulary import Vocabulary

PROMPT = "def f"
CODE = f"{PROMPT}(x):\n    for y in x:\n        if y:\n            return y\n\n    z = 1\n    return z\n"
LINES = (CODE, "return x if y, return a", *(f"{' ' * n}return a\n{' ' * n}x" for n in range(1, 17)))


@cache
def leaves_blanks():
    """Cuts four blanks and a word into three blanks, and a blank with the word."""
    return tiny.cut_by_regex(LLAMA_3, LINES * 3, 600)


@cache
def keeps_blanks():
    """Cuts blanks alike whatever follows, as Gemma does."""
    return tiny.cut_by_regex(r" {2,}|\n| ?\p{L}+| ?[^\s\p{L}]+|\s+", LINES * 3, 600)


@cache
def cuts_of(make):
    tokenizer = make()
    return Segmentation(Vocabulary.from_tokenizer(tokenizer), Backend(tokenizer))


@cache
def parts_of(kind):
    tokenizer = leaves_blanks() if kind == "leaves_blanks" else KINDS[kind]()
    backend = Backend(tokenizer)
    return backend, Boundaries(backend, Vocabulary.from_tokenizer(tokenizer).kind)


@pytest.mark.parametrize(
    ("make", "before_word", "at_end"),
    [(leaves_blanks, [b"   ", b" return"], b"    "), (keeps_blanks, [b"    ", b"return"], b"    ")],
)
def test_the_tokenizers_of_these_tests_cut_as_they_say(make, before_word, at_end):
    cut = cuts_of(make)
    assert [cut.token_bytes(i) for i in cut._backend.encode("x:\n    return")][-2:] == before_word
    assert cut.token_bytes(cut._backend.encode("x:\n    ")[-1]) == at_end


@pytest.mark.parametrize("kind", ["leaves_blanks", *KINDS])
@given(pieces=st.lists(st.text(st.sampled_from("ab é1.\n    "), max_size=12), max_size=8), before=st.booleans())
def test_a_held_blank_is_that_of_the_word(kind, pieces, before):
    """With it held, the ids are those before the word; the next text is cut as ever."""
    backend, boundaries = parts_of(kind)
    text, told = AlignedText(backend, boundaries), ""
    for piece in pieces:
        ids = [*text.ids]
        place, tail = text.append(piece, before_word=before)
        told += piece
        assert text.ids == backend.encode(told)
        found = [*ids[:place], *tail] if piece else None
        if text.holds_blank:
            assert before
            assert told.endswith("  ") or told[-2:-1].isspace()
            rest = backend.encode(f"{told}a")[:-1]
            assert found in (None, rest)
            assert backend.encode(told[:-1]) == rest
        else:
            assert found in (None, text.ids)


def test_what_tokens_count_for_behind_a_blank():
    vocabulary = MemberTokenizer(leaves_blanks(), "x").vocabulary
    counted = ids_after_blank(vocabulary).tolist()
    known = 0
    for token_id, other in enumerate(counted):
        value = vocabulary.token_bytes(token_id) or b""
        if not value.startswith(b" "):
            assert other == -1
        elif value == b" ":
            assert other in vocabulary.special_ids - vocabulary.stop_ids
        elif vocabulary.id_of(value[1:]) is not None:
            assert other == vocabulary.id_of(value[1:])
            known += 1
        else:
            assert value[1:].startswith(vocabulary.token_bytes(other))
    assert known > 20


@given(seed=st.integers(0, 10**6))
def test_blanks_are_spread_as_main_says(seed):
    """Over every column that a member's token of blanks may stand for, token by token in float64."""
    member, main = cuts_of(leaves_blanks), cuts_of(keeps_blanks)
    anchors = Anchors.shared_by([member.vocabulary, main.vocabulary], ["member", "main"])
    columns = anchors.fixed_columns(main.vocabulary, main.vocabulary.size, by_prefix=True).long()
    columns[anchors.ids[1]] = torch.arange(len(anchors))
    blanks = BlankColumns(member, MainTokens(main, main.vocabulary.size), anchors, columns)
    random = torch.Generator().manual_seed(seed)
    mass, own = torch.softmax(3 * torch.randn(2, 3, len(anchors) + 2, generator=random), -1)
    expected, ids = mass.double().clone(), member.vocabulary.tokens
    for column, token in enumerate(anchors.tokens):
        others = set()
        for behind in (b"", b" "):
            first = main.after((), token + behind + WORD)
            stands = token[-1:].isspace() and first in anchors.tokens and len(first) <= len(token + behind)
            if stands and first != token and member.after((ids[token],), behind + WORD) is not None:
                others.add(anchors.tokens.index(first))
        total = own[:, column].double() + sum(own[:, other].double() for other in others)
        expected[:, column] += mass[:, column].double() * (own[:, column] / total - 1)
        for other in others:
            expected[:, other] += mass[:, column].double() * own[:, other] / total
    assert not torch.allclose(expected, mass.double(), atol=1e-6)
    blanks.spread(mass, own)
    torch.testing.assert_close(mass.double(), expected, atol=1e-6, rtol=1e-5)
    assert not BlankColumns(main, MainTokens(main, main.vocabulary.size), anchors, columns)


@pytest.mark.filterwarnings("ignore:Tokens differ much in length")
@pytest.mark.parametrize("fusion", ["deepen", "product", "bytes"])
@pytest.mark.parametrize("leaving", [0, 1], ids=["main leaves them", "main keeps them"])
def test_members_that_know_a_program_agree_on_it(fusion, leaving):
    """Each says every token of it with certainty, however it cuts the blanks; so do they together."""
    makes = (leaves_blanks, keeps_blanks) if leaving == 0 else (keeps_blanks, leaves_blanks)
    members = [TableMember(make.__name__, make(), [CODE]) for make in makes]
    for member in members:
        member.longest = 12
    with Ensemble.from_members(members, fusion=fusion, weights=[0.5, 0.5], progress=False) as ensemble:
        answer = ensemble.generate(PROMPT, max_new_tokens=100, logprobs=0)
        assert PROMPT + answer.text == CODE
        assert min(one.logprob for one in answer.logprobs) > -0.2  # up to -2.3 if blanks are taken as they are
        scored = ensemble.score(PROMPT, answer.text)
        same = scored.token_ids == answer.token_ids
        assert not same or scored.logprobs == pytest.approx([one.logprob for one in answer.logprobs], abs=1e-4)


def test_what_a_member_would_have_said_of_a_held_blank():
    """Longer tokens begin with the blank too, and the token of all the blanks was not run."""
    cut = cuts_of(leaves_blanks)
    vocabulary = cut.vocabulary
    finder = OverhangFinder(ByteOrder(vocabulary, vocabulary.size), cut, torch.device("cpu"))
    shares = {b"   ": 0.5, b"    ": 0.2, b"       ": 0.3}
    logits = torch.full((vocabulary.size,), 1e-9)
    for token, share in shares.items():
        logits[vocabulary.tokens[token]] = share
    found = finder.find([(vocabulary.tokens[b"   "], logits.log())], held=True)
    assert found.finished == pytest.approx(0.5, abs=1e-4)
    assert found.unknown == pytest.approx(0.2, abs=1e-4)
    assert [(rest.value, rest.there) for rest in found.rests if rest.share > 0.01] == [(b"   ", 4)]
