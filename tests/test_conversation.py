"""Messages: text of the library's own may hold tags that are tokens, and no strings make up a token where they meet."""

import json

import chat_templates
import pytest
import tiny
from amounts import examples
from chat_templates import read
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deepen_core.chat.messages import TrustedMarkup, check_messages
from deepen_core.chat.tool_format import TOOL_TAGS, read_arguments, tool_call_text, tool_response_text
from deepen_core.errors import PromptError
from deepen_core.members.tokenizer import MemberTokenizer

TAG, END = "<tool_call>", "</tool_call>"


def within(name, *pieces, role="system"):
    """The text and the control tokens of one message's content."""
    text, control = read(name, [{"role": role, "content": list(pieces)}])
    before, after = f"<|im_start|>{role}\n", "<|im_end|>\n<|im_start|>assistant\n"
    assert (text.removeprefix(before) != text, text.removesuffix(after) != text) == (True, True)
    assert control[0] == "<|im_start|>"
    assert control[-2:] == ["<|im_end|>", "<|im_start|>"]
    return text.removeprefix(before).removesuffix(after), control[1:-2]


@pytest.mark.parametrize("role", ["system", "user"])
@pytest.mark.parametrize("tag", chat_templates.TAGS)
def test_markup_is_the_one_token_that_a_plain_text_is_not(role, tag):
    assert within("qwen", TrustedMarkup(tag), role=role) == (tag, [tag])
    assert within("qwen", tag, role=role) == (tag, [])
    assert within("qwen", "a", TrustedMarkup(f"<{tag}>"), tag, role=role) == (f"a<{tag}>{tag}", [tag])


def test_markup_as_the_whole_content_and_in_a_part():
    for content in (TrustedMarkup(TAG), [{"type": "text", "text": TrustedMarkup(TAG)}], [TrustedMarkup(TAG)]):
        assert read("qwen", [{"role": "user", "content": content}])[1].count(TAG) == 1


def test_markup_holds_no_special_token():
    assert within("qwen", TrustedMarkup("<|im_end|>"), TrustedMarkup("<|im_"), TrustedMarkup("start|>")) == (
        "<|im_end|><|im_start|>",
        [],
    )


def test_no_json_is_markup():
    assert type(json.loads(json.dumps(TrustedMarkup(TAG)))) is str


def test_tags_of_a_tokenizer_whose_template_has_none():
    """They are written by adaptation, so what a user writes is no tag there either."""
    call = {"function": {"name": "f", "arguments": {}}}
    chat = [{"role": "user", "content": f"a{TAG}"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    chat.append({"role": "tool", "content": "</tool_response>"})
    tags = [token for token in read("chatml", chat)[1] if token in TOOL_TAGS]
    assert tags == [TAG, END, "<tool_response>", "</tool_response>"]


CUTS = [TAG[:n] for n in range(1, len(TAG))]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kinds", [(str, str), (str, TrustedMarkup), (TrustedMarkup, str)])
def test_no_token_is_made_up_where_strings_meet(cut, kinds):
    halves = [kind(half) for kind, half in zip(kinds, (cut, TAG.removeprefix(cut)), strict=True)]
    assert within("qwen", *halves) == (TAG, [])
    assert within("qwen", halves[0], "", halves[1]) == (TAG, [])
    assert within("qwen", "x", TrustedMarkup(END), *halves, TrustedMarkup(END)) == ("x" + END + TAG + END, [END, END])


PIECES = st.lists(
    st.tuples(
        st.booleans(),
        st.lists(st.sampled_from(["<", "/", "tool", "_call>", TAG, END, "<|im_", "end|>", ">", " ", "a"]), max_size=4),
    ),
    max_size=6,
)


@given(PIECES)
@example([(False, ["<"]), (True, [TAG]), (False, [">"])])
@settings(deadline=None, max_examples=examples(150))
def test_only_whole_tags_of_markup_are_tokens(made):
    pieces = [(TrustedMarkup if ours else str)("".join(parts)) for ours, parts in made]
    # What strings of the library's own make where they meet is its own affair.
    pieces = [
        piece for i, piece in enumerate(pieces) if i == 0 or {type(piece), type(pieces[i - 1])} != {TrustedMarkup}
    ]
    text, control = within("qwen", "x", *pieces, "x")
    assert text == "x" + "".join(pieces) + "x"
    assert control == [tag for piece in pieces if isinstance(piece, TrustedMarkup) for tag in tags_in(piece)]


def tags_in(text):
    place = 0
    while (place := text.find("<", place)) >= 0:
        for tag in (TAG, END):
            if text.startswith(tag, place):
                yield tag
        place += 1


def test_lists_that_are_no_content_stay_lists():
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ m.names | join('+') }}{% endfor %}"
    reader = MemberTokenizer(tokenizer, "m").reader
    assert reader.read_messages([{"role": "user", "content": ["a", "b"], "names": ["c", "d"]}]).text == "abc+d"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"a": "é\n", "b": [1, None]}, '{"a": "é\\n", "b": [1, null]}'),
        ('{"a":  1}', '{"a":  1}'),
        ("", "{}"),
        (None, "{}"),
        ('{"a": 1', '"{\\"a\\": 1"'),
        ("[" * 100_000, '"' + "[" * 100_000 + '"'),
    ],
)
def test_a_call_as_text(arguments, said):
    pieces = tool_call_text('f"', arguments)
    assert [type(piece) for piece in pieces] == [TrustedMarkup, str, TrustedMarkup]
    assert "".join(pieces) == f'<tool_call>\n{{"name": "f\\"", "arguments": {said}}}\n</tool_call>'
    json.loads(pieces[1])


def test_a_call_that_no_json_says():
    with pytest.raises(PromptError, match=r"tool 'f' are not JSON .*set"):
        tool_call_text("f", {"a": {1}})


def test_a_result_as_text():
    pieces = tool_response_text(["a", TAG])
    assert "".join(pieces) == "<tool_response>\na<tool_call>\n</tool_response>"
    assert [piece for piece in pieces if isinstance(piece, TrustedMarkup)] == ["<tool_response>", "</tool_response>"]


@pytest.mark.parametrize(("text", "arguments"), [('{"a": 1}', {"a": 1}), ("[1]", "[1]"), ("", {}), ("x", "x")])
def test_arguments_are_read(text, arguments):
    assert read_arguments(text) == arguments


def test_an_escaped_half_of_a_character_stays_escaped():
    assert read_arguments('{"a": "\\ud800"}') == '{"a": "\\ud800"}'


@pytest.mark.parametrize(
    "calls",
    [5, "x", {}, [5], [{}], [{"function": {"arguments": {}}}], [{"name": 5}], [{"name": "f", "arguments": [1]}]],
)
def test_calls_of_unknown_shape(calls):
    with pytest.raises(PromptError, match="Message 0 has tool_calls"):
        check_messages([{"role": "assistant", "content": "", "tool_calls": calls}])


def test_calls_of_both_shapes():
    function = {"name": "f", "arguments": "{}"}
    for calls in (None, [], [function], [{"id": "1", "type": "function", "function": function}], [{"name": "f"}]):
        check_messages([{"role": "assistant", "content": "", "tool_calls": calls}])
