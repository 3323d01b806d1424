"""Schemas as tools in the wild have them: followed as far as decoding can, the rest checked in the finished answer."""

import contextlib
import json
import re
import warnings

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, Field
from wild_schemas import WILD

from deepen_core.chat.thoughts import Thoughts
from deepen_core.config import SamplingParams
from deepen_core.constraints import grammar
from deepen_core.constraints.grammar import followed_schema, grammar_of
from deepen_core.constraints.json_schema import prepared
from deepen_core.errors import NoToolCallError, SamplingError, SchemaWarning, StructuredAnswerError
from deepen_core.replies import BrokenCall, Call, ReplyForm
from deepen_integrations.langchain import ChatDeepen
from deepen_integrations.llama_index import DeepenLLM, DeepenToolLLM

LOOSE = [name for name, (_, broken) in WILD.items() if broken is not None]
TAGS = {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}
CALL = '<tool_call>\n{"name": "%s", "arguments": {"tags": %s}}\n</tool_call>'


@pytest.fixture(autouse=True)
def told_anew():
    """Whatever an earlier test in this process was warned about: a warning is told once in a process."""
    grammar._followed.cache_clear()


def definition(name, schema):
    return {"type": "function", "function": {"name": name, "description": "", "parameters": schema}}


def tagged(name):
    """A tool whose schema is relaxed."""
    return definition(name, {"type": "object", "properties": {"tags": TAGS}, "required": ["tags"]})


def warned(name):
    loose = WILD[name][1] is not None
    return pytest.warns(SchemaWarning, match=f"Tool '{name}': .*strict=True") if loose else contextlib.nullcontext()


@pytest.mark.parametrize("name", WILD)
def test_every_one_can_be_bound_and_only_what_is_relaxed_is_told(name):
    schema, _ = WILD[name]
    form = ReplyForm.from_openai([definition(name, schema)], "any")
    with warned(name):
        params = form.params(SamplingParams(), Thoughts())
    assert grammar_of(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ReplyForm.from_openai([definition(name, schema)], "any").params(SamplingParams(), Thoughts())  # once


@pytest.mark.parametrize("name", LOOSE)
def test_what_is_relaxed_is_checked_in_the_finished_call_or_refused(name):
    schema, broken = WILD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser = ReplyForm.from_openai([definition(name, schema)], "any").parser(Thoughts())
    said = json.dumps({"name": name, "arguments": broken})
    (part,) = [*parser.feed(f"<tool_call>\n{said}\n</tool_call>"), *parser.finish()]
    assert isinstance(part, BrokenCall)
    assert part.name == name
    assert part.problem.startswith("at $")
    with pytest.raises(SamplingError, match=f"^Tool '{name}': The schema cannot be followed at"):
        ReplyForm.from_openai([definition(name, schema)], "any", strict=True).params(SamplingParams(), Thoughts())


def test_keys_that_are_named_are_held_in_other_words():
    colours = {"$defs": {"Colour": {"enum": ["red", "blue"], "type": "string", "title": "Colour"}}}
    named = {"type": "object", "additionalProperties": {"type": "integer"}, "propertyNames": {"$ref": "#/$defs/Colour"}}
    followed = followed_schema({**named, **colours}, "object 'colours'")
    assert followed.check is None
    assert followed.schema["properties"] == {"red": {"type": "integer"}, "blue": {"type": "integer"}}
    assert followed.schema["additionalProperties"] is False


def test_a_pattern_that_only_decoding_knows_does_not_stop_the_check():
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": r"^\p{L}+$"}, "tags": TAGS}}
    with pytest.warns(SchemaWarning):
        check = followed_schema(schema, "object 'letters'").check
    assert check.problem({"a": "é", "tags": ["a"]}) == ""
    assert check.problem({"a": "é", "tags": ["a", "a"]}).startswith("at $.tags, ")


def test_a_number_of_more_than_64_bits_is_told():
    schema = {"type": "object", "properties": {"a": {"const": 2**70}}}
    with pytest.raises(SamplingError, match=f"^Object 'large'.*{2**70}"):
        followed_schema(schema, "object 'large'", strict=True)


def test_langchain_has_a_broken_call_among_the_invalid_ones(ensemble):
    ensemble.has_chat_template = True
    ensemble.default = CALL % ("invalid", '["a", "a"]') + "\n" + CALL % ("invalid", '["a", "b"]')
    with pytest.warns(SchemaWarning, match=r"Tool 'invalid': .*uniqueItems at"):
        chat = ChatDeepen.from_ensemble(ensemble).bind_tools([tagged("invalid")], tool_choice="any")
    answer, (first, *rest) = chat.invoke("hi"), chat.stream("hi")
    for chunk in rest:
        first += chunk
    for message in (answer, first):
        assert [call["args"] for call in message.tool_calls] == [{"tags": ["a", "b"]}]
        (broken,) = message.invalid_tool_calls
        assert (broken["name"], message.content) == ("invalid", "")
        assert '{"tags": ["a", "a"]}' in broken["args"]
    assert "schema forbids: at $.tags" in answer.invalid_tool_calls[0]["error"]


def test_an_answer_that_breaks_its_schema_says_so(ensemble):
    """Where it is not parsed by `with_structured_output`, which raises."""
    ensemble.has_chat_template = True
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "told", "schema": tagged("told")["function"]["parameters"]},
    }
    chat, llm = ChatDeepen.from_ensemble(ensemble), DeepenToolLLM.from_ensemble(ensemble)
    for said, told in (('["a", "a"]', "The answer breaks its schema where .*: at \\$.tags"), ('["a", "b"]', None)):
        ensemble.default = f'{{"tags": {said}}}'
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = chat.invoke("hi", response_format=wanted)
            chunks = list(chat.stream("hi", response_format=wanted))
            response = llm.chat([ChatMessage(content="hi")], response_format=wanted)
        for metadata in (answer.response_metadata, chunks[-1].response_metadata, response.raw):
            (warning,) = metadata.get("warnings", []) if told else (None,)
            assert re.match(told, warning) if told else "warnings" not in metadata


def test_strict_refuses_in_langchain_for_a_model_or_for_a_call(ensemble):
    chat = ChatDeepen.from_ensemble(ensemble)
    with pytest.raises(SamplingError, match=r"^Tool 'strict': .* at \$\.properties\.tags: .*uniqueItems"):
        chat.bind_tools([tagged("strict")], strict=True)
    own = ChatDeepen.from_ensemble(ensemble, strict=True)
    with pytest.raises(SamplingError, match=r"^Tool 'strict'"):
        own.bind_tools([tagged("strict")])
    with pytest.warns(SchemaWarning):
        own.bind_tools([tagged("strict")], strict=False)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_objects_that_break_their_schema_raise_in_langchain(ensemble, method):
    ensemble.has_chat_template = True
    name = f"Tags_{method}"
    bare = method == "json_schema"
    ensemble.default = '{"tags": ["a", "a"]}' if bare else CALL % (name, '["a", "a"]')
    schema = {"title": name, **tagged(name)["function"]["parameters"]}
    chat = ChatDeepen.from_ensemble(ensemble)
    with pytest.warns(SchemaWarning, match=name):
        wanted = chat.with_structured_output(schema, method=method, include_raw=True)
    plain = chat.with_structured_output(schema, method=method)
    with pytest.raises(StructuredAnswerError, match=r"\$\.tags"):
        plain.invoke("hi")
    with pytest.raises(StructuredAnswerError):
        list(plain.stream("hi"))
    told = wanted.invoke("hi")
    assert (told["parsed"], type(told["parsing_error"]).__name__) == (None, "StructuredAnswerError")
    ensemble.default = ensemble.default.replace('"a", "a"', '"b", "a"')
    assert plain.invoke("hi") == {"tags": ["b", "a"]}


def test_llama_index_raises_for_a_broken_call(ensemble):
    ensemble.has_chat_template = True
    ensemble.default = CALL % ("broken", '["b", "b"]')
    llm, asked = DeepenToolLLM.from_ensemble(ensemble), [ChatMessage(content="hi")]
    with pytest.warns(SchemaWarning), pytest.raises(NoToolCallError, match=r"tool 'broken' .*forbids: at \$\.tags"):
        llm.chat(asked, tools=[tagged("broken")])
    with pytest.raises(SamplingError, match=r"^Tool 'broken'"):
        llm.chat(asked, tools=[tagged("broken")], strict=True)
    with pytest.raises(SamplingError, match=r"^Tool 'broken'"):
        DeepenToolLLM.from_ensemble(ensemble, strict=True).chat(asked, tools=[tagged("broken")])


class Tagged(BaseModel):
    tags: set[str] = Field(max_length=4)


def test_llama_index_raises_for_a_broken_object(ensemble):
    ensemble.default = '{"tags": ["b", "b"]}'
    llm, prompt = DeepenLLM.from_ensemble(ensemble), PromptTemplate("hi")
    with (
        pytest.warns(SchemaWarning, match="Object 'Tagged'"),
        pytest.raises(StructuredAnswerError, match=r"at \$\.tags"),
    ):
        llm.structured_predict(Tagged, prompt)
    assert '"uniqueItems": true' in ensemble.requests[-1][0]  # the members are told all of the schema
    ensemble.default = '{"tags": ["b", "a"]}'
    assert llm.structured_predict(Tagged, prompt).tags == {"a", "b"}
    with pytest.raises(SamplingError, match=r"^Object 'Tagged'"):
        llm.structured_predict(Tagged, prompt, llm_kwargs={"strict": True})


def test_a_call_that_keeps_to_its_schema_is_a_call():
    with pytest.warns(SchemaWarning):
        parser = ReplyForm.from_openai([tagged("kept")], "any").parser(Thoughts())
    assert parser.feed(CALL % ("kept", '["a"]'))[0] == Call("kept", {"tags": ["a"]})


@pytest.mark.parametrize(("name", "kept"), [("date", True), ("uri", False), ("path", False)])
def test_formats_that_a_release_of_llguidance_lacks_are_annotations(name, kept):
    def problem(schema):
        return "Unknown format: uri" if schema.get("format") == "uri" else ""

    text = {"type": "string", "format": name}
    assert prepared(text, problem) == (text if kept else {"type": "string"})
