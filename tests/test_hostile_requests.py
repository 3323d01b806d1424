"""What callers send raises errors that say what was wrong, and does not stop other callers."""

import asyncio
import copy
import random
import sys
import threading
import tracemalloc
import unicodedata
from typing import NamedTuple

import pytest
import tiny
from prompt_parts import reader_of, with_template
from scheduler_parts import eventually

from deepen_core.config import SamplingParams
from deepen_core.config.base import shown
from deepen_core.config.constraints import MAX_CHARACTERS
from deepen_core.config.sampling import MAX_STOPS, resolve_sampling
from deepen_core.engine.preparation import Preparation, is_short
from deepen_core.errors import ContextWindowError, PromptError, SamplingError
from deepen_core.sampling.stop_strings import StopMatcher
from deepen_core.tokenization.token_bound import _COMPOSED, characters_a_token


def nested(levels):
    value = "x"
    for _ in range(levels):
        value = [value]
    return [{"role": "user", "content": value}]


def test_half_characters_and_deep_messages_are_prompt_errors(pair):
    for read in (pair.tokenize, pair.token_ends):
        with pytest.raises(PromptError, match="lone surrogate"):
            read("a\ud800")
    for levels in (200, 3000):
        with pytest.raises(PromptError, match="more than 100 levels deep"):
            pair.count_tokens(nested(levels))


def test_one_may_wait_for_any_time_and_copy_a_handle(pair):
    handle = pair.submit("The", max_new_tokens=3, ignore_eos=True)
    for copied in (copy.copy(handle), copy.deepcopy(handle)):
        assert copied is handle
    del copied
    assert handle.result(timeout=1e12).finish_reason == "length"


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(pair, monkeypatch):
    def tokenised(*_):
        raise AssertionError("it takes seconds")

    text = "word " * 400_000
    monkeypatch.setattr("deepen_core.tokenization.fast_tokenizer._ids", tokenised)
    with pytest.raises(ContextWindowError, match="2,000,000 characters, which are at least"):
        pair.submit(text)
    with pytest.raises(ContextWindowError, match="2,000,000 characters, which are at least"):
        asyncio.run(pair.agenerate(text))


LAST_ONLY = "{% set m = messages[-1] %}<|user|>{{ m['content'] }}<|end|>"


def test_a_message_that_cannot_fit_is_refused_before_it_is_rendered(monkeypatch):
    def escaped(*_):
        raise AssertionError("it takes long")

    reader = reader_of(with_template(tiny.byte_level()))
    monkeypatch.setattr("deepen_core.chat.escaping._Splitter.split", escaped)
    long = [{"role": "user", "content": [" word" * 1000, {"type": "text", "text": "\n" * 1000}]}]
    with pytest.raises(ContextWindowError, match=r"has 4,999 characters, which are at least [\d,]+ tokens"):
        reader.read_messages(long, window=64)


def test_a_long_message_is_accepted_where_the_template_leaves_it_out():
    reader = reader_of(with_template(tiny.byte_level(), LAST_ONLY))
    said = {"role": "assistant", "content": "Yes."}
    chat = [{"role": "user", "content": "word " * 10_000}, said, {"role": "user", "content": "Hi"}]
    assert reader.read_messages(chat, window=64).ids == reader.read_messages(chat[2:]).ids


def test_long_thoughts_are_accepted_where_the_template_takes_them_out():
    template = tiny.CHAT_TEMPLATE.replace("m['content']", "m['content'].split('</think>')[-1]")
    assert template != tiny.CHAT_TEMPLATE
    reader = reader_of(with_template(tiny.byte_level(), template))
    asked, more = {"role": "user", "content": "Where?"}, {"role": "user", "content": "And then?"}
    thought, said = (
        [asked, {"role": "assistant", "content": content}, more]
        for content in ("<think>" + "word " * 10_000 + "</think>By the sea.", "By the sea.")
    )
    assert reader.read_messages(thought, window=128).ids == reader.read_messages(said).ids


def test_no_text_has_fewer_tokens_than_its_length_says(pair):
    draw = random.Random(3)
    alphabet = [*"abc \n\t<|>{}é", "e\u0301", "\u1112\u1161\u11ab", "漢", "🙂", "   " * 9, "\u1f82"]
    bounded = 0
    for member in pair._opened().members:
        backend = member.tokenizer.backend
        most = characters_a_token(backend)
        bounded += most is not None
        texts = [*backend.pieces, *("".join(draw.choices(alphabet, k=60)) for _ in range(300))] if most else []
        for text in texts:
            assert len(text) <= most * len(backend.encode(text)), text
    assert bounded


def test_composition_joins_at_most_four_characters():
    characters = (chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    assert max(len(unicodedata.normalize("NFD", one)) for one in characters) == _COMPOSED


def test_no_short_request_waits_for_a_long_one():
    pool, go = Preparation(), threading.Event()
    long = [pool.run(go.wait, short=False) for _ in range(20)]
    assert pool.run(lambda: "here", short=True).result(timeout=10) == "here"
    go.set()
    assert all(one.result(timeout=10) for one in long)


def test_what_is_short():
    plain = SamplingParams()
    assert is_short("Hi", plain)
    assert is_short([{"role": "user", "content": ["a", {"type": "text", "text": "b"}]}], plain)
    assert not is_short("a" * 30_000, plain)
    assert not is_short([{"role": "user", "content": [{"type": "text", "text": "b" * 30_000}]}], plain)
    assert not is_short("Hi", SamplingParams(choices=["a", "b"]))
    assert is_short("Hi", SamplingParams(stop=["a", "b"]))
    assert not is_short("Hi", SamplingParams(stop=[f"stop {n}" for n in range(5000)]))


def test_threads_take_short_turns_while_something_long_is_prepared():
    usual, pool, go = sys.getswitchinterval(), Preparation(), threading.Event()

    def wait():
        go.wait(60)
        return sys.getswitchinterval()

    tasks = [pool.run(wait, short=False) for _ in range(6)]
    go.set()
    assert all(task.result(timeout=10) < usual for task in tasks)
    pool.close(10)
    eventually(lambda: sys.getswitchinterval() == usual)


def too_many_stops():
    yield from (f"stop {n}" for n in range(MAX_STOPS + 1))
    raise AssertionError("read beyond the limit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": too_many_stops()}, f"more than {MAX_STOPS:,} stop strings"),
        ({"choices": ["ab"] * MAX_CHARACTERS}, f"2,000,000 characters, and at most {MAX_CHARACTERS:,}"),
        ({"regex": "a" * (MAX_CHARACTERS + 1)}, f"1,000,001 characters, and at most {MAX_CHARACTERS:,}"),
        ({"grammar": "a" * (MAX_CHARACTERS + 1)}, f"1,000,001 characters, and at most {MAX_CHARACTERS:,}"),
        ({"json_schema": {"const": "a" * MAX_CHARACTERS}}, f"1,000,013 characters, and at most {MAX_CHARACTERS:,}"),
    ],
    ids=["stop", "choices", "regex", "grammar", "json_schema"],
)
def test_what_is_too_large_is_refused_before_it_is_read_further(monkeypatch, options, message):
    monkeypatch.setattr("deepen_core.config.constraints.json.loads", lambda _: pytest.fail("it was read"))
    with pytest.raises(SamplingError, match=message):
        resolve_sampling(None, options)


def test_as_many_stop_strings_as_may_be_are_taken():
    assert len(resolve_sampling(None, {"stop": [f"stop {n}" for n in range(MAX_STOPS)]}).stop) == MAX_STOPS


@pytest.mark.parametrize("kind", [list, tuple, lambda items: dict.fromkeys(items, 0)])
def test_errors_quote_the_beginning_of_a_large_value_and_read_no_more(kind):
    said = []

    class Told:
        def __init__(self, number):
            self.number = number

        def __repr__(self):
            said.append(self.number)
            return f"<{self.number}>"

    few = kind([Told(n) for n in range(150)])
    whole = repr(few)
    assert len(whole) > 200
    assert shown(few) == f"{whole[:200]}..."
    said.clear()
    assert shown(kind([Told(n) for n in range(5000)])).startswith(whole[:150])
    assert len(said) <= 200


def test_errors_quote_a_small_value_as_it_shows_itself():
    class Named(NamedTuple):
        a: int

    assert shown(Named(1)) == "Named(a=1)"


def test_a_schema_deeper_than_recursion_is_an_error_of_ours(pair):
    deep = {"type": "string"}
    for _ in range(20_000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(SamplingError, match="'json_schema' is a dict too deep to be shown"):
        pair.generate("The", json_schema=deep)
    while "items" in deep:  # one by one: Python frees them by recursion
        deep = deep.pop("items")


def test_stop_strings_take_no_memory_beyond_their_own():
    tracemalloc.start()
    matcher = StopMatcher(["a" * 100_000, "a" * 99_999 + "b"])
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 1_000_000
    assert matcher.feed("aab") == "aab"
    assert matcher.feed("aa") == ""
    assert matcher.finish() == "aa"


def first_stop(text, stops):
    """As a text is cut, by its definition."""
    found = [(text.find(stop), -len(stop), stop) for stop in stops if stop in text]
    return (text[: min(found)[0]], min(found)[2]) if found else (text, None)


def test_many_stop_strings_cut_as_a_search_for_each_would():
    draw = random.Random(5)
    for _ in range(500):
        stops = ["".join(draw.choices("ab", k=draw.randint(1, 5))) for _ in range(draw.randint(1, 6))]
        pieces = ["".join(draw.choices("abc", k=draw.randint(1, 3))) for _ in range(6)]
        matcher, said, seen = StopMatcher(stops), "", ""
        for piece in pieces:
            seen += piece
            said += matcher.feed(piece)
            if matcher.matched:
                break
        said += matcher.finish()
        assert (said, matcher.matched) == first_stop(seen, stops)


def test_a_step_looks_at_no_stop_string_by_itself():
    class Watched(str):
        __slots__ = ()

        def startswith(self, *_):
            raise AssertionError("one of 100,000")

    matcher = StopMatcher([Watched(f"stop {i}") for i in range(1000)])
    assert matcher.feed("a stop ") == "a "
    assert matcher.feed("77") == ""
    assert matcher.matched == "stop 77"
