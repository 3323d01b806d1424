"""A LlamaIndex ReAct agent with two tools on the embedded demo: it looks a person up, reads the result, and answers.

The demo's models have learned such steps, for tools that look something up by a person's name. They write them freely,
as instruction-tuned models do; `for_react()` only ends an answer where the tool's result would begin.

Run with: python examples/llama_index_react_agent.py
"""

import asyncio

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import ReActAgent, ToolCall
from llama_index.core.tools import FunctionTool

from deepen_core.demo import Question, documents, questions
from deepen_integrations.llama_index import DeepenLLM

RECORDS = {document.title: document.text for document in documents()}


def record(name: str) -> str:
    """Look up all that is written about a person."""
    return RECORDS.get(name, f"Nothing is written about {name}.")


def sunshine(of: str) -> str:
    """How long the sun shines in a city."""
    return f"In {of} the sun shines for nine hours."


async def ask(agent: ReActAgent, question: Question) -> None:
    """Print the agent's answer to a question, and the tools that it called."""
    running = agent.run(question.text)
    called = [event async for event in running.stream_events() if isinstance(event, ToolCall)]
    answer = str(await running).strip()
    steps = ", ".join(f"{call.tool_name}({call.tool_kwargs})" for call in called) or "no tool"
    mark = "right" if answer == question.answer else f"it is {question.answer}"
    print(f"{question.text:<42} {answer:<12} {mark}, after {steps}")


async def main() -> None:
    llm = DeepenLLM.demo(max_new_tokens=80)
    agent = ReActAgent(
        tools=[FunctionTool.from_defaults(tool) for tool in (record, sunshine)],
        llm=llm.for_react(),
        # LlamaIndex's default instructions are a page of English, which these models do not understand.
        formatter=ReActChatFormatter.from_defaults(system_header="Ask {tool_names}."),
    )
    for question in questions()[:11]:
        await ask(agent, question)
    llm.close()


if __name__ == "__main__":
    asyncio.run(main())
