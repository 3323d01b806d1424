"""Objects instead of messages, asked for in every way and by every kind of schema."""

import asyncio
import json
from enum import Enum
from functools import reduce
from itertools import product
from operator import add
from typing import Annotated, Literal

import jsonschema
import pytest
import random_schemas
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_parts import WAYS, Recorder, asked
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.v1 import BaseModel as BaseModelV1
from typing_extensions import TypedDict

from deepen_core.errors import SamplingError
from deepen_integrations.langchain import ChatDeepen
from deepen_integrations.langchain.tools import tool_definition

METHODS = ["json_schema", "function_calling", "json_mode"]


@pytest.fixture(scope="module")
def chat(terse):
    return ChatDeepen.from_ensemble(terse, max_tokens=300)


class Color(Enum):
    RED = "rouge"
    BLUE = "青"


class Size(BaseModel):
    cm: int = Field(ge=0, le=99)


class Hat(BaseModel):
    """A hat."""

    color: Color
    sizes: Annotated[list[Size], Field(max_length=2)]
    owner: Literal["Mira", "Jörg"] | None = None


class HatV1(BaseModelV1):
    """A hat."""

    color: Color
    owner: Literal["Mira", "Jörg"] = "Mira"


class HatDict(TypedDict):
    """A hat."""

    color: Annotated[Literal["rouge", "青"], ..., "which"]
    sizes: list[int]


class Tree(BaseModel):
    """A tree."""

    leaf: bool
    left: "Tree | None" = None


SCHEMA = {
    "title": "Hat",
    "description": "A hat.",
    "type": "object",
    "properties": {"color": {"enum": ["rouge", "青"]}, "size": {"$ref": "#/$defs/Size"}},
    "required": ["color", "size"],
    "$defs": {"Size": {"type": "object", "properties": {"cm": {"type": "integer"}}, "required": ["cm"]}},
}
FUNCTION = {"name": "hat", "description": "A hat.", "parameters": {k: v for k, v in SCHEMA.items() if k != "title"}}
KINDS = {
    "pydantic": Hat,
    "pydantic v1": HatV1,
    "TypedDict": HatDict,
    "JSON schema": SCHEMA,
    "recursive": Tree,
    "function": FUNCTION,
    "tool": {"type": "function", "function": FUNCTION},
}
# Every kind has one of the methods in the everyday tests.
PAIRS = [
    pytest.param(method, kind, marks=() if (place + number) % 3 == 0 else pytest.mark.slow)
    for (place, method), (number, kind) in product(enumerate(METHODS), enumerate(KINDS))
]


def check(value, schema):
    """It is of the class, or a dict that the schema allows."""
    if isinstance(schema, type) and issubclass(schema, (BaseModel, BaseModelV1)):
        assert type(value) is schema
    else:
        assert type(value) is dict
        jsonschema.Draft202012Validator(tool_definition(schema)["function"]["parameters"]).validate(value)


async def last_of(structured, way, config=None):
    """What comes out last: a stream gives objects that grow."""
    if way == "stream":
        return _last(list(structured.stream("hi", config)))
    if way == "astream":
        return _last([value async for value in structured.astream("hi", config)])
    return await asked(structured, way, "hi", config)


def _last(values):
    """The whole; what has the message beside it comes in pieces to be added."""
    return reduce(add, values) if isinstance(values[0], dict) and "raw" in values[0] else values[-1]


@pytest.mark.parametrize(("method", "kind"), PAIRS)
async def test_every_method_and_kind_gives_the_object_in_every_way(chat, method, kind):
    schema = KINDS[kind]
    structured = chat.with_structured_output(schema, method=method)
    expected = structured.invoke("hi")
    check(expected, schema)
    for way in ("ainvoke", "stream", "astream"):
        assert await last_of(structured, way) == expected
    assert structured.batch(["hi", "hi"]) == [expected] * 2


@pytest.mark.parametrize(("method", "kind"), PAIRS)
async def test_include_raw_gives_the_message_too(chat, method, kind):
    structured = chat.with_structured_output(KINDS[kind], method=method, include_raw=True)
    told = structured.invoke("hi")
    assert told.keys() == {"raw", "parsed", "parsing_error"}
    assert told["parsing_error"] is None
    check(told["parsed"], KINDS[kind])
    assert isinstance(told["raw"], AIMessage)
    assert told["raw"].usage_metadata["output_tokens"] > 3
    assert bool(told["raw"].tool_calls) == (method == "function_calling")
    later = await structured.ainvoke("hi")
    assert (later["parsed"], later["parsing_error"]) == (told["parsed"], None)
    assert (await last_of(structured, "astream"))["parsed"] == told["parsed"]


@pytest.mark.parametrize("name", ["none", "auto", "any"])
def test_a_schema_may_be_called_as_a_choice_of_tools_is(chat, name):
    schema = {"title": name, "description": "A size.", **Size.model_json_schema()} | {"title": name}
    found = chat.with_structured_output(schema, method="function_calling").invoke("Which?")
    assert found.keys() == {"cm"}


def test_json_mode_without_a_schema_is_any_object(chat):
    assert type(chat.with_structured_output(None, method="json_mode").invoke("hi", max_tokens=200)) is dict


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["pydantic", "pydantic v1", "TypedDict", "JSON schema"])
async def test_what_is_cut_off_raises(terse, method, way, kind):
    """LangChain's own parsers would complete it."""
    chat = ChatDeepen.from_ensemble(terse, max_tokens=12)
    with pytest.raises(OutputParserException, match=r"ended \(length\) before it was complete: raise max_tokens"):
        await last_of(chat.with_structured_output(KINDS[kind], method=method), way)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", WAYS)
async def test_what_is_cut_off_is_a_parsing_error(terse, method, way):
    chat = ChatDeepen.from_ensemble(terse, max_tokens=12)
    told = await last_of(chat.with_structured_output(Hat, method=method, include_raw=True), way)
    assert told["parsed"] is None
    assert isinstance(told["parsing_error"], OutputParserException)
    assert told["raw"].response_metadata["finish_reason"] == "length"
    assert told["raw"].tool_calls == []


class Picky(BaseModel):
    """What a schema cannot say."""

    digit: Literal[1, 2]

    @model_validator(mode="after")
    def _never(self):
        raise ValueError("not this one")


@pytest.mark.parametrize("method", METHODS)
def test_what_the_class_refuses_is_told(chat, method):
    with pytest.raises((OutputParserException, ValidationError), match="not this one"):
        chat.with_structured_output(Picky, method=method).invoke("hi")
    told = chat.with_structured_output(Picky, method=method, include_raw=True).invoke("hi")
    assert told["parsed"] is None
    assert "not this one" in str(told["parsing_error"])
    assert told["raw"].usage_metadata


@pytest.mark.parametrize("method", METHODS)
async def test_in_chains_and_traces(chat, method):
    recorder = Recorder()
    structured = chat.with_structured_output(Hat, method=method)
    chain = ChatPromptTemplate.from_messages([("human", "{q}")]) | structured
    hats = chain.batch([{"q": "hi"}, {"q": "ho"}], {"callbacks": [recorder]})
    assert all(type(hat) is Hat for hat in hats)
    told = recorder.starts[0]["options"]["ls_structured_output_format"]
    assert told["kwargs"] == {"method": method}
    assert structured.with_retry().invoke("hi") == structured.invoke("hi")
    assert structured.with_fallbacks([structured]).invoke("hi") == structured.invoke("hi")


@pytest.mark.parametrize(
    ("schema", "options", "error"),
    [
        (Hat, {"method": "xml"}, "method is 'xml'"),
        (None, {}, "needs a schema"),
        (None, {"method": "function_calling"}, "needs a schema"),
        (5, {}, "This is not a tool"),
        (int, {}, "This is not a tool"),
        (Hat, {"temprature": 1}, "did you mean 'temperature'"),
        (Hat, {"regex": "a"}, "response_format and regex are given"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(loads, schema, options, error):
    with pytest.raises(SamplingError, match=error):
        ChatDeepen(models=["a"]).with_structured_output(schema, **options)
    assert not loads


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("part", "error"),
    [
        ({"type": "array", "items": {}, "uniqueItems": True}, r"\$\.properties\.x: .*uniqueItems"),
        ({"$ref": "http://somewhere/else"}, r"\$\.properties\.x: .*lies outside"),
        ({"type": "string", "pattern": "(?<=a)b"}, r"\$\.properties\.x"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, r"at \$: .*'x' is unsatisfiable"),
    ],
)
def test_unsupported_keywords_raise_before_anything_is_loaded(loads, method, part, error):
    schema = {"title": "Odd", "type": "object", "properties": {"x": part}, "required": ["x"]}
    with pytest.raises(SamplingError, match=error):
        ChatDeepen(models=["a"]).with_structured_output(schema, method=method, strict=True)
    assert not loads


@pytest.mark.parametrize("way", WAYS)
async def test_a_response_format_is_bare_json(chat, way):
    wanted = {"type": "json_schema", "json_schema": {"name": "Hat", "schema": SCHEMA, "strict": True}}
    answer = await asked(chat, way, "hi", response_format=wanted)
    jsonschema.validate(json.loads(answer.text), SCHEMA)
    assert answer.tool_calls == []
    assert type(json.loads((await asked(chat, way, "hi", response_format={"type": "json_object"})).text)) is dict
    assert (await asked(chat, way, "hi", response_format={"type": "text"}, max_tokens=4)).text == (
        await asked(chat, way, "hi", max_tokens=4)
    ).text
    jsonschema.validate(json.loads((await asked(chat, way, "hi", response_format=Hat)).text), Hat.model_json_schema())


@pytest.mark.parametrize("way", WAYS)
async def test_the_engines_own_constraints_work_too(chat, way):
    jsonschema.validate(json.loads((await asked(chat, way, "hi", json_schema=SCHEMA)).text), SCHEMA)
    assert (await asked(chat, way, "hi", choices=["yes", "no"])).text in {"yes", "no"}


def as_arguments(schema):
    """A schema as that of a tool's arguments, which are an object: if it is of none, as that of one argument."""
    if schema.get("type") == "object" or "$ref" in schema:
        return schema
    value = {name: part for name, part in schema.items() if name != "$defs"}
    defs = {name: part for name, part in schema.items() if name == "$defs"}
    return {"type": "object", "properties": {"value": value}, "required": ["value"], **defs}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["tools", "response_format"])
async def test_two_hundred_random_schemas(terse, way):
    chat = ChatDeepen.from_ensemble(terse, max_tokens=400, temperature=1.0)
    schemas = [random_schemas.random_schema(seed) for seed in range(200)]
    if way == "tools":
        schemas = list(map(as_arguments, schemas))
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema}} for schema in schemas]
        bound = [chat.bind_tools([tool], tool_choice="f") for tool in tools]
    else:
        formats = [{"type": "json_schema", "json_schema": {"name": "a", "schema": schema}} for schema in schemas]
        bound = [chat.bind_tools([], response_format=wanted) for wanted in formats]
    answers = await asyncio.gather(*(one.ainvoke("hi", seed=seed) for seed, one in enumerate(bound)))
    whole = 0
    checker = jsonschema.FormatChecker(formats=["ipv4", "uuid"])  # as in the tests of the engine's schemas
    for schema, answer in zip(schemas, answers, strict=True):
        if answer.response_metadata["finish_reason"] == "length":
            assert answer.tool_calls == answer.invalid_tool_calls == []
            continue
        whole += 1
        (value,) = [call["args"] for call in answer.tool_calls] if way == "tools" else [json.loads(answer.text)]
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)
    assert whole >= 190
