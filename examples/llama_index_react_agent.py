"""A LlamaIndex ReAct agent with two tools on the embedded demo: it looks somebody up, then answers from what it found.

The records tell another story than the one that the demo's models were trained on, so whatever is right was read.

Run with: python examples/llama_index_react_agent.py
"""

import asyncio

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import ReActAgent, ToolCall
from llama_index.core.tools import FunctionTool

from deepen_core.demo.passages import Passage, passages
from deepen_integrations.llama_index import DeepenLLM

ASKED = passages()[:8]
RECORDS = {asked.person: asked.text for asked in ASKED}


def record(name: str) -> str:
    """Look up all that is written about a person."""
    return RECORDS.get(name, f"Nothing is written about {name}.")


def working_hours(of: str) -> str:
    """When people of a trade work."""
    return f"A {of} works from {'four to noon' if of == 'baker' else 'eight to five'}."


async def ask(agent: ReActAgent, asked: Passage) -> None:
    """Print the agent's answer to a question, and the tools that it called."""
    running = agent.run(asked.question)
    called = [event async for event in running.stream_events() if isinstance(event, ToolCall)]
    answer = str(await running).strip()
    steps = ", ".join(f"{call.tool_name}({call.tool_kwargs})" for call in called) or "no tool"
    mark = "right" if answer == asked.answer else f"it is {asked.answer}"
    print(f"{asked.question:<42} {answer:<12} {mark}, after {steps}")


async def main() -> None:
    tools = [FunctionTool.from_defaults(tool) for tool in (record, working_hours)]
    llm = DeepenLLM.demo(max_new_tokens=80)
    agent = ReActAgent(
        tools=tools,
        llm=llm.for_react(tools),  # steps are held to the ReAct format, and inputs to the tools' schemas
        # LlamaIndex's default tool instructions are a page of English, which these models do not understand.
        formatter=ReActChatFormatter.from_defaults(system_header="Ask {tool_names}."),
    )
    for asked in ASKED:
        await ask(agent, asked)
    llm.close()


if __name__ == "__main__":
    asyncio.run(main())
