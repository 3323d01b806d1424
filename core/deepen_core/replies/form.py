"""The form that an answer must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from typing_extensions import Self

from deepen_core.chat.thoughts import Thoughts
from deepen_core.config import SamplingParams, resolve_sampling
from deepen_core.config.constraints import can_constrain, check_can_constrain, plain_schema
from deepen_core.errors import SamplingError
from deepen_core.replies.argument_bounds import ArgumentBounds
from deepen_core.replies.grammar import reply_rules
from deepen_core.replies.parser import ReplyParser
from deepen_core.replies.tools import CallPolicy, Tool, read_choice, read_tools
from deepen_core.replies.untagged import ARGUMENTS, spelled

if TYPE_CHECKING:
    from deepen_core.constraints.grammar import FollowedSchema
    from deepen_core.constraints.validation import SchemaCheck


@dataclass(frozen=True)
class ReplyForm:
    """The parts that an answer may or must have. Without any, it is a text."""

    tools: tuple[Tool, ...] = ()
    """The tools that the members know about."""
    calls: CallPolicy = "never"
    """Whether tools may or must be called."""
    named: str | None = None
    """The only tool that may be called."""
    parallel: bool = True
    """Whether one answer may hold several calls."""
    schema: Mapping[str, Any] | None = None
    """JSON schema that the answer follows instead of being a text."""
    strict: bool = False
    """Whether decoding must follow all of every schema; else a part that it cannot follow is checked afterwards."""

    @classmethod
    def from_openai(
        cls,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        parallel: bool | None = None,
        response_format: Any = None,
        strict: bool | None = None,
    ) -> Self:
        """Reads the corresponding options of chat APIs.

        Args:
            tools: Definitions in OpenAI's form.
            tool_choice: See `read_choice`.
            parallel: Whether one answer may hold several calls; by default, unless `tool_choice` names a tool.
            response_format: OpenAI's mapping of type "text", "json_object" or "json_schema", or a pydantic class.
            strict: Whether decoding must follow all of every schema. Definitions and mappings may ask for it as well.

        Raises:
            SamplingError: If any option has another form, or the chosen tool does not exist.
        """
        known = read_tools(tools or ())
        policy, named = read_choice(tool_choice, known)
        several = named is None if parallel is None else parallel
        described = response_format.get("json_schema") if isinstance(response_format, Mapping) else None
        told = strict or (isinstance(described, Mapping) and described.get("strict") is True)
        return cls(known, policy, named, several, response_schema(response_format), bool(told))

    @property
    def callable(self) -> tuple[Tool, ...]:
        """The tools that the answer may call."""
        if self.calls == "never":
            return ()
        return tuple(tool for tool in self.tools if self.named in {None, tool.name})

    @property
    def is_text(self) -> bool:
        """Whether the answer is only a text."""
        return not self.callable and self.schema is None

    @property
    def has_text(self) -> bool:
        """Whether the answer may be a text, which stop strings may end."""
        return self.schema is None and self.calls != "must"

    @cached_property
    def has_untagged(self) -> bool:
        """Whether calls may lack their tag: not where an object that the answer may be can look like one."""
        if self.calls != "maybe":
            return False
        if self._object is None:
            return True
        from deepen_core.constraints.grammar import json_may_begin  # noqa: PLC0415  needs an extra

        begins = (f'{{"name": {spelled(tool.name)}, "{field}":' for tool in self.callable for field in ARGUMENTS)
        return not any(json_may_begin(self._object, begin) for begin in begins)

    def params(self, given: SamplingParams, thoughts: Thoughts) -> SamplingParams:
        """Returns sampling options that constrain an answer to this form.

        Args:
            given: The caller's options.
            thoughts: Those that may come before.

        Raises:
            SamplingError: If the caller has constrained the answer in another way, or the extra `structured` is not
                installed.
        """
        if self.is_text:
            return given
        if given.constraint is not None:
            what = "tools that may be called" if self.callable else "response_format"
            raise SamplingError(f"{what} and {given.constraint} are given; an answer can have one constraint.")
        check_can_constrain("Calling tools" if self.callable else "An answer as an object (response_format, a class)")
        followed, bounds = self._followed, ArgumentBounds.from_params(given)
        schemas = {tool.name: followed[tool.name].schema if followed else tool.schema for tool in self.callable}
        tools = [
            replace(tool, parameters=bounds.bounded(schemas[tool.name]) if bounds else schemas[tool.name])
            for tool in self.callable
        ]
        rules = reply_rules(tools, self.calls, self.parallel, self._object, thoughts, untagged=self.has_untagged)
        # Cut at a stop string, an answer would no longer be a call or an object.
        return resolve_sampling(given, {"grammar": rules} if self.has_text else {"grammar": rules, "stop": ()})

    def parser(self, thoughts: Thoughts, given: SamplingParams | None = None) -> ReplyParser:
        """Returns a parser that splits an answer into its parts.

        Args:
            thoughts: As for `params`.
            given: The caller's options, if the parser is to warn of arguments as long as they may be.
        """
        bounds = None if given is None else ArgumentBounds.from_params(given)
        checks = {name: followed.check for name, followed in self._followed.items() if followed.check}
        return ReplyParser(
            [tool.name for tool in self.callable],
            thoughts,
            has_text=self.has_text,
            untagged=self.has_untagged,
            bounds=bounds,
            checks=checks,
        )

    @property
    def _object(self) -> Mapping[str, Any] | None:
        """What decoding follows of the answer's own schema."""
        return self._followed[None].schema if None in self._followed else self.schema

    @property
    def schema_check(self) -> SchemaCheck | None:
        """Checks the answer's object, if decoding does not follow all of its schema."""
        followed = self._followed.get(None)
        return None if followed is None else followed.check

    @cached_property
    def _followed(self) -> dict[str | None, FollowedSchema]:
        """What decoding follows of the tools' schemas, by name, and of the answer's own, by None.

        Empty without the extra that decoding needs to follow any; constraints say so.
        """
        if self.is_text or not can_constrain():
            return {}
        from deepen_core.constraints.grammar import followed_schema  # noqa: PLC0415  needs an extra

        found: dict[str | None, FollowedSchema] = {
            tool.name: followed_schema(tool.schema, f"tool {tool.name!r}", strict=self.strict or tool.strict)
            for tool in self.callable
        }
        if self.schema is not None:
            name = self.schema.get("title") or "the answer"
            found[None] = followed_schema(self.schema, f"object {name!r}", strict=self.strict)
        return found


def response_schema(response_format: Any) -> dict[str, Any] | None:
    """Returns the JSON schema that a response format asks for, or None for text.

    Raises:
        SamplingError: If it has an unknown form.
    """
    if isinstance(response_format, type) and issubclass(response_format, BaseModel):
        return plain_schema(response_format)
    kind = response_format.get("type") if isinstance(response_format, Mapping) else response_format
    if kind is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema" and isinstance(response_format, Mapping):
        described = response_format.get("json_schema")
        schema = described.get("schema") if isinstance(described, Mapping) else None
        if isinstance(schema, Mapping):
            try:
                return plain_schema(schema)
            except ValueError as problem:
                raise SamplingError(f"The schema of response_format is not valid: {problem}.") from problem
    raise SamplingError(
        f"response_format is {str(response_format)[:200]!r}: give {{'type': 'json_schema', 'json_schema': {{'name': "
        "..., 'schema': ...}}, {'type': 'json_object'}, {'type': 'text'} or a pydantic class."
    )
