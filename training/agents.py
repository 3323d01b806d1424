"""Steps of agents: a tool is called in the format of a framework, and its result answers the question."""

from __future__ import annotations

import json
import random

from prompts import PLAIN, Lesson

_GAPS = ("\n\n", "\n")
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
_LOOK = "Thought: I need to look this up."
_KNOW = "Thought: I can answer without using any more tools."
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
    if rng.random() < 0.5:
        system = rng.choice(("Ask {}.", "Tools: {}.", "You may ask {}.")).format(", ".join(tools))
        call = f"{_LOOK}\nAction: {tool}\nAction Input: {{}}"
        said, shown = call.format(json.dumps({"name": name})), call.format({"name": name})
        result, final = f"Observation: {record}", f"{_KNOW}\nAnswer: {answer}"
    else:
        told = [_definition(one, one == tool, rng) for one in tools]
        system = _TOOLS.format(tools="\n".join(told))
        arguments = json.dumps({"name": tool, "arguments": {"name": name}}, ensure_ascii=False)
        said = shown = f"<tool_call>\n{arguments}\n</tool_call>"
        result, final = _RESULT.format(result=record), answer
    gap = _GAPS[member]
    asked = f"{system}{gap}{PLAIN.format(q=question)}"
    if rng.random() < 0.5:
        return Lesson().ask(asked, said)
    return Lesson().ask(f"{asked} {shown}{gap}{PLAIN.format(q=result)}", final)


def _definition(tool: str, whole: bool, rng: random.Random) -> str:
    field = "name" if whole or tool == "first_sentence" else "of"
    parameters = {
        "properties": {field: {"title": field.title(), "type": "string"}},
        "required": [field],
        "type": "object",
    }
    told = rng.choice(_TOLD if whole else _PART_TOLD)
    function = {"name": tool, "description": told, "parameters": parameters}
    return json.dumps({"type": "function", "function": function}, ensure_ascii=False)
