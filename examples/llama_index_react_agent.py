"""A LlamaIndex ReAct agent with two tools on the embedded demo, with steps constrained to the ReAct format.

Run with: python examples/llama_index_react_agent.py
"""

import asyncio
import re

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import ReActAgent, ToolCall
from llama_index.core.tools import FunctionTool

from deepen_core.demo import Question, questions
from deepen_core.demo.phrases import RELATIONS
from deepen_integrations.llama_index import DeepenLLM

SUNSHINE = {"Lisbon": 9, "Nairobi": 7, "Geneva": 5}


def sunshine(city: str) -> str:
    """How long the sun shines in a city."""
    return f"{city}, with {SUNSHINE.get(city, 4)} hours of sunshine today"


def working_hours(job: str) -> str:
    """When people of a trade work."""
    return f"{job}, who works from {'four to noon' if job == 'baker' else 'eight to five'}"


# The demo's models were never trained to use tools and do not write ReAct steps by themselves. Instruction-tuned models
# do, and need no constraint, only `llm.for_react()`. Here a regular expression constrains each step to a valid one: a
# thought with a tool and its input, or an answer. The first word of a step determines the rest: a city is looked up
# with `sunshine`, a trade with `working_hours`, and any other word is the answer. The ensemble chooses this word, and
# with it the tool, among all 128 words of its world.
def forms() -> str:
    """Return a regular expression that matches the valid steps."""
    words = {relation.key: [re.escape(value) for value in relation.values] for relation in RELATIONS}
    cities = [rf' {city}\nAction: sunshine\nAction Input: \{{"city": "{city}"\}}' for city in words.pop("city")]
    jobs = [rf' {job}\nAction: working_hours\nAction Input: \{{"job": "{job}"\}}' for job in words.pop("job")]
    answers = [f" {value}" for values in words.values() for value in values]
    return "|".join([*cities, *jobs, *answers])


async def ask(agent: ReActAgent, question: Question) -> None:
    """Print the agent's answer to a question, and the tool that it called."""
    running = agent.run(question.text)
    called = [event async for event in running.stream_events() if isinstance(event, ToolCall)]
    answer = str(await running).strip()
    steps = "".join(f"{call.tool_name}({call.tool_kwargs})" for call in called) or "no tool"
    mark = "right" if answer.startswith(question.answer) else f"it is {question.answer}"
    print(f"{question.text:<42} {answer:<46} {mark}, {steps}")


async def main() -> None:
    llm = DeepenLLM.demo(max_new_tokens=80, regex=forms())
    agent = ReActAgent(
        # A tool's result is the agent's answer, because the demo's models cannot rephrase it.
        tools=[FunctionTool.from_defaults(tool, return_direct=True) for tool in (sunshine, working_hours)],
        llm=llm.for_react(),
        # LlamaIndex's default tool instructions are a page of English, which these models do not understand.
        formatter=ReActChatFormatter.from_defaults(system_header="Ask {tool_names}."),
    )
    for question in questions()[:11]:
        await ask(agent, question)
    llm.close()


if __name__ == "__main__":
    asyncio.run(main())
