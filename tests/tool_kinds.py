"""Tools of every kind that LangChain knows, and what to look at in their calls."""

from enum import Enum
from typing import Annotated, Literal

import jsonschema
from langchain_core.tools import InjectedToolArg, StructuredTool, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field
from pydantic.v1 import BaseModel as BaseModelV1
from typing_extensions import TypedDict

from deepen_integrations.langchain.tools import tool_definition


class Color(Enum):
    RED = "rouge"
    GREEN = "grün"
    BLUE = "青"


class Size(BaseModel):
    cm: int = Field(ge=0, le=99)
    exact: bool


class Tree(BaseModel):
    """Plant a tree."""

    kind: Color
    left: "Tree | None" = None


class Order(BaseModelV1):
    """Order something."""

    color: Color
    count: int


class Walk(TypedDict):
    """Go for a walk."""

    to: Annotated[Literal["Zürich", "東京"], ..., "where to"]
    steps: list[int]


@tool
def now() -> str:
    """Tell the time."""
    return "noon"


@tool
def nested(size: Size, sizes: Annotated[list[Size], Field(max_length=2)]) -> str:
    """Measure."""
    return "long"


@tool
def choose(
    color: Color, which: Literal["a", "ü", 'say "hi"'], either: bool | Literal["maybe"], name: str | None = None
) -> str:
    """Choose."""
    return "chosen"


@tool("später")
async def later(text: Annotated[str, Field(max_length=5)]) -> str:
    """Wait for it; its name is not ASCII."""
    return text


@tool
def whose(thing: Literal["hat"], user: Annotated[str, InjectedToolArg]) -> str:
    """Whose is it? The models never hear of the user."""
    return user


def plain(a: int, b: Literal[1, 2] = 1) -> int:
    """Add.

    Args:
        a: One.
        b: Another.
    """
    return a + b


async def _run(**arguments):
    return "done"


REMOTE = StructuredTool(
    name="remote",
    description="As a server describes it.",
    args_schema={"type": "object", "properties": {"at": {"$ref": "#/$defs/At"}}, "required": ["at"]}
    | {"$defs": {"At": {"enum": ["here", "there"]}}},
    coroutine=_run,
)
UNION = {
    "title": "move",
    "description": "Move.",
    "anyOf": [
        {"type": "object", "properties": {"left": {"type": "boolean"}}, "required": ["left"]},
        {"type": "object", "properties": {"right": {"type": "boolean"}}, "required": ["right"]},
    ],
}
ANTHROPIC = {"name": "look", "description": "Look.", "input_schema": {"type": "object", "properties": {}}}
OPENAI = convert_to_openai_tool(plain)
TOOLS = {
    "no arguments": now,
    "nested": nested,
    "enum, union, optional": choose,
    "unicode": later,
    "injected": whose,
    "function": plain,
    "recursive class": Tree,
    "class of pydantic v1": Order,
    "TypedDict": Walk,
    "schema with $ref": REMOTE,
    "union of objects": UNION,
    "as Anthropic has it": ANTHROPIC,
    "as OpenAI has it": OPENAI,
}


def check(calls, tools):
    """Every call is of a tool and valid by its schema, and has an id of its own."""
    functions = {d["function"]["name"]: d["function"] for d in map(tool_definition, tools)}
    for call in calls:
        schema = {"type": "object", **functions[call["name"]].get("parameters", {})}
        jsonschema.Draft202012Validator(schema).validate(call["args"])
        assert call["id"].startswith("call_")
    assert len({call["id"] for call in calls}) == len(calls)


def shown(message):
    """What a message says and calls, without ids."""
    return message.text, [(call["name"], call["args"]) for call in message.tool_calls]
