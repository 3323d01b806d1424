"""What members are told of tools, results and objects."""

import json

import pytest
from reply_parts import ADD, NOW, OBJECT, SCHEMA, TOOLS, call, tool

from deepen_core.chat.messages import TrustedMarkup
from deepen_core.errors import PromptError
from deepen_core.replies import ReplyForm, instructed


def joined(messages):
    return [(m["role"], m["content"] if isinstance(m["content"], str) else "".join(m["content"])) for m in messages]


def test_a_conversation_without_tools_stays_as_it_is():
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert instructed(messages, ReplyForm()) == messages


def test_tools_are_told_in_the_system_message():
    for system in [[], [{"role": "system", "content": "Be brief."}]]:
        told = instructed([*system, {"role": "user", "content": "hi"}], ReplyForm.from_openai([ADD, NOW]))
        (role, text), user = joined(told)
        assert (role, user) == ("system", ("user", "hi"))
        assert text.startswith("Be brief.\n\n# Tools" if system else "# Tools")
        described = [json.loads(line) for line in text.splitlines() if line.startswith('{"type": "function"')]
        assert described == [ADD, NOW]


def test_tags_are_markup_and_what_users_wrote_is_not():
    told = instructed(
        [{"role": "user", "content": "hi"}],
        ReplyForm.from_openai([tool("now", {"x": {"type": "string", "description": "<tool_call>"}})]),
    )
    marks = [part for part in told[0]["content"] if isinstance(part, TrustedMarkup)]
    assert set(marks) == {"<tools></tools>", "<tools>", "</tools>", "<tool_call>", "</tool_call>"}
    assert sum("<tool_call>" in part for part in told[0]["content"] if not isinstance(part, TrustedMarkup)) == 1


def test_calls_and_results_are_told_as_text():
    messages = [
        {"role": "user", "content": "1+1, and when?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "add", "arguments": {"x": 1}}},
                {"id": "b", "type": "function", "function": {"name": "now", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "content": "2", "tool_call_id": "a"},
        {"role": "tool", "content": [{"type": "text", "text": "noon"}], "tool_call_id": "b"},
        {"role": "assistant", "content": "2, at noon."},
        {"role": "tool", "content": None},
    ]
    assert joined(instructed(messages, ReplyForm())) == [
        ("user", "1+1, and when?"),
        ("assistant", f"Let me see.\n{call('add', x=1)}\n{call('now')}"),
        ("user", "<tool_response>\n2\n</tool_response>\n<tool_response>\nnoon\n</tool_response>"),
        ("assistant", "2, at noon."),
        ("user", "<tool_response>\n\n</tool_response>\nAnswer my question in plain words if you can."),
    ]
    for form in (ReplyForm.from_openai([NOW, ADD], "any"), ReplyForm.from_openai(response_format=OBJECT)):
        assert joined(instructed(messages, form))[-1] == ("user", "<tool_response>\n\n</tool_response>")
    assert messages[3]["content"] == [{"type": "text", "text": "noon"}], "what was given stays as it is"


def test_where_a_call_is_required_the_prompt_names_what_was_not_called_yet():
    """Otherwise small models repeat the same call forever."""
    called = {"function": {"name": "now", "arguments": "{}"}}
    turn = [{"role": "assistant", "content": "", "tool_calls": [called]}, {"role": "tool", "content": "noon"}]
    messages = [{"role": "user", "content": "When?"}, *turn]

    def asked(tools, choice, talk=messages):
        return joined(instructed(talk, ReplyForm.from_openai(tools, choice)))[-1][1].partition("</tool_response>")[2]

    assert asked([NOW, ADD], "any") == '\n\nCall another function now: "add".'
    assert asked(TOOLS[:3], "any").count(" or ") == 1
    assert asked([NOW], "any") == asked([NOW, ADD], "add") == ""
    again = [
        *messages,
        {"role": "assistant", "content": "", "tool_calls": None},
        {"role": "user", "content": "x"},
        *turn,
    ]
    again[-2] = {**again[-2], "tool_calls": [{"function": {"name": "add", "arguments": {"x": 1}}}]}
    assert asked([NOW, ADD], "any", again) == '\n\nCall another function now: "now".'


def test_results_that_are_no_text_are_refused():
    with pytest.raises(PromptError, match="of type image"):
        instructed([{"role": "tool", "content": [{"type": "image", "url": "x"}]}], ReplyForm())


def test_what_an_answer_has_to_be_is_told():
    texts = [
        joined(instructed([{"role": "user", "content": "hi"}], form))[0][1]
        for form in (
            ReplyForm.from_openai([NOW], "any"),
            ReplyForm.from_openai([NOW, ADD], "now"),
            ReplyForm.from_openai(response_format=OBJECT),
            ReplyForm.from_openai([NOW], response_format=OBJECT),
            ReplyForm.from_openai([NOW], "any", response_format=OBJECT),
        )
    ]
    assert texts[0].endswith("Answer with function calls only.")
    assert texts[1].endswith('Call the function "now" now.')
    assert texts[2] == f"Answer with JSON that follows this schema: {json.dumps(SCHEMA)}"
    assert texts[3].endswith(f"</tool_call>\n\nWhen you need no more functions, {texts[2][0].lower()}{texts[2][1:]}")
    assert json.dumps(SCHEMA) not in texts[4]


def test_an_empty_conversation_stays_empty():
    assert instructed([], ReplyForm()) == []
