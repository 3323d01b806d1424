"""Objects instead of messages: `with_structured_output` on constrained decoding."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Literal, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import AddableDict, Runnable, RunnableGenerator, RunnableMap
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from deepen_core.errors import SamplingError
from deepen_integrations.langchain.tools import tool_definition

Method = Literal["json_schema", "function_calling", "json_mode"]


class StructuredOutput(BaseChatModel):
    """A chat model whose answers may be objects of a class or a schema, valid whatever its members say."""

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        include_raw: bool = False,
        method: Method = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """A model that answers with objects.

        Args:
            schema: A pydantic class, a TypedDict, a JSON schema, or a definition of a tool in OpenAI's form. Pydantic
                classes give objects of theirs, all others dicts. "json_mode" does without.
            include_raw: Give a dict of `raw` (the message), `parsed` and `parsing_error` (an error or None), and raise
                nothing that parsing comes to.
            method: How it is asked: "json_schema", for an answer that follows the schema; "function_calling", for a
                call of one tool of the schema's name; "json_mode", for any JSON object, or for the schema's if there is
                one.
            strict: Taken as other models take it. Answers follow the schema anyway.
            kwargs: Options of each call.

        Raises:
            SamplingError: For an unknown method, an unknown option, no schema where one is needed, or one that cannot
                be followed.
        """
        del strict
        if method not in {"json_schema", "function_calling", "json_mode"}:
            raise SamplingError(f"method is {method!r}: choose 'json_schema', 'function_calling' or 'json_mode'.")
        if schema is None and method != "json_mode":
            raise SamplingError(f"method={method!r} needs a schema; only 'json_mode' does without.")
        if schema is not None:
            kwargs["ls_structured_output_format"] = {"kwargs": {"method": method}, "schema": schema}
        pydantic_class = cast("type[BaseModel]", schema) if _is_model(schema) else None
        parser: Runnable[AIMessage, Any]
        if method == "function_calling":
            tool = tool_definition(cast("type", schema))
            name = tool["function"]["name"]
            choice: Any = {"type": "function", "function": {"name": name}}  # the name alone may be "any" or "none"
            model = self.bind_tools([tool], tool_choice=choice, parallel_tool_calls=False, **kwargs)
            parser = (
                PydanticToolsParser(tools=[pydantic_class], first_tool_only=True)
                if pydantic_class
                else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
            )
        else:
            response_format = {"type": "json_object"} if schema is None else _response_format(schema)
            model = self.bind_tools([], response_format=response_format, **kwargs)
            parser = PydanticOutputParser(pydantic_object=pydantic_class) if pydantic_class else JsonOutputParser()
        parser = RunnableGenerator(_whole, _awhole) | parser
        if not include_raw:
            return model | parser
        outcome = _Outcome(parser)
        return RunnableMap(raw=model) | RunnableGenerator(outcome.told, outcome.atold)


def _response_format(schema: Any) -> dict[str, Any]:
    """OpenAI's mapping for a schema of any kind."""
    if _is_model(schema) and issubclass(schema, BaseModel):  # LangChain's own way loses references to itself
        wanted = schema.model_json_schema()
    elif isinstance(schema, dict):
        function = schema.get("function", schema)
        wanted = function.get("parameters", function)
    else:
        function = tool_definition(schema)["function"]
        wanted = {"title": function["name"], **function["parameters"]}
    return {"type": "json_schema", "json_schema": {"name": wanted.get("title", "answer"), "schema": wanted}}


def _is_model(schema: Any) -> bool:
    """Whether it is a pydantic class, of either version."""
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def _whole(messages: Iterator[AIMessage]) -> Iterator[AIMessage]:
    """Messages as they come; an answer that was cut off raises, since LangChain's parsers would complete it."""
    for message in messages:
        _check_whole(message)
        yield message


async def _awhole(messages: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessage]:
    async for message in messages:
        _check_whole(message)
        yield message


@dataclass(frozen=True)
class _Outcome:
    """Adds to a message, or to all pieces of one, what it is parsed to or the error that this comes to."""

    parser: Runnable[AIMessage, Any]

    def told(self, chunks: Iterator[dict[str, Any]]) -> Iterator[AddableDict]:
        pieces = []
        for chunk in chunks:
            pieces.append(chunk["raw"])
            yield AddableDict(chunk)
        yield self._of(pieces)

    async def atold(self, chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[AddableDict]:
        pieces = []
        async for chunk in chunks:
            pieces.append(chunk["raw"])
            yield AddableDict(chunk)
        yield self._of(pieces)

    def _of(self, pieces: Sequence[AIMessage]) -> AddableDict:
        try:
            return AddableDict(parsed=self.parser.invoke(reduce(add, pieces)), parsing_error=None)
        except Exception as error:  # noqa: BLE001  told, whatever a class raises
            return AddableDict(parsed=None, parsing_error=error)


def _check_whole(message: AIMessage) -> None:
    reason = message.response_metadata.get("finish_reason", "stop")
    if reason != "stop":
        way_out = {"length": "raise max_tokens", "timeout": "raise timeout"}.get(reason, "ask again")
        raise OutputParserException(
            f"The answer ended ({reason}) before it was complete: {way_out}, or bound the schema's texts and lists "
            "(maxLength, maxItems).",
            llm_output=str(message.content),
        )
