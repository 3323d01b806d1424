"""How answers are written: what the demo never says, such as thoughts and calls that break their schemas."""

import json

import pytest

from deepen_core.chat.thoughts import Thoughts
from deepen_core.replies import ReplyForm
from deepen_core.results import Chunk, Generation, TokenLogprob, Usage
from deepen_integrations.serve.chat_answers import ChatWire
from deepen_integrations.serve.text_answers import TextLogprobs, TextWire
from deepen_integrations.serve.wire import encoded

LETTERS = {
    "type": "function",
    "function": {
        "name": "letters",
        "parameters": {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}},
    },
}
CALL = '<tool_call>\n{"name": "letters", "arguments": {"a": %s}}\n</tool_call>'
CASES = {
    "text": ("Lisbon.", "Lisbon.", "", []),
    "thoughts": ("<think>\nHm, so.\n</think>\n\nLisbon.", "Lisbon.", "Hm, so.", []),
    "call": ("I look." + CALL % "[1]", "I look.", "", [{"a": [1]}]),
    "two calls": (CALL % "[1]" + CALL % "[2]", "", "", [{"a": [1]}, {"a": [2]}]),
    "thoughts and a call": ("<think>Hm.</think>" + CALL % "[]", "", "Hm.", [{"a": []}]),
}


def generation(text, reason="stop", **more):
    return Generation(text, [1, 2, 3], reason, Usage(5, 3), **more)


def wire(answers=1):
    form = ReplyForm.from_openai([LETTERS])
    return ChatWire("m", [form.parser(Thoughts("optional")) for _ in range(answers)], len)


def streamed(text, reason="stop", size=3):
    """The choices of an answer that comes in pieces of some characters, and its usage."""
    writer, answer = wire(), generation(text, reason)
    pieces = [Chunk(text[place : place + size]) for place in range(0, len(text), size)]
    chunks = [*pieces, Chunk("", finish_reason=reason, generation=answer)]
    return [choice for chunk in chunks for choice in writer.choices(0, chunk)], writer.last([answer])["usage"]


@pytest.mark.filterwarnings("ignore::deepen_core.errors.SchemaWarning")
class TestChats:
    @pytest.mark.parametrize("name", CASES)
    def test_whole_and_streamed_are_equal(self, name):
        said, text, thoughts, calls = CASES[name]
        whole = wire().whole([generation(said)])
        message = whole["choices"][0]["message"]
        assert message["content"] == (text or None)
        assert message.get("reasoning_content", "") == thoughts
        assert [json.loads(call["function"]["arguments"]) for call in message.get("tool_calls", [])] == calls
        assert whole["choices"][0]["finish_reason"] == ("tool_calls" if calls else "stop")
        details = {"completion_tokens_details": {"reasoning_tokens": len(thoughts)}} if thoughts else {}
        assert whole["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, **details}

        choices, usage = streamed(said)
        deltas = [choice["delta"] for choice in choices]
        assert "".join(delta.get("content", "") for delta in deltas) == text
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == thoughts
        sent = [call for delta in deltas for call in delta.get("tool_calls", [])]
        assert [json.loads(call["function"]["arguments"]) for call in sent] == calls
        assert [call["index"] for call in sent] == [*range(len(calls))]
        assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
        assert usage == whole["usage"]

    @pytest.mark.parametrize(
        ("said", "reason", "warning"),
        [
            (CALL % "[1, 1]", "stop", "has arguments that its schema forbids"),
            ((CALL % "[1]")[:-15], "length", "inside a tool call"),
        ],
        ids=["broken", "cut"],
    )
    def test_a_call_that_cannot_be_run_is_only_described(self, said, reason, warning):
        whole = wire().whole([generation(said, reason)])["choices"][0]
        assert whole["message"] == {"role": "assistant", "content": "", "refusal": None}
        assert whole["finish_reason"] == reason
        assert warning in whole["warnings"][-1]
        choices, _ = streamed(said, reason)
        assert [choice["delta"] for choice in choices] == [{}]
        assert choices[-1]["warnings"] == whole["warnings"]

    @pytest.mark.parametrize("reason", ["timeout", "cancelled"])
    def test_endings_that_openai_does_not_have(self, reason):
        choice = wire().whole([generation("Lis", reason)])["choices"][0]
        assert choice["finish_reason"] == "length"
        assert reason in choice["warnings"][0]

    def test_the_engines_warnings_are_told(self):
        answer = generation("Lisbon", warnings=["max_new_tokens was lowered to 3."])
        assert wire().whole([answer])["choices"][0]["warnings"] == answer.warnings

    def test_logprobs_come_with_the_text_of_their_tokens(self):
        writer, token = wire(), TokenLogprob(7, b"Lis", -0.5, ((7, b"Lis", -0.5),))
        (choice,) = writer.choices(0, Chunk("Lis", logprobs=[token]))
        assert [each["token"] for each in choice["logprobs"]["content"]] == ["Lis"]
        held = writer.choices(0, Chunk("<tool", logprobs=[token]))
        assert held == []
        (text, last) = writer.choices(0, Chunk("s", generation=generation("Lis<tools")))
        assert len(text["logprobs"]["content"]) == 1
        assert last["logprobs"] is None


@pytest.mark.parametrize("usage", [False, True])
def test_events_are_the_json_of_all_their_fields(usage):
    writer = TextWire('m "é"', 1, 1)
    (choice,) = writer.choices(0, Chunk('Lis"\n'))
    data, _, rest = writer.events(include_usage=usage).event(choice).partition(b"\n\n")
    assert rest == b""
    frame = {**writer.last([generation("a")]), "choices": [choice]}
    del frame["usage"]
    expected = {**frame, "usage": None} if usage else frame
    assert data == b"data: " + encoded(expected)


class TestTexts:
    def test_tokens_that_are_part_of_a_character(self):
        logprobs = TextLogprobs()
        first = logprobs.told([TokenLogprob(1, b"a", -1.0), TokenLogprob(2, b"\xe2\x82", -2.0)])
        assert first["tokens"] == ["a", "bytes:\\xe2\\x82"]
        second = logprobs.told([TokenLogprob(3, b"\xac", -1.0), TokenLogprob(4, b"b", -1.0)])
        assert second["text_offset"] == [1, 2]

    def test_a_prompt_counts_once(self):
        answers = [generation("a"), generation("b"), generation("c"), generation("d")]
        usage = TextWire("m", 2, 2).whole(answers)["usage"]
        assert usage == {"prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 22}


def test_half_a_character_is_json_too():
    assert json.loads(encoded({"a": "\ud800é"})) == {"a": "\ud800é"}
