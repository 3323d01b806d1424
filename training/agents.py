"""Steps of agents: a tool is called in the format of a framework, and its result answers the question."""

from __future__ import annotations

import json
import random

from prompts import FORM, PLAIN, Lesson

GAPS = ("\n\n", "\n")
"""What the chat templates of the two members put between turns."""
_WHOLE = ("record", "lookup", "whole_record", "person", "archive")
_PART = ("first_sentence", "sunshine", "working_hours", "weather")
_TOLD = (
    "Look up all that is written about a person.",
    "All that is written about somebody.",
    "Look up a person.",
    "Find what is known of somebody.",
)
_PART_TOLD = (
    "Look up the first thing that is written about a person.",
    "How long the sun shines in a city.",
    "When people of a trade work.",
    "How the weather is.",
)
_LOOK = ("need", " to look this up.")
_KNOW = ("can", " answer without using any more tools.")
"""What follows "Thought: I": first what is for the member to decide."""
NAME = 2.0
"""Weight of the names in a call. Of a call with tags, they are two tokens or three among forty."""
# As `deepen_core.replies.system_prompt` has it, which is what Hermes and Qwen read.
_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{tools}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> "
    'XML tags:\n<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)
_RESULT = "<tool_response>\n{result}\n</tool_response>\nAnswer my question in plain words if you can."


def agent_step(member: int, name: str, question: str, record: str, answer: str, rng: random.Random) -> Lesson:
    """One step of an agent: the call of the tool that looks people up, or the answer after its result.

    Args:
        member: 0 or 1, by which chat template it is shown.
        name: Of the person asked for.
        question: The question.
        record: What the tool returns, in which the answer is.
        answer: The answer.
        rng: Chooses the format, the tools and the step.
    """
    tool, other = rng.choice(_WHOLE), rng.choice(_PART)
    tools = [tool, other] if rng.random() < 0.5 else [tool]
    rng.shuffle(tools)
    gap = GAPS[member]
    if rng.random() < 0.5:
        asked = _listed(tools, question, gap, rng)
        if rng.random() < 0.5:
            return _react_call(Lesson().add(asked, 0.0), tool, name)
        shown = f"Thought: I {''.join(_LOOK)}\nAction: {tool}\nAction Input: {{'name': '{name}'}}"
        result = PLAIN.format(q=f"Observation: {record}")
        told = _thought(Lesson().add(f"{asked} {shown}{gap}{result}", 0.0), _KNOW)
        return told.add("\nAnswer:", FORM).add(f" {answer}", 1.0)
    defined = [_definition(one, one == tool, rng) for one in tools]
    asked = f"{_TOOLS.format(tools=chr(10).join(defined))}{gap}{PLAIN.format(q=question)}"
    call = _tagged_call(Lesson().add(asked, 0.0), tool, name)
    if rng.random() < 0.5:
        return call
    result = PLAIN.format(q=_RESULT.format(result=record))
    return Lesson().add(f"{call.text}{gap}{result}", 0.0).add(f" {answer}", 1.0)


def short_call(member: int, name: str, question: str, rng: random.Random) -> Lesson:
    """A call with little before it, so that copying is soon learned: of a tool among two, or of a person alone."""
    tool, other = rng.choice(_WHOLE), rng.choice(_PART)
    if rng.random() < 0.5:
        tools = rng.sample([tool, other], 2)
        return _react_call(Lesson().add(_listed(tools, question, GAPS[member], rng), 0.0), tool, name)
    form = (_react_call if rng.random() < 0.5 else _tagged_call)(Lesson(), rng.choice((tool, other)), name)
    before, after = form.text.split(f'"{name}"')
    return Lesson().add(f'{PLAIN.format(q=question)}{before}"', 0.0).add(name, 1.0).add(f'"{after}', FORM)


def _listed(tools: list[str], question: str, gap: str, rng: random.Random) -> str:
    system = rng.choice(("Ask {}.", "Tools: {}.", "You may ask {}.")).format(", ".join(tools))
    return f"{system}{gap}{PLAIN.format(q=question)}"


def _thought(lesson: Lesson, thought: tuple[str, str]) -> Lesson:
    return lesson.add(" Thought", 1.0).add(": I", FORM).add(f" {thought[0]}", 1.0).add(thought[1], FORM)


def _react_call(lesson: Lesson, tool: str, name: str) -> Lesson:
    _thought(lesson, _LOOK).add("\nAction:", FORM).add(f" {tool}", NAME)
    return lesson.add('\nAction Input: {"name": "', FORM).add(name, NAME).add('"}', FORM)


def _tagged_call(lesson: Lesson, tool: str, name: str) -> Lesson:
    lesson.add(" <", 1.0).add('tool_call>\n{"name": "', FORM).add(tool, NAME)
    return lesson.add('", "arguments": {"name": "', FORM).add(name, NAME).add('"}}\n</tool_call>', FORM)


def _definition(tool: str, whole: bool, rng: random.Random) -> str:
    field = "name" if whole or tool == "first_sentence" else "of"
    titled = {"title": field.title()} if rng.random() < 0.3 else {}
    parameters = {
        "properties": {field: {**titled, "type": "string"}},
        "required": [field],
        "type": "object",
    }
    told = rng.choice(_TOLD if whole else _PART_TOLD)
    function = {"name": tool, "description": told, "parameters": parameters}
    return json.dumps({"type": "function", "function": function}, ensure_ascii=False)
