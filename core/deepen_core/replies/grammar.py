"""The grammar of an answer with calls, an object or thoughts, in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deepen_core.chat.thoughts import Thoughts
from deepen_core.replies.tools import CallPolicy, Tool
from deepen_core.replies.untagged import FENCES, untagged_rules

MOST_CALLS = 16
"""The maximum number of calls in one answer: a lost model would keep calling to the end."""

_TEXT = r"/(.|\n)*/"
_TEXT_AND_CALL = r"/(.|\n)*<tool_call>/"
_WITHOUT_CALL = r" & ~/(.|\n)*<tool_call>(.|\n)*/"
_FIELD = r'/[ \n\r\t]*,[ \n\r\t]*"(arguments|parameters)"[ \n\r\t]*:[ \n\r\t]?/'
_CLOSE = r"/[ \n\r\t]?\}/"
_BLANK = r"/\n{0,2}/"  # as models write between their thoughts and the answer


_PLACE = "#/properties/arguments"  # of the schema of arguments in that of a call


def reply_rules(
    tools: Sequence[Tool],
    calls: CallPolicy,
    parallel: bool,
    schema: Mapping[str, Any] | None,
    thoughts: Thoughts,
    *,
    untagged: bool,
) -> str:
    """Returns the grammar of an answer.

    Args:
        tools: The tools that may be called.
        calls: Whether they may or must be called.
        parallel: Whether there may be more than one call.
        schema: The schema that the answer follows instead of being a text.
        thoughts: Those that may come before.
        untagged: Whether calls may lack their tag.
    """
    rules: dict[str, str] = {}
    apart = _without_thoughts(thoughts)
    if tools and calls != "must" and schema is None:
        apart += f" & ~/{untagged_rules([tool.name for tool in tools])}(.|\\n)*/"
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
        if untagged:
            bodies.append("untagged")
            rules |= _untagged_rules(tools) if follows_text else _bare_rules(tools)
    rules["body"] = " | ".join(bodies)
    start = "body"
    if thoughts.mode != "never":
        rules |= _thought_rules(thoughts)
        turn, answer = (_terms(thoughts.terms(mark)) for mark in (thoughts.marks.turn, thoughts.marks.answer))
        blank = "" if "TEXT" in rules else _BLANK
        thought = f"thoughts {turn} {answer} {blank} body"
        start = thought if thoughts.mode == "opened" else f"begin {thought} | body"
        if answer and thoughts.mode == "optional":
            start += f" | {answer} body"
    return "\n".join(f"{name}: {rule}" for name, rule in {"start": start, **rules}.items())


def _thought_rules(thoughts: Thoughts) -> dict[str, str]:
    """Rules for the mark before thoughts, and for the thoughts with the mark after them."""
    begin, end = ([*thoughts.terms(mark)] for mark in (thoughts.marks.begin, thoughts.marks.end))
    rules = {}
    if thoughts.mode == "optional":
        spelled = isinstance(begin[0], str)
        rules["begin"] = f"/[ \\n]{{0,2}}{_escaped(thoughts.marks.begin)}/" if spelled else _terms(begin)
    if isinstance(end[0], str):
        return {**rules, "thoughts[lazy]": f"/(.|\\n)*{_escaped(thoughts.marks.end)}/"}
    return {**rules, "thoughts": f"{_TEXT} {_terms(end)}"}  # no text can hold a control token


def _without_thoughts(thoughts: Thoughts) -> str:
    """Returns what keeps a text from beginning as thoughts do; it cannot where they begin with a control token."""
    begin = next(thoughts.terms(thoughts.marks.begin))
    if thoughts.mode != "optional" or not isinstance(begin, str):
        return ""
    return f" & ~/[\\s\\x1c-\\x1f]*{_escaped(begin)}(.|\\n)*/"  # with the white space that the parser strips too


def _terms(mark: Iterable[str | int]) -> str:
    """Returns the texts and control tokens of a mark in the dialect of grammars."""
    return " ".join(_json(term) if isinstance(term, str) else f"<[{term}]>" for term in mark)


def _escaped(text: str) -> str:
    """Returns a regular expression for a text, inside slashes."""
    return re.escape(text).replace("/", r"\/").replace("\\\n", r"\n")


def _call_rules(tools: Sequence[Tool]) -> dict[str, str]:
    """Rules for what follows `<tool_call>`, the end tag included: one per tool, so references stay in its schema."""
    rules = {"call": " | ".join(f"call_{number}" for number in range(len(tools)))}
    for number, tool in enumerate(tools):
        begin, end = f'\n{{"name": {_json(tool.name)}, "arguments": ', "}\n</tool_call>"
        rules[f"call_{number}"] = f"{_json(begin)} arguments_{number} {_json(end)}"
        rules[f"arguments_{number}"] = f"%json {_json(tool.schema)}"
    return rules


def _untagged_rules(tools: Sequence[Tool]) -> dict[str, str]:
    """Rules for calls without their tag: from the name on, they are held as others are."""
    rules: dict[str, str] = {}
    kinds = []
    for number, tool in enumerate(tools):
        for kind, (begin, end) in enumerate(FENCES.items()):
            name = f"untagged_{number}_{kind}"
            kinds.append(name)
            rules[f"HEAD_{number}_{kind}"] = f"/{untagged_rules([tool.name], [begin])}/"
            closing = f' "\\n{end}"' if end else ""
            rules[name] = f"HEAD_{number}_{kind} {_FIELD} arguments_{number} {_CLOSE}{closing}"
    return {"untagged": " | ".join(kinds), **rules}


def _bare_rules(tools: Sequence[Tool]) -> dict[str, str]:
    """Rules for calls without their tag where the answer may be an object: all JSON, as the lexer cannot go back."""
    rules = {"untagged": " | ".join(f"bare_{number}" for number in range(len(tools)))}
    for number, tool in enumerate(tools):
        inner = {key: value for key, value in _moved(tool.schema).items() if key not in {"$schema", "$id"}}
        call = {"type": "object", "properties": {"name": {"const": tool.name}, "arguments": inner}}
        rules[f"bare_{number}"] = f"%json {_json({**call, 'required': ['name', 'arguments']})}"
    return rules


def _moved(value: Any) -> Any:
    """Returns a schema whose references lead into it where it stands in the schema of a call."""
    if isinstance(value, list):
        return [_moved(part) for part in value]
    if not isinstance(value, dict):
        return value
    moved = {key: _moved(part) for key, part in value.items()}
    reference = value.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = _PLACE + reference.removeprefix("#")
    return moved


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
