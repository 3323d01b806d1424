"""Text as it grows: stop strings and characters, whatever pieces it comes in."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from deepen_core.sampling.detokenizer import Utf8Stream
from deepen_core.sampling.stop_strings import StopMatcher


@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_stop_matcher_does_not_depend_on_the_pieces(text, stops, cuts):
    matcher, shown = StopMatcher(stops), ""
    places = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    for a, b in itertools.pairwise(places):
        shown += matcher.feed(text[a:b])
        ends = [shown.find(s) for s in stops]
        assert max(ends, default=-1) == -1
    shown += matcher.finish()
    # The first stop string to be complete ends the text, at its own beginning.
    complete = min((text.find(s) + len(s) for s in stops if s in text), default=None)
    if complete is None:
        assert shown == text
    else:
        assert matcher.matched is not None
        assert text.startswith(shown + matcher.matched)
        assert len(shown) <= min(text.find(s) for s in stops if s in text[:complete])


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=10))
def test_utf8_stream_shows_what_is_certain(data, cuts):
    stream, shown = Utf8Stream(), ""
    for a, b in itertools.pairwise(sorted({0, len(data), *(c for c in cuts if c < len(data))})):
        shown += stream.feed(data[a:b])
        assert (data[:b].decode("utf-8", "replace")).startswith(shown)
    assert shown + stream.finish() == data.decode("utf-8", "replace")
    if not data:
        assert not stream.waiting
