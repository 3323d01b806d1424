"""The grammar of one step of ReAct: a thought, and then a tool with its input as JSON, or the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from deepen_core.config import SamplingParams
from deepen_core.errors import SamplingError
from deepen_core.replies.argument_bounds import ArgumentBounds
from deepen_core.replies.tools import Tool

_TOKENS_PER_WORD = 3
_WORD = re.compile(r"[^\n() ]+")
_NO_KEYWORD = r" & ~/(.|\n)*(Action|Answer|Observation):(.|\n)*/"  # what reads a step searches all of it for these


def react_rules(tools: Sequence[Tool], params: SamplingParams) -> str:
    """Returns the grammar of a step, in llguidance's dialect of Lark.

    It has the form `Thought: ...`, and on the lines after that `Action: name` and `Action Input: {...}`, or
    `Answer: ...`. A thought is one line, of at most a third of `max_new_tokens` words, so that it leaves tokens for the
    rest.

    Args:
        tools: The tools that may be used. The input is valid for the tool's schema, within the bounds of tool calls.
        params: Options of the request, for these bounds.

    Raises:
        SamplingError: If the name of a tool holds a blank or a bracket, which would end it.
    """
    from deepen_core.constraints.grammar import followed_schema  # noqa: PLC0415  needs an extra

    bounds = ArgumentBounds.from_params(params)
    words = params.answer_tokens // _TOKENS_PER_WORD
    rules = {"start": f'"Thought: " WORD{{0,{words}}} LAST step'}
    rules |= {"WORD": r"/[^ \n]+ /" + _NO_KEYWORD, "LAST": r"/[^ \n]+\n/" + _NO_KEYWORD}
    steps = ['"Answer: " ANSWER']
    for number, tool in enumerate(tools):
        if not _WORD.fullmatch(tool.name):
            raise SamplingError(
                f"ReAct cannot use the tool {tool.name!r}: give it a name without blanks, line breaks and brackets."
            )
        begin = json.dumps(f"Action: {tool.name}\nAction Input: ", ensure_ascii=False)
        steps.append(f"{begin} input_{number}")
        schema = followed_schema(tool.schema, f"tool {tool.name!r}", strict=tool.strict).schema
        schema = schema if bounds is None else bounds.bounded(schema)
        rules[f"input_{number}"] = f"%json {json.dumps(schema, ensure_ascii=False)}"
    rules |= {"step": " | ".join(steps), "ANSWER": r"/[^\n ](.|\n)*/"}
    return "\n".join(f"{name}: {rule}" for name, rule in rules.items())
