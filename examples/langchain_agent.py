"""A LangChain agent with two tools on the embedded demo: it looks a person up, reads the result, and answers.

The demo's models have learned to call tools that look something up by a person's name. Calls are valid by construction:
decoding follows the tools' schemas.

Run with: python examples/langchain_agent.py
"""

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage

from deepen_core.demo import documents, questions
from deepen_integrations.langchain import ChatDeepen

RECORDS = {document.title: document.text for document in documents()}


def whole_record(name: str) -> str:
    """Look up all that is written about a person."""
    return RECORDS.get(name, f"Nothing is written about {name}.")


def weather(of: str) -> str:
    """How the weather is."""
    return f"In {of} it rains."


def main() -> None:
    asked = questions()[:6]
    with ChatDeepen.demo(max_tokens=128) as chat:
        agent = create_agent(chat, [whole_record, weather])
        runs = agent.batch([{"messages": [HumanMessage(question.text)]} for question in asked])  # decoded together
    for question, run in zip(asked, runs, strict=True):
        calls = [call for message in run["messages"] for call in getattr(message, "tool_calls", [])]
        said = run["messages"][-1].text.strip()
        mark = "right" if said == question.answer else f"it is {question.answer}"
        steps = ", ".join(f"{call['name']}({call['args']})" for call in calls) or "no tool"
        print(f"{question.text:<42} {said:<12} {mark}, after {steps}")


if __name__ == "__main__":
    main()
