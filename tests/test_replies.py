"""Answers with tools, objects and thoughts: their grammar against llguidance, their parts against any cutting."""

import json

import pytest
import tiny
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from deepen_core.chat.messages import TrustedMarkup
from deepen_core.chat.thoughts import Thoughts
from deepen_core.config import SamplingParams
from deepen_core.constraints.matcher import Constraints
from deepen_core.errors import PromptError, SamplingError
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.replies import Call, CutCall, Reply, ReplyForm, ReplyParser, Text, Thought, instructed, parse_reply
from deepen_core.replies.grammar import MOST_CALLS


def tool(name, properties=None, **more):
    parameters = {"type": "object", "properties": properties or {}, "required": list(properties or {}), **more}
    return {"type": "function", "function": {"name": name, "description": f"{name} it", "parameters": parameters}}


ADD = tool("add", {"x": {"type": "integer"}})
NOW = tool("now")
SAY = tool('say 你"好\\', {"text": {"type": "string"}})
TREE = tool(
    "plant",
    {"tree": {"$ref": "#/$defs/Tree"}},
    **{"$defs": {"Tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/Tree"}}, "required": []}}},
)
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
OBJECT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


def call(name, **arguments):
    said = {"name": name, "arguments": arguments}
    return f"<tool_call>\n{json.dumps(said, ensure_ascii=False)}\n</tool_call>"


@pytest.fixture(scope="module")
def tokenizer():
    return MemberTokenizer(tiny.byte_level(), "main")


@pytest.fixture(scope="module")
def constraints(tokenizer):
    return Constraints(tokenizer.vocabulary)


@pytest.fixture
def verdict(tokenizer, constraints):
    """What a form says of an answer: "whole", "more" if it may not end there, "no" if it may not begin so."""

    def judge(form, text, thinking="never"):
        params = form.params(SamplingParams(), Thoughts(thinking))
        constraint = constraints.start(params, starts_text=False)
        size = tokenizer.vocabulary.size
        stop = min(tokenizer.vocabulary.stop_ids)
        for token in tokenizer.encode(text):
            if constraint.complete or not constraint.allowed(size, "cpu")[token]:
                return "no"
            constraint.advance(token)
        return "whole" if constraint.allowed(size, "cpu")[stop] else "more"

    return judge


TOOLS = [ADD, NOW, SAY, TREE]


@pytest.mark.parametrize(
    ("choice", "text", "expected"),
    [
        ("auto", "", "whole"),
        ("auto", "Hello.", "whole"),
        ("auto", "Hello. <tool_cal", "whole"),
        ("auto", "Let me see.\n" + call("add", x=3), "whole"),
        ("auto", call("add", x=3) + "\n" + call("now"), "whole"),
        ("auto", call("add", x=3) + " and so on", "no"),
        ("auto", call("add", x=3)[:-1], "more"),
        ("auto", "<tool_call> add", "no"),
        ("auto", call("sub", x=3), "no"),
        ("auto", call("add", x="3"), "no"),
        ("auto", call("add"), "no"),
        ("auto", call("add", x=3, y=4), "no"),
        ("auto", call("now", x=3), "no"),
        ("any", "Hello.", "no"),
        ("any", "", "more"),
        ("any", call("now"), "whole"),
        ("any", call('say 你"好\\', text="a\n</tool_call> 你好"), "whole"),
        ("any", call("plant", tree={"left": {"left": {}}}), "whole"),
        ("any", call("plant", tree={"right": {}}), "no"),
        ("required", call("now"), "whole"),
        (True, call("add", x=-1), "whole"),
        ("add", call("add", x=1), "whole"),
        ("add", call("now"), "no"),
        ("add", call("add", x=1) + "\n" + call("add", x=2), "no"),
        ({"type": "function", "function": {"name": "now"}}, call("now"), "whole"),
        ({"type": "tool", "name": "now"}, call("add", x=1), "no"),
    ],
)
def test_each_choice_of_tools_is_enforced(verdict, choice, text, expected):
    assert verdict(ReplyForm.from_openai(TOOLS, choice), text) == expected


@pytest.mark.parametrize("choice", ["none", False])
def test_without_a_choice_an_answer_is_free(choice):
    form = ReplyForm.from_openai(TOOLS, choice)
    assert form.is_text
    assert form.params(SamplingParams(stop=["x"]), Thoughts()) == SamplingParams(stop=["x"])
    assert parse_reply(call("now"), form.parser(Thoughts())).text == call("now")


@pytest.mark.parametrize(
    ("parallel", "choice", "several"),
    [(None, "any", True), (True, "any", True), (False, "any", False), (None, "now", False), (True, "now", True)],
)
def test_several_calls_only_where_they_may_be(verdict, parallel, choice, several):
    twice = call("now") + "\n" + call("now")
    assert verdict(ReplyForm.from_openai(TOOLS, choice, parallel), twice) == ("whole" if several else "no")


def test_a_model_that_is_lost_does_not_call_for_ever(verdict):
    form = ReplyForm.from_openai(TOOLS, "any")
    assert verdict(form, "\n".join([call("now")] * MOST_CALLS)) == "whole"
    assert verdict(form, "\n".join([call("now")] * (MOST_CALLS + 1))) == "no"


def test_an_object_in_place_of_a_text(verdict):
    assert verdict(ReplyForm.from_openai(response_format=OBJECT), '{"ok": true}') == "whole"
    assert verdict(ReplyForm.from_openai(response_format=OBJECT), "ok") == "no"
    assert verdict(ReplyForm.from_openai(response_format={"type": "json_object"}), '{"a": [1, null]}') == "whole"
    assert verdict(ReplyForm.from_openai(response_format={"type": "json_object"}), "[1]") == "no"
    both = ReplyForm.from_openai(TOOLS, "auto", response_format=OBJECT)
    assert verdict(both, '{"ok": false}') == "whole"
    assert verdict(both, call("now")) == "whole"
    assert verdict(both, "Hello.") == "no"
    assert verdict(ReplyForm.from_openai(TOOLS, "any", response_format=OBJECT), '{"ok": false}') == "no"
    assert ReplyForm.from_openai(response_format={"type": "text"}).is_text


def test_a_class_is_a_response_format(verdict):
    class Weather(BaseModel):
        degrees: int

    assert verdict(ReplyForm.from_openai(response_format=Weather), '{"degrees": -3}') == "whole"


@pytest.mark.parametrize(
    ("thinking", "text", "expected"),
    [
        ("never", "<think>a</think>" + call("now"), "no"),
        ("optional", call("now"), "whole"),
        ("optional", "<think>\n<tool_call> or not?\n</think>\n\n" + call("now"), "whole"),
        ("optional", "<think>a", "more"),
        ("optional", "<think>a</think>\n\n\n" + call("now"), "no"),
        ("optional", "\n<think>a</think>" + call("now"), "whole"),
        ("opened", call("now"), "more"),
        ("opened", "a</think>" + call("now"), "whole"),
    ],
)
def test_thoughts_come_before_calls(verdict, thinking, text, expected):
    assert verdict(ReplyForm.from_openai(TOOLS, "any"), text, thinking) == expected


@pytest.mark.parametrize("thinking", ["never", "optional", "opened"])
def test_thoughts_come_before_text(verdict, thinking):
    begin = {"never": "", "optional": "<think>", "opened": ""}[thinking]
    thoughts = "" if thinking == "never" else f"{begin}Shall I <tool_call>?</think>"
    form = ReplyForm.from_openai(TOOLS, "auto")
    for text, expected in [("\n\n\n\nHello.", "whole"), ("Hm: " + call("now"), "whole"), ("<tool_call>x", "no")]:
        assert verdict(form, thoughts + text, thinking) == expected


@pytest.mark.parametrize("blank", ["", " ", "\n", "\n\n", "\t", "\u2003", "\x1c"])
def test_what_the_parser_takes_for_a_thought_is_no_call(verdict, blank):
    form = ReplyForm.from_openai(TOOLS, "auto")
    inside, behind = f"{blank}<think>{call('now')}", f"{blank}<think></think>{call('now')}"
    assert verdict(form, inside, "optional") in {"more", "no"}, "or a call would be lost in the thoughts"
    if verdict(form, behind, "optional") == "whole":
        assert parse_reply(behind, form.parser(Thoughts("optional"))).calls == (Call("now", {}),)
    else:
        assert blank not in {"", " ", "\n", "\n\n"}


def test_stop_strings_cut_texts_only():
    given = SamplingParams(stop=["x"], max_new_tokens=5)
    assert ReplyForm.from_openai(TOOLS, "auto").params(given, Thoughts()).stop == ("x",)
    assert ReplyForm.from_openai(TOOLS, "any").params(given, Thoughts()).stop == ()
    held = ReplyForm.from_openai(response_format=OBJECT).params(given, Thoughts())
    assert (held.stop, held.max_new_tokens) == ((), 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tools": TOOLS, "tool_choice": "sub"}, r"'sub': choose .* \('add', 'now'"),
        ({"tool_choice": "any"}, "there are no tools"),
        ({"tool_choice": "sub"}, "there are none"),
        ({"tools": TOOLS, "tool_choice": 3}, "is 3: choose"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {}}}, "is None: choose"),
        ({"tools": [NOW, ADD, tool("now", {"x": {}})]}, "Two different tools are called 'now'"),
        ({"tools": [{"name": "now"}]}, "is not a tool"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "is not a tool"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": "x"}}]},
            "are not a schema: this is not JSON",
        ),
        ({"tools": [tool("a", {"x": {"const": {1, 2}}})]}, "of tool 'a' are not a schema: a schema is plain JSON"),
        ({"tools": [tool("a", {"x": {"const": float("nan")}})]}, "tool 'a' are not a schema: a schema is plain JSON"),
        ({"tools": [tool("a", {"x": {"const": "\ud800"}})]}, "of tool 'a' are not a schema: it holds half a character"),
        ({"tools": [tool("a", type="array")]}, "of tool 'a' are not a JSON schema of an object"),
        ({"tools": "abc"}, "tools is 'abc': give a list"),
        ({"response_format": {**OBJECT, "json_schema": {"schema": {"const": {1, 2}}}}}, "response_format is not valid"),
        ({"response_format": {"type": "xml"}}, "response_format is"),
        ({"response_format": {"type": "json_schema"}}, "response_format is"),
        ({"response_format": "json"}, "response_format is"),
    ],
)
def test_what_is_no_form_is_refused(arguments, message):
    with pytest.raises(SamplingError, match=message):
        ReplyForm.from_openai(**arguments)


def test_a_mapping_names_a_tool_whatever_its_name():
    for name in ("none", "auto", "any"):
        form = ReplyForm.from_openai([tool(name), NOW], {"type": "function", "function": {"name": name}})
        assert (form.calls, form.named) == ("must", name)
    assert ReplyForm.from_openai([NOW], {"type": "any"}).calls == "must"


def test_a_tool_given_twice_counts_once():
    assert [tool.name for tool in ReplyForm.from_openai([NOW, ADD, NOW]).tools] == ["now", "add"]


def test_two_constraints_are_refused():
    for form, name in [
        (ReplyForm.from_openai(TOOLS), "tools that may be called"),
        (ReplyForm.from_openai(response_format=OBJECT), "response_format"),
    ]:
        with pytest.raises(SamplingError, match=f"{name} and regex are given"):
            form.params(SamplingParams(regex="a"), Thoughts())


def test_a_schema_that_cannot_be_followed_is_refused(constraints):
    odd = tool("odd", {"x": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}})
    params = ReplyForm.from_openai([odd], "any").params(SamplingParams(), Thoughts())
    with pytest.raises(SamplingError, match=r"properties\.x"):
        constraints.start(params, starts_text=False)


# Parts of answers

NAMES = ["add", "now"]
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
    assert parse_reply(text, ReplyParser()) == Reply(text, "", ())


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
    reply = parse_reply(text, ReplyParser(NAMES, must=must))
    assert reply == Reply("", "", (), CutCall(text))
    assert reply.cut.name == name


UNTAGGED = ["{}", "```json\n{}\n```", "```\n{}\n```", "<tools>\n{}\n</tools>", "\n {}"]


@pytest.mark.parametrize("around", UNTAGGED)
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('{"name": "add", "arguments": {"x": 3}}', "whole"),
        ('{\n  "name": "add",\n  "arguments": {"x": 3}\n}', "whole"),
        ('{"name": "plant", "parameters": {"tree": {}}}', "whole"),
        ('{"name": "say 你\\"好\\\\", "arguments": {"text": "}"}}', "whole"),
        ('{"name": "add", "arguments": {"x": "three"}}', "no"),
        ('{"name": "add", "x": 3}', "no"),
    ],
)
def test_a_call_without_its_tag_is_held_from_its_name_on(verdict, around, said, expected):
    form = ReplyForm.from_openai(TOOLS, "auto")
    text = around.replace("{}", said, 1)
    assert verdict(form, text) == expected
    if expected == "whole":
        reply = parse_reply(text, form.parser(Thoughts()))
        arguments = json.loads(said).get("arguments", json.loads(said).get("parameters"))
        assert reply == Reply("", "", (Call(json.loads(said)["name"], arguments),))
        cut = parse_reply(text[: text.rindex("}")], form.parser(Thoughts()))
        assert (cut.text, cut.calls, cut.cut.name) == ("", (), json.loads(said)["name"])
        assert verdict(ReplyForm.from_openai(TOOLS, "any"), text) == "no"


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "subtract", "arguments": {}}',
        '{"name": "Felix", "age": 3}',
        'Like this: {"name": "now", "arguments": {}}',
        '```python\n{"name": "now", "arguments": {}}\n```',
        '["now"]',
        "{",
        "```json",
        '{"name": "no',
    ],
)
def test_text_that_merely_holds_json_stays_text(verdict, text):
    form = ReplyForm.from_openai(TOOLS, "auto")
    assert verdict(form, text) == "whole"
    assert parse_reply(text, form.parser(Thoughts())) == Reply(text, "", ())


def test_an_untagged_call_may_come_after_thoughts(verdict):
    form, said = ReplyForm.from_openai(TOOLS, "auto"), '{"name": "now", "arguments": {}}'
    assert verdict(form, f"<think>Hm.</think>\n\n{said}", "optional") == "whole"
    reply = parse_reply(f"<think>Hm.</think>\n\n{said}", form.parser(Thoughts("optional")))
    assert reply == Reply("", "Hm.", (Call("now", {}),))


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


# What members are told


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
    for form in (ReplyForm.from_openai(TOOLS, "any"), ReplyForm.from_openai(response_format=OBJECT)):
        assert joined(instructed(messages, form))[-1] == ("user", "<tool_response>\n\n</tool_response>")
    assert messages[3]["content"] == [{"type": "text", "text": "noon"}], "what was given stays as it is"


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
        )
    ]
    assert texts[0].endswith("Answer with function calls only.")
    assert texts[1].endswith('Call the function "now" now.')
    assert texts[2] == f"Answer with JSON that follows this schema: {json.dumps(SCHEMA)}"
    assert texts[3].endswith(f"</tool_call>\n\n{texts[2]}")
