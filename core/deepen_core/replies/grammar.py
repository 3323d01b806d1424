"""The grammar of an answer with calls, an object or thoughts, in llguidance's dialect of Lark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from deepen_core.chat.template import Thinking
from deepen_core.replies.tools import CallPolicy, Tool

MOST_CALLS = 16
"""The maximum number of calls in one answer: a lost model would keep calling to the end."""

_TEXT = r"/(.|\n)*/"
_TEXT_AND_CALL = r"/(.|\n)*<tool_call>/"
_WITHOUT_CALL = r" & ~/(.|\n)*<tool_call>(.|\n)*/"
_THINK = r"/[ \n]{0,2}<think>/"
_WITHOUT_THOUGHTS = r" & ~/[\s\x1c-\x1f]*<think>(.|\n)*/"  # with the white space that the parser strips too
_THOUGHTS = r"/(.|\n)*<\/think>/"
_BLANK = r"/\n{0,2}/"  # as models write between their thoughts and the answer


def reply_rules(
    tools: Sequence[Tool], calls: CallPolicy, parallel: bool, schema: Mapping[str, Any] | None, thinking: Thinking
) -> str:
    """Returns the grammar of an answer.

    Args:
        tools: The tools that may be called.
        calls: Whether they may or must be called.
        parallel: Whether there may be more than one call.
        schema: The schema that the answer follows instead of being a text.
        thinking: "never", "optional", or "opened" if the prompt has begun the thoughts.
    """
    rules: dict[str, str] = {}
    apart = _WITHOUT_THOUGHTS if thinking == "optional" else ""
    bodies = []
    if calls != "must":
        bodies.append("object" if schema is not None else "TEXT")
        if schema is not None:
            rules["object"] = f"%json {_json(schema)}"
        else:
            rules["TEXT"] = _TEXT + (_WITHOUT_CALL if tools else "") + apart
    if tools:
        bodies.append("calls")
        follows_text = "TEXT" in rules
        rules["calls"] = "opening call" + (f' ("\\n<tool_call>" call){{0,{MOST_CALLS - 1}}}' if parallel else "")
        rules["opening[lazy]" if follows_text else "opening"] = "OPENING" if follows_text else '"<tool_call>"'
        if follows_text:
            rules["OPENING"] = _TEXT_AND_CALL + apart
        rules |= _call_rules(tools)
    rules["body"] = " | ".join(bodies)
    start = "body"
    if thinking != "never":
        rules["thoughts[lazy]"] = _THOUGHTS
        thought = f"thoughts {_BLANK} body" if "TEXT" not in rules else "thoughts body"
        start = thought if thinking == "opened" else f"{_THINK} {thought} | body"
    return "\n".join(f"{name}: {rule}" for name, rule in {"start": start, **rules}.items())


def _call_rules(tools: Sequence[Tool]) -> dict[str, str]:
    """Rules for what follows `<tool_call>`, the end tag included: one per tool, so references stay in its schema."""
    rules = {"call": " | ".join(f"call_{number}" for number in range(len(tools)))}
    for number, tool in enumerate(tools):
        begin, end = f'\n{{"name": {_json(tool.name)}, "arguments": ', "}\n</tool_call>"
        rules[f"call_{number}"] = f"{_json(begin)} arguments_{number} {_json(end)}"
        rules[f"arguments_{number}"] = f"%json {_json(tool.schema)}"
    return rules


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
