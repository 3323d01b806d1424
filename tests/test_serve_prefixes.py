"""Requests with one beginning prefer one replica, and others are spread."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen_integrations.serve.prefixes import preferred, prefix_of


def body(*contents, **changes):
    messages = [{"role": "user", "content": content} for content in contents]
    return json.dumps({"model": "m", "messages": messages, **changes}).encode()


def test_a_conversation_keeps_its_prefix_as_it_grows():
    first = prefix_of(body("x" * 40), 30)
    assert first
    assert first == prefix_of(body("x" * 40, "and then?"), 30) == prefix_of(body("x" * 50), 30)
    assert first != prefix_of(body("x" * 40, model="other"), 30)
    assert first != prefix_of(body("y" * 40), 30)
    texts = [json.dumps({"model": "m", "prompt": prompt}).encode() for prompt in ("once", ["once", "twice"], "twice")]
    assert len({prefix_of(text, 4) for text in texts}) == 2


@pytest.mark.parametrize(
    "raw",
    [b"", b"x", b"[]", b"5", b"{}", b'{"prompt": 5}', b'{"messages": "x"', b"\xff", b'{"messages": {}}', b"[" * 10**5],
)
def test_bodies_without_one(raw):
    assert prefix_of(raw, 100) == ""


@given(raw=st.recursive(st.none() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)))
def test_any_body(raw):
    for values in (raw, {"messages": raw}, {"prompt": raw, "model": raw}):
        assert isinstance(prefix_of(json.dumps(values).encode(), 10), str)


def test_replicas_share_the_prefixes_and_keep_them():
    names = [f"replica-{n}" for n in range(4)]
    prefixes = [f"prefix {n}" for n in range(400)]
    before = {prefix: [names[place] for place in preferred(prefix, names)] for prefix in prefixes}
    counts = Counter(order[0] for order in before.values())
    assert min(counts.values()) > 60
    gone = names[2]
    left = [name for name in names if name != gone]
    for prefix, order in before.items():
        assert [left[place] for place in preferred(prefix, left)] == [name for name in order if name != gone]
        assert sorted(order) == names
