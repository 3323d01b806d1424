"""Answers that LlamaIndex reads by itself, held to the form that the reader expects.

Selectors, question generators, rerankers, evaluators and others ask for a form in the prompt and parse the answer.
Which form that is follows from the prompt's output parser or, where a function reads the answer, from LlamaIndex's own
prompt.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from inspect import getattr_static
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.indices.vector_store.retrievers.auto_retriever.output_parser import VectorStoreQueryOutputParser
from llama_index.core.output_parsers.pydantic import PYDANTIC_FORMAT_TMPL, PydanticOutputParser
from llama_index.core.output_parsers.selection import SelectionOutputParser
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.question_gen.output_parser import SubQuestionOutputParser
from llama_index.core.vector_stores.types import VectorStoreQuerySpec
from typing_extensions import Self

from deepen_core.config import SamplingParams
from deepen_core.config.constraints import can_constrain
from deepen_core.errors import SamplingError
from deepen_core.replies.argument_bounds import ArgumentBounds

if TYPE_CHECKING:
    from deepen_integrations.llama_index.llms import DeepenLLM

_Values = Mapping[str, Any]
_MOST_CHOICES = 100  # without a number of choices
_REASONS = r"[^\[]{1,%d}"
_HEAD, _, _TAIL = PYDANTIC_FORMAT_TMPL.partition("{schema}")
_TURN = "assistant:"  # what LlamaIndex writes after messages that it joins to a text
_OWN = "llama_index."


class HeldMessages(list[ChatMessage]):
    """Messages, with the options that hold their answer.

    Args:
        messages: The messages.
        held: A constraint, or nothing.
    """

    def __init__(self, messages: Iterable[ChatMessage], held: Mapping[str, Any]) -> None:
        super().__init__(messages)
        self.held = held


class HeldText(str):
    """A prompt, with the options that hold its answer."""

    __slots__ = ("held",)
    held: Mapping[str, Any]

    def __new__(cls, text: str, held: Mapping[str, Any]) -> Self:
        """Makes the text."""
        made = super().__new__(cls, text)
        made.held = held
        return made


def held_options(llm: DeepenLLM, prompt: BasePromptTemplate, values: _Values) -> dict[str, Any]:
    """Returns the constraint for answers to a prompt as an option of a call.

    There is none if what reads the answer is unknown, or if decoding cannot follow its form.

    Args:
        llm: The model.
        prompt: The prompt, with its output parser if it has one.
        values: The values of its variables.
    """
    if not can_constrain():
        return {}
    sampling, values = llm.sampling({}), {**prompt.kwargs, **values}
    parser = prompt.output_parser or llm.output_parser
    found: dict[str, Any] | None = None
    if parser is not None:
        parse = getattr_static(type(parser), "parse")  # a subclass may read something else
        make = next((make for kind, make in _PARSERS.items() if getattr_static(kind, "parse") is parse), None)
        found = None if make is None else {"json_schema": make(parser, values, sampling)}
    elif (regex := _regex(prompt.get_template(llm=llm), values, sampling)) is not None:
        found = {"regex": regex}
    return found if found is not None and _can_follow(found) else {}


def asked_schema(text: str) -> dict[str, Any] | None:
    """Returns the JSON schema in the instructions of `PydanticOutputParser` at the end of a text; None without them."""
    said = text.rstrip().removesuffix(_TURN).rstrip()
    if not can_constrain() or not said.endswith(_TAIL.rstrip()) or _HEAD not in said:
        return None
    schema = said.removesuffix(_TAIL.rstrip()).rpartition(_HEAD)[2]
    for spelled in (schema, schema.replace("{{", "{").replace("}}", "}")):  # LlamaIndex doubles braces
        try:
            read = json.loads(spelled)
        except (ValueError, RecursionError):
            continue
        return read if isinstance(read, dict) and _can_follow({"json_schema": read}) else None
    return None


def _can_follow(option: dict[str, Any]) -> bool:
    from deepen_core.constraints.grammar import grammar_of  # noqa: PLC0415  needs an extra

    try:
        grammar_of(SamplingParams.parse(option, SamplingError))
    except SamplingError:
        return False
    return True


def _bounded(schema: dict[str, Any], sampling: SamplingParams) -> dict[str, Any]:
    """Bounds texts in LlamaIndex's own schemas, which set no lengths: an answer may hold several, and needs none."""
    if sampling.max_argument_length is None:
        sampling = sampling.model_copy(update={"max_argument_length": max(1, sampling.answer_tokens // 2)})
    bounds = ArgumentBounds.from_params(sampling)
    return schema if bounds is None else bounds.bounded(schema)


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _list(item: dict[str, Any], most: int | None = None) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1, **({} if most is None else {"maxItems": most})}


def _selections(_parser: Any, values: _Values, sampling: SamplingParams) -> dict[str, Any]:
    choice = {"type": "integer", "minimum": 1, "maximum": int(values.get("num_choices") or _MOST_CHOICES)}
    selection = _object(choice=choice, reason={"type": "string"})
    most = values.get("max_outputs")  # a single selector has none
    return _bounded(selection if most is None else _list(selection, int(most)), sampling)


def _questions(_parser: Any, values: _Values, sampling: SamplingParams) -> dict[str, Any]:
    name: dict[str, Any] = {"type": "string"}
    with suppress(KeyError, TypeError, ValueError):  # of another prompt than LlamaIndex's
        name = {"enum": [*json.loads(values["tools_str"])]}
    return _bounded(_object(items=_list(_object(sub_question={"type": "string"}, tool_name=name))), sampling)


def _of_class(parser: Any, _values: _Values, sampling: SamplingParams) -> dict[str, Any]:
    schema = parser.output_cls.model_json_schema()
    return _bounded(schema, sampling) if parser.output_cls.__module__.startswith(_OWN) else schema


def _filters(_parser: Any, _values: _Values, sampling: SamplingParams) -> dict[str, Any]:
    return _bounded(VectorStoreQuerySpec.model_json_schema(), sampling)


_PARSERS: dict[type, Callable[[Any, _Values, SamplingParams], dict[str, Any]]] = {
    SelectionOutputParser: _selections,
    SubQuestionOutputParser: _questions,
    PydanticOutputParser: _of_class,
    VectorStoreQueryOutputParser: _filters,
}
"""Schemas of answers by the class whose `parse` reads them."""


def _documents(values: _Values, _sampling: SamplingParams) -> str:
    shown = values.get("context_messages")
    text = str(values.get("context_str", ""))
    number = len(shown) if shown is not None else len(re.findall(r"^Document \d+:$", text, re.MULTILINE))
    line = rf"Doc: ({'|'.join(map(str, range(1, max(1, number) + 1)))}), Relevance: ([1-9]|10)"
    return rf"{line}(\n{line}){{0,{max(1, number) - 1}}}"


def _reasoned(verdict: str) -> Callable[[_Values, SamplingParams], str]:
    return lambda _values, sampling: (_REASONS % sampling.answer_tokens) + verdict


_DECIDED = "YES|NO"
_PATH = r"JSONPath: \$(\.\.?([A-Za-z_]\w{0,40}|\*)|\[([0-9]{1,6}|\*|'[^'\\,\n]{1,40}')\]){0,12}"
_EVALUATION = "llama_index.core.evaluation"
_PROMPTS: dict[tuple[str, str], Callable[[_Values, SamplingParams], str]] = {
    ("llama_index.core.prompts.default_prompts", "DEFAULT_CHOICE_SELECT_PROMPT"): _documents,
    ("llama_index.core.prompts.chat_prompts", "CHAT_CONTENT_CHOICE_SELECT_PROMPT"): _documents,
    ("llama_index.core.prompts.default_prompts", "DEFAULT_JSON_PATH_PROMPT"): lambda _values, _sampling: _PATH,
    (f"{_EVALUATION}.correctness", "DEFAULT_EVAL_TEMPLATE"): lambda _values, sampling: (
        rf"([1-4](\.[05])?|5(\.0)?)\n[^\n]{{1,{sampling.answer_tokens}}}"
    ),
    (f"{_EVALUATION}.faithfulness", "DEFAULT_EVAL_TEMPLATE"): lambda _values, _sampling: _DECIDED,
    (f"{_EVALUATION}.faithfulness", "DEFAULT_REFINE_TEMPLATE"): lambda _values, _sampling: _DECIDED,
    (f"{_EVALUATION}.faithfulness", "LLAMA3_8B_EVAL_TEMPLATE"): lambda _values, _sampling: _DECIDED,
    (f"{_EVALUATION}.relevancy", "DEFAULT_EVAL_TEMPLATE"): lambda _values, _sampling: _DECIDED,
    (f"{_EVALUATION}.relevancy", "DEFAULT_REFINE_TEMPLATE"): lambda _values, _sampling: _DECIDED,
    (f"{_EVALUATION}.answer_relevancy", "DEFAULT_EVAL_TEMPLATE"): _reasoned(r"\[RESULT\] [0-2]"),
    (f"{_EVALUATION}.context_relevancy", "DEFAULT_EVAL_TEMPLATE"): _reasoned(r"\[RESULT\] ([0-3](\.[05])?|4(\.0)?)"),
    (f"{_EVALUATION}.context_relevancy", "DEFAULT_REFINE_TEMPLATE"): _reasoned(r"\[RESULT\] ([0-3](\.[05])?|4(\.0)?)"),
    (f"{_EVALUATION}.pairwise", "DEFAULT_EVAL_TEMPLATE"): _reasoned(r"\[\[[ABC]\]\]"),
}
"""Regular expressions for answers that functions read, by the module and the name of LlamaIndex's prompt."""


def _regex(template: str, values: _Values, sampling: SamplingParams) -> str | None:
    for (module, name), make in _PROMPTS.items():
        # A module that is not imported yet cannot have made this prompt.
        known = getattr(sys.modules.get(module), name, None)
        if known is not None and known.get_template() == template:
            return make(values, sampling)
    return None
