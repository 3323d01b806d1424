"""Traces as JSON, HTML and SVG: they come back as they were, and nothing that a model says gets out of its place."""

import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from deepen_core.errors import TraceError
from deepen_core.tracing import Candidate, Trace, TraceStep, Voice
from deepen_core.tracing.drawing import shown_token, visible

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' style='x",
    "</title></style></svg><script>",
    "\x1b[31mred\x07\x9b2J",
    "a\u202eb\u2066c\u200bd\ufeff",
    "\udc80half",
    "\ufffe\uffff\x00",
    "]]><!--",
    "&lt;&amp;",
]
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=12))
SHARES = st.floats(0, 1)
TOPS = st.lists(st.builds(Candidate, TEXTS, SHARES), max_size=3).map(tuple)


def steps(names):
    voices = st.tuples(
        *(
            st.builds(
                Voice,
                st.just(name),
                st.sampled_from(["spoke", "skipped", "waiting", "dropped"]),
                SHARES,
                st.none() | SHARES,
                TOPS,
                TOPS,
                TEXTS,
            )
            for name in names
        )
    )
    made = st.builds(
        TraceStep,
        st.integers(0, 99),
        st.binary(max_size=4),
        TEXTS,
        st.booleans(),
        SHARES,
        SHARES,
        SHARES,
        st.sampled_from(["alone", "agreement", "main", "other"]),
        st.sampled_from([*names, None]),
        TOPS,
        voices,
    )
    return st.lists(made, max_size=4)


@st.composite
def traces(draw):
    names = draw(st.lists(TEXTS.filter(bool), min_size=1, max_size=3, unique=True))
    return Trace(names[0], names, draw(steps(names)))


class Strict(HTMLParser):
    """Refuses every element and attribute that the page has no need of."""

    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "div", "span", "p", "i", "b", "br", "code"} | {
        "table",
        "tr",
        "td",
        "th",
    }
    attributes = {"lang", "charset", "name", "content", "http-equiv", "class", "tabindex", "style"}

    def __init__(self):
        super().__init__()
        self.text = ""

    def handle_starttag(self, tag, attrs):
        assert tag in self.allowed
        for name, value in attrs:
            assert name in self.attributes
            if name == "style":
                assert value.startswith("--c:#")
                assert len(value) == len("--c:#123456")

    def handle_data(self, data):
        self.text += data


@settings(max_examples=examples(40), deadline=None)
@given(trace=traces(), title=TEXTS)
def test_nothing_hostile_gets_out(trace, title):
    page, picture = trace.to_html(title), trace.to_svg(title)
    Strict().feed(page)
    ET.fromstring(picture)  # noqa: S314 (made here)
    assert "alert(1)" not in page or "<script" not in page
    for drawn in (page, picture):
        assert drawn == "".join(visible(line) for line in drawn)
        drawn.encode()


@settings(max_examples=examples(40), deadline=None)
@given(text=TEXTS)
def test_shown_tokens_are_one_visible_line(text):
    assert shown_token(text).isprintable() or not set(shown_token(text)) & set("\n\t\r\x1b\x9b\u202e\u200b")
    assert "\n" not in shown_token(text)
    assert "\x1b" not in visible(text)


def one(text, data, **changes):
    values = {"decision": "main", "by": "a", "top": (Candidate(text, 0.5),), "ends": False}
    voice = Voice("a", "spoke", 1.0, 0.5, (Candidate(text, 0.5),), (Candidate(text, 0.5),), "x")
    values = {**values, "probability": 0.5, "main_probability": 0.25, "moved": 0.125, "voices": (voice,), **changes}
    return TraceStep(token_id=3, token=data, text=text, **values)


def test_lines_come_back():
    trace = Trace("a", ["a"], [one("é", "é".encode()), one("\\xe4", b"\xe4"), one("</s>", b"", ends=True)])
    lines = trace.to_jsonl().splitlines()
    assert json.loads(lines[0]) == {"main": "a", "members": ["a"]}
    assert [json.loads(line)["text"] for line in lines[1:]] == ["é", "\\xe4", "</s>"]
    back = Trace.from_jsonl(trace.to_jsonl())
    assert back.steps == trace.steps
    assert back == trace == Trace.from_dict(json.loads(json.dumps(trace.to_dict())))


@pytest.mark.parametrize("text", ["", "[]", "{}", "5", "nothing", '{"main":"a","members":["a"]}\n{"text":1}', "[1]\n2"])
def test_what_is_not_a_trace(text):
    with pytest.raises(TraceError):
        Trace.from_jsonl(text)


def test_members_must_be_the_same_in_all_steps():
    told = Trace("a", ["a"], [one("x", b"x")]).to_dict()
    for change in ({"main": "b"}, {"members": ["b"]}, {"members": ["a", "b"]}):
        with pytest.raises(TraceError):
            Trace.from_dict({**told, **change})


def test_characters_of_several_tokens():
    trace = Trace("a", ["a"], [one("\\xe4\\xbd", b"\xe4\xbd"), one("\\xa0", b"\xa0"), one("!", b"!")])
    assert trace.pieces() == ["", "你", "!"]
    assert "你" in trace.to_html()


def test_an_empty_trace_is_drawn():
    empty = Trace("a", ["a", "b"], [])
    assert "0 of 0 steps" in empty.to_html()
    ET.fromstring(empty.to_svg("x"))  # noqa: S314
    assert empty.summary()[1].weight == 0.0
