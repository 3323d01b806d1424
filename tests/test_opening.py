"""How answers begin where a decoder with a text of its own meets members that go on from their prompts."""

import pytest
import tiny
import tiny_seq2seq
import torch
from table_member import TableMember

from deepen_core import Ensemble
from deepen_core.chat.prompt_encoder import MemberPrompt
from deepen_core.members.opening import first_ids, opening_of, respelled
from deepen_core.members.sequence import MemberSequence
from deepen_core.members.tokenizer import MemberTokenizer

SAID = "The dog sleeps; the fox doesn't."
CHAT = [{"role": "user", "content": "Say it."}]


def decoder(kind):
    """A member that says `SAID` whatever it is asked, in a vocabulary of one of the families."""
    tokenizer = {"spaced": tiny.metaspace_words, "bare": tiny_seq2seq.bart_tokenizer}[kind]()
    return TableMember("decoder", tokenizer, [SAID], start=[tokenizer.eos_token_id])


def reader(tokenizer):
    """A member that goes on from a prompt, and answers in a chat."""
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    member = TableMember("reader", tokenizer, [])
    for prompt in PROMPTS.values():
        read = member.tokenizer.reader
        start = read.read_text(prompt) if isinstance(prompt, str) else read.read_messages(prompt)
        sequence = MemberSequence(start, member.tokenizer, is_main=False)
        sequence.append_text(" " * (prompt == PROMPTS["goes on"]) + SAID)
        (stop, *_) = sorted(member.tokenizer.vocabulary.stop_ids)
        member.count([*sequence.ids, stop])
    return member


READERS = {"byte-level": tiny.byte_level, "sentencepiece": tiny.sentencepiece_bpe, "first": tiny.metaspace_first}
PROMPTS = {"goes on": "Say it:", "after a line": "Now write this down\n", "chat": CHAT}


@pytest.mark.parametrize("fusion", ["deepen", "translate"])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("tokenizer", READERS)
@pytest.mark.parametrize("kind", ["spaced", "bare"])
def test_members_that_agree_agree_from_the_first_token_on(kind, tokenizer, prompt, fusion):
    """Whoever is main, and whether or not its answer begins with a blank."""
    for main in (0, 1):
        members = [decoder(kind), reader(READERS[tokenizer]())]
        with Ensemble.from_members(members, main=main, fusion=fusion, progress=False) as ensemble:
            answer = ensemble.generate(PROMPTS[prompt], max_new_tokens=60, logprobs=0)
            [part] = [part for part in answer.member_work if part.name == "decoder"]
            score = ensemble.score(PROMPTS[prompt], answer.text)
        same = score.token_ids == answer.token_ids
        assert answer.text.lstrip(" ") == SAID, (main, answer.text)
        assert answer.text == SAID or (main == 1 and prompt == "goes on")
        assert answer.finish_reason == "stop"
        assert main == 0 or part.text_tokens == len(members[0].tokenizer.encode(SAID))
        assert min(one.logprob for one in answer.logprobs) > -1.0
        assert not same or score.logprobs == pytest.approx([one.logprob for one in answer.logprobs], abs=1e-4)


@pytest.mark.filterwarnings("ignore:Tokens differ much in length")
def test_a_first_word_that_main_says_in_letters():
    """Token healing finds what a decoder has left to say of its first token, whose blank nobody has said."""
    tokenizer = tiny.metaspace_words()
    tokens = MemberTokenizer(tokenizer, "x").vocabulary.tokens
    words = sorted(token for token in tokens if token[2:].isalpha() and token[:1] == b" " and token[:2] in tokens)
    word = next(word.decode().strip() for word in words if word[1:2] not in tokens or len(word) > 3)
    members = [
        TableMember("decoder", tokenizer, [word + " dog"], start=[tokenizer.eos_token_id]),
        reader(tiny.byte_level(260)),
    ]
    with Ensemble.from_members(members, main=1, weights=[0.99, 0.01], progress=False) as ensemble:
        answer = ensemble.generate(CHAT, max_new_tokens=len(word), logprobs=0)
    assert answer.text == word
    assert min(one.logprob for one in answer.logprobs[:2]) > -0.3


def tokenizer_of(kind):
    make = {"t5": tiny_seq2seq.t5_tokenizer, "bart": tiny_seq2seq.bart_tokenizer, "beta": tiny.sentencepiece_bpe}[kind]
    return MemberTokenizer(make(), kind)


@pytest.mark.parametrize("kind", ["t5", "bart", "beta"])
@pytest.mark.parametrize("blank", [False, True])
def test_first_tokens_count_for_tokens_of_the_same_beginning(kind, blank):
    tokenizer = tokenizer_of(kind)
    vocabulary, counted = tokenizer.vocabulary, tokenizer.first_ids(blank=blank)
    assert len(counted) == vocabulary.size
    changed = 0
    for token_id, other in enumerate(counted.tolist()):
        value = vocabulary.token_bytes(token_id) or b""
        if other == token_id:
            continue
        if value == b" ":
            assert not blank
            assert other in vocabulary.special_ids - vocabulary.stop_ids
            continue
        changed += 1
        whole = b" " + value if blank else value[1:]
        spelled = vocabulary.token_bytes(other)
        assert whole.startswith(spelled)
        assert spelled.startswith(b" ") == blank
        assert spelled.strip()
        assert vocabulary.id_of(whole) in (None, other)
    assert changed > 20
    logits = torch.randn(vocabulary.size + 3, generator=torch.Generator().manual_seed(1))
    found = torch.softmax(respelled(logits, counted), -1)
    expected = torch.zeros(vocabulary.size + 3)
    for token_id, share in enumerate(torch.softmax(logits, -1).tolist()):
        expected[counted[token_id] if token_id < vocabulary.size else token_id] += share
    torch.testing.assert_close(found, expected)


def test_members_without_encoders_begin_as_they_always_have():
    tokenizer = tokenizer_of("beta")
    assert (
        opening_of(MemberPrompt([], "x:", inside=False), tokenizer, MemberPrompt([1], "", inside=True), tokenizer)
        is None
    )


def test_blanks_before_an_answer_are_told_once():
    decoder, reader = tokenizer_of("bart"), tokenizer_of("beta")
    source, prompt = MemberPrompt([2], "", inside=False, source=(1, 2)), MemberPrompt([], "Say it:", inside=False)
    told = opening_of(prompt, reader, source, decoder)
    assert [told.told(piece) for piece in ("", "The", " dog", " ")] == ["", " The", " dog", " "]
    told = opening_of(prompt, reader, source, decoder)
    assert [told.told(piece) for piece in ("", " ", "", " The", " dog")] == ["", " ", "", "The", " dog"]
    told = opening_of(source, decoder, prompt, reader)
    assert [told.told(piece) for piece in (" ", "The", " dog")] == ["", "The", " dog"]
    assert told.first_ids is None
    assert first_ids(decoder.vocabulary, blank=True).tolist() == decoder.first_ids(blank=True).tolist()
