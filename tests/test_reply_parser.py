"""The parts of an answer, however it is cut into pieces."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reply_parts import NAMES, call

from deepen_core.chat.thoughts import Thoughts
from deepen_core.replies import Call, CutCall, Reply, ReplyParser, Text, Thought, parse_reply

PIECES = st.sampled_from(
    [
        *("<think>", "</think>", "<tool_call>", "</tool_call>", "<", "</", "<tool", "_call>", "\n", " ", "a", "你"),
        *(
            call("add", x=1),
            call("now"),
            call("sub"),
            call("add", x="</tool_call>"),
            '{"name": "now", "arguments": {}}',
            '{"name": "add", "parameters": {"x": 1}}',
            '{"name": "sub", "arguments": {}}',
        ),
        *("```json\n", "```", "<tools>\n", "</tools>", "{", '{"name": "no'),
    ]
)
THINKING = st.sampled_from(["never", "optional", "opened"])


@given(st.lists(PIECES).map("".join), THINKING, st.data())
@example("<think>", "optional", None)
@example(" <think> a <tool_call></think> b", "optional", None)
def test_parts_do_not_depend_on_the_cuts(text, thinking, data):
    whole = parse_reply(text, ReplyParser(NAMES, Thoughts(thinking)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text))))) if data else range(len(text))
    parser, parts = ReplyParser(NAMES, Thoughts(thinking)), []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        parts += parser.feed(text[start:end])
    parts += parser.finish()
    assert all(part.text for part in parts if not isinstance(part, Call))
    assert whole == Reply(
        "".join(part.text for part in parts if isinstance(part, Text)),
        "".join(part.text for part in parts if isinstance(part, Thought)),
        tuple(part for part in parts if isinstance(part, Call)),
        next((part for part in parts if isinstance(part, CutCall)), None),
    )


@given(st.text(alphabet="<>/tool_cahink \n"))
def test_a_text_without_tools_stays_as_it_is(text):
    parser = ReplyParser()
    assert [part.text for piece in text for part in parser.feed(piece)] == list(text)  # nothing is held back
    assert parser.finish() == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello.\n", ("Hello.\n", [])),
        ("Well:\n\n" + call("now") + "\n" + call("add", x=1) + "\n", ("Well:", ["now", "add"])),
        (call("add", text="</tool_call><tool_call>"), ("", ["add"])),
        ("Well:\n" + call("now")[:-1], ("Well:", [])),
        (call("sub"), (call("sub"), [])),
        ("a <tool_call>{oh}</tool_call> b" + call("now"), ("a <tool_call>{oh}</tool_call> b", ["now"])),
        ('<tool_call>{"name": "now", "arguments": {"a": "1\n2"}}</tool_call>', ("", ["now"])),
    ],
)
def test_only_whole_calls_are_calls(text, expected):
    reply = parse_reply(text, ReplyParser(NAMES))
    assert (reply.text, [c.name for c in reply.calls]) == expected
    assert (reply.cut is None) == (not text.endswith("</tool_call"))


@pytest.mark.parametrize(
    ("text", "must", "name"),
    [
        ("<tool_c", True, None),
        (call("now")[:20], False, None),
        (call('say 你"好\\')[:45], False, 'say 你"好\\'),
        (call("add", x=1)[:-1], False, "add"),
    ],
)
def test_half_a_call_is_a_part_of_its_own(text, must, name):
    reply = parse_reply(text, ReplyParser(NAMES, has_text=not must))
    assert reply == Reply("", "", (), CutCall(text))
    assert reply.cut.name == name


def test_the_beginning_of_a_tag_is_text_where_text_may_be():
    assert parse_reply("a <tool_c", ReplyParser(NAMES)) == Reply("a <tool_c", "", ())


@pytest.mark.parametrize(
    "said",
    [
        '{"name": "now", "arguments": []}',
        '{"name": ["now"], "arguments": {}}',
        "[]",
        "",
        "[" * 100_000,
        '{"name": "now"}',
        f'{{"name": "now", "arguments": {{"x": {"1" * 5000}}}}}',
    ],
)
def test_what_is_no_call_stays_text(said):
    text = f"a <tool_call>{said}</tool_call> b"
    assert parse_reply(text, ReplyParser(NAMES)) == Reply(text, "", ())


@pytest.mark.parametrize(
    ("thinking", "text", "thoughts", "said"),
    [
        ("optional", "<think>\nHm.\n</think>\n\nHello.", "Hm.", "Hello."),
        ("optional", "Hello <think>x</think>", "", "Hello <think>x</think>"),
        ("optional", "<thin", "", "<thin"),
        ("optional", "<think>Hm", "Hm", ""),
        ("opened", "\nHm. </think>Hello.", "Hm.", "Hello."),
        ("opened", "Hm.", "Hm.", ""),
        ("opened", call("now") + "</think>", call("now"), ""),
        ("never", "<think>Hm.</think>", "", "<think>Hm.</think>"),
    ],
)
def test_thoughts_are_no_text(thinking, text, thoughts, said):
    assert parse_reply(text, ReplyParser(NAMES, Thoughts(thinking))) == Reply(said, thoughts, ())


def test_a_call_that_is_repeated_with_equal_arguments_is_made_once():
    parser = ReplyParser(NAMES)
    text = "\n".join([call("add", x=1, y=2), call("add", x=1, y=2), call("now"), call("add", x=2, y=1), call("now")])
    reply = parse_reply(f"{text}\n{call('add', x=1, y=2)}", parser)
    one, other = Call("add", {"x": 1, "y": 2}), Call("add", {"x": 2, "y": 1})
    assert reply.calls == (one, Call("now", {}), other, Call("now", {}))  # without arguments it may be meant
    assert reply.text == ""
    (warning,) = parser.warnings
    assert warning == "The answer calls 'add' several times with equal arguments; one call is kept."


@pytest.mark.parametrize("length", [3, 14, 30])
def test_a_loop_of_repeated_calls_that_is_cut_off_ends_with_the_call(length):
    said = call("add", x="two words")
    assert parse_reply(said * 3 + said[:length], ReplyParser(NAMES)).cut is None
    assert parse_reply(said + said[:length], ReplyParser(NAMES)).cut is not None or length < 11
    assert parse_reply(said * 3 + call("sub", x=1)[:30], ReplyParser(NAMES)).cut is not None


def test_parts_come_as_soon_as_they_are_certain():
    parser = ReplyParser(NAMES, Thoughts("optional"))
    fed = ["<th", "ink>\nH", "m. ", "No", ".\n</th", "ink>\n", "\nHi", " <", "b ", "<tool_call>", call("now")[11:]]
    assert [parser.feed(piece) for piece in fed] == [
        [],
        [Thought("H")],
        [Thought("m.")],
        [Thought(" No")],
        [Thought(".")],
        [],
        [Text("Hi")],
        [],
        [Text(" <b")],
        [],
        [Call("now", {})],
    ]
    assert parser.finish() == []
