"""A LangChain agent with two tools on the embedded demo: it looks things up, then answers.

The demo's models are small and have never seen a tool, so middleware helps them. It limits the tools' schemas to the
people named in the question, requires a tool call first, and then puts the tool's result in front of the question. The
models choose the tool and its arguments among the valid calls, at random. Models trained on tools need no middleware:
`create_agent(ChatDeepen(models=[...]), tools)`.

Run with: python examples/langchain_agent.py
"""

import re
from collections.abc import Callable

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from deepen_core.demo import documents, questions
from deepen_integrations.langchain import ChatDeepen

RECORDS = {document.title: document.text for document in documents()}


def whole_record(name: str) -> str:
    """Look up all that is written about a person."""
    return RECORDS[name]


def first_sentence(name: str) -> str:
    """Look up the first thing that is written about a person."""
    return RECORDS[name].partition(". ")[0] + "."


@wrap_model_call
def for_small_models(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
    """Require a call about a person named in the question, then an answer based on its result."""
    question = next(message for message in reversed(request.messages) if isinstance(message, HumanMessage))
    found = [message.text for message in request.messages if isinstance(message, ToolMessage)]
    if found:
        return handler(request.override(messages=[SystemMessage("\n".join(found)), question], tools=[]))
    named = [name for name in RECORDS if re.search(rf"\b{name}\b", question.text)]
    tools = [convert_to_openai_tool(tool) for tool in request.tools]
    for tool in tools:
        tool["function"]["parameters"]["properties"]["name"]["enum"] = named
    settings = {"parallel_tool_calls": False, "max_tokens": 128}
    return handler(request.override(tools=tools, tool_choice="any", model_settings=settings))


def main() -> None:
    asked = questions()[:6]
    with ChatDeepen.demo(max_tokens=16) as chat:
        agent = create_agent(chat, [whole_record, first_sentence], middleware=[for_small_models])
        runs = agent.batch([{"messages": [HumanMessage(question.text)]} for question in asked])  # decoded together
    print("The demo's models have never seen a tool: which of the two they call is a guess.\n")
    for question, run in zip(asked, runs, strict=True):
        (call,) = run["messages"][1].tool_calls
        said = run["messages"][-1].text.strip()
        mark = "right" if said == question.answer else f"it is {question.answer}"
        print(f"{question.text:<42} {said:<12} {mark}, after {call['name']}({call['args']['name']!r})")


if __name__ == "__main__":
    main()
