"""A LangChain agent with two tools on the embedded demo: it looks somebody up, then answers from what it has found.

The records tell another story than the one that the demo's models were trained on, so whatever is right was read. With
your own models: `create_agent(ChatDeepen(models=[...]), tools)`.

Run with: python examples/langchain_agent.py
"""

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage

from deepen_core.demo.passages import passages
from deepen_integrations.langchain import ChatDeepen

ASKED = passages()[:6]
RECORDS = {asked.person: asked.text for asked in ASKED}


def whole_record(name: str) -> str:
    """Look up all that is written about a person."""
    return RECORDS.get(name, f"Nothing is written about {name}.")


def weather(of: str) -> str:
    """How the weather is."""
    return f"It rains in {of}."


def main() -> None:
    with ChatDeepen.demo(max_tokens=64) as chat:
        agent = create_agent(chat, [whole_record, weather])
        runs = agent.batch([{"messages": [HumanMessage(asked.question)]} for asked in ASKED])  # decoded together
    for asked, run in zip(ASKED, runs, strict=True):
        called = [call for turn in run["messages"] for call in getattr(turn, "tool_calls", ())]
        calls = [f"{call['name']}({call['args']})" for call in called]
        said = run["messages"][-1].text.strip()
        mark = "right" if said == asked.answer else f"it is {asked.answer}"
        print(f"{asked.question:<42} {said:<12} {mark}, after {', '.join(calls) or 'no call'}")


if __name__ == "__main__":
    main()
