"""Objects instead of messages: `with_structured_output` by constrained decoding."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, Literal, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import AddableDict, Runnable, RunnableGenerator, RunnableMap
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from deepen_core import errors
from deepen_core.errors import SamplingError
from deepen_core.replies import ReplyForm
from deepen_integrations.langchain.errors import StructuredAnswerError
from deepen_integrations.langchain.tools import tool_definition

if TYPE_CHECKING:
    from deepen_core.constraints.validation import SchemaCheck

_INVALID = "The answer's call of its tool is cut off, or breaks the schema where decoding cannot follow it."
Method = Literal["json_schema", "function_calling", "json_mode"]


def structured_output(
    bind_tools: Callable[..., Runnable[LanguageModelInput, AIMessage]],
    schema: dict[str, Any] | type | None,
    method: Method,
    *,
    include_raw: bool,
    options: dict[str, Any],
) -> Runnable[LanguageModelInput, Any]:
    """Chains a chat model with a parser of its answers.

    Args:
        bind_tools: The model's method.
        schema: See `ChatDeepen.with_structured_output`, as for the other arguments.
        method: How the object is requested.
        include_raw: Return the message and the parsing error as well.
        options: Options of each call.

    Raises:
        SamplingError: For an unknown method or option, a missing schema, or one that decoding cannot follow.
    """
    if method not in {"json_schema", "function_calling", "json_mode"}:
        raise SamplingError(f"method is {method!r}: choose 'json_schema', 'function_calling' or 'json_mode'.")
    if schema is None and method != "json_mode":
        raise SamplingError(f"method={method!r} needs a schema; only 'json_mode' works without one.")
    if isinstance(schema, type) and issubclass(schema, Enum):
        model = bind_tools([], choices=_choices(schema, include_raw=include_raw), **options)
        return model | _Completed(None).passed() | _Member(schema).parse
    if schema is not None:
        options = {**options, "ls_structured_output_format": {"kwargs": {"method": method}, "schema": schema}}
    check: SchemaCheck | None = None
    pydantic_class = cast("type[BaseModel]", schema) if _is_model(schema) else None
    parser: Runnable[AIMessage, Any]
    if method == "function_calling":
        tool = tool_definition(cast("type", schema))
        name = tool["function"]["name"]
        choice: Any = {"type": "function", "function": {"name": name}}  # the bare name could be "any" or "none"
        model = bind_tools([tool], tool_choice=choice, parallel_tool_calls=False, **options)
        parser = (
            PydanticToolsParser(tools=[pydantic_class], first_tool_only=True)
            if pydantic_class
            else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        )
    else:
        response_format = {"type": "json_object"} if schema is None else _response_format(schema)
        model = bind_tools([], response_format=response_format, **options)
        check = ReplyForm.from_openai(response_format=response_format, strict=options.get("strict")).schema_check
        parser = PydanticOutputParser(pydantic_object=pydantic_class) if pydantic_class else JsonOutputParser()
    parser = _Completed(check).passed() | parser
    if not include_raw:
        return model | parser
    outcome = _Outcome(parser)
    return RunnableMap(raw=model) | RunnableGenerator(outcome.added, outcome.aadded)


def _response_format(schema: Any) -> dict[str, Any]:
    """Returns OpenAI's mapping for a schema of any kind."""
    if _is_model(schema) and issubclass(schema, BaseModel):  # LangChain's own conversion loses self-references
        wanted = schema.model_json_schema()
    elif isinstance(schema, dict):
        function = schema.get("function", schema)
        wanted = function.get("parameters", function)
    else:
        function = tool_definition(schema)["function"]
        wanted = {"title": function["name"], **function["parameters"]}
    return {"type": "json_schema", "json_schema": {"name": wanted.get("title", "answer"), "schema": wanted}}


def _choices(kind: type[Enum], *, include_raw: bool) -> list[str]:
    """Returns the texts of an enumeration's values.

    Raises:
        SamplingError: If they are no texts, or too much is asked for.
    """
    values = [member.value for member in kind]
    if include_raw or not values or not all(isinstance(value, str) and value for value in values):
        raise SamplingError(
            f"{kind.__name__} is an enumeration: its values must be texts and include_raw must be False. Otherwise "
            "make it the field of a pydantic class."
        )
    return values


@dataclass(frozen=True)
class _Member:
    """Reads an answer as a member of an enumeration."""

    kind: type[Enum]

    def parse(self, message: AIMessage) -> Enum:
        return self.kind(message.text)


def _is_model(schema: Any) -> bool:
    """Whether it is a pydantic class, of version 1 or 2."""
    return isinstance(schema, type) and is_basemodel_subclass(schema)


@dataclass(frozen=True)
class _Completed:
    """Passes messages on. An answer that is truncated or breaks its schema raises: LangChain's parsers would take it.

    Args:
        check: Checks objects, where decoding does not follow all of their schema.
    """

    check: SchemaCheck | None

    def passed(self) -> Runnable[AIMessage, AIMessage]:
        """The messages that pass."""
        return RunnableGenerator(self.read, self.aread)

    def read(self, messages: Iterator[AIMessage]) -> Iterator[AIMessage]:
        seen: list[AIMessage] = []
        for message in messages:
            seen.append(message)
            self._raise_if_invalid(seen)
            yield message

    async def aread(self, messages: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessage]:
        seen: list[AIMessage] = []
        async for message in messages:
            seen.append(message)
            self._raise_if_invalid(seen)
            yield message

    def _raise_if_invalid(self, seen: Sequence[AIMessage]) -> None:
        """Raises once the last piece is there, which has the reason why the answer ended."""
        reason = seen[-1].response_metadata.get("finish_reason")
        if reason is None:
            return
        said = "".join(message.text for message in seen)
        if reason not in {"stop", "tool_calls"}:
            way_out = {"length": "raise max_tokens", "timeout": "raise timeout"}.get(reason, "ask again")
            raise StructuredAnswerError(
                f"The answer ended ({reason}) before it was complete: {way_out}, or bound the schema's texts and lists "
                "(maxLength, maxItems).",
                llm_output=said,
            )
        for call in (call for message in seen for call in message.invalid_tool_calls):
            raise StructuredAnswerError(call["error"] or _INVALID, llm_output=call["args"])
        if self.check is not None and (problem := self.check.problem(json.loads(said))):
            error = errors.StructuredAnswerError.from_broken_schema("object", problem)
            raise StructuredAnswerError(str(error), llm_output=said)


@dataclass(frozen=True)
class _Outcome:
    """Adds the parsed object, or the parsing error, to a message or to all pieces of one."""

    parser: Runnable[AIMessage, Any]

    def added(self, chunks: Iterator[dict[str, Any]]) -> Iterator[AddableDict]:
        pieces = []
        for chunk in chunks:
            pieces.append(chunk["raw"])
            yield AddableDict(chunk)
        yield self._parsed(pieces)

    async def aadded(self, chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[AddableDict]:
        pieces = []
        async for chunk in chunks:
            pieces.append(chunk["raw"])
            yield AddableDict(chunk)
        yield self._parsed(pieces)

    def _parsed(self, pieces: Sequence[AIMessage]) -> AddableDict:
        try:
            return AddableDict(parsed=self.parser.invoke(reduce(add, pieces)), parsing_error=None)
        except Exception as error:  # noqa: BLE001  reported, whatever a class raises
            return AddableDict(parsed=None, parsing_error=error)
