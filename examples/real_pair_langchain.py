"""LangChain on a real pair of models: a streamed answer, an object, and a tool call.

Run with: python examples/real_pair_langchain.py [MODEL MODEL]

The models are folders or hub ids; by default two small ones, which the first run fetches from the hub. Other models
give other answers. `examples/README.md` has the output for the default pair.
"""

import sys
import time

from langchain_core.tools import tool
from pydantic import BaseModel, Field

from deepen_integrations.langchain import ChatDeepen

PAIR = ["Qwen/Qwen2.5-Coder-0.5B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"]


class City(BaseModel):
    """A city that a text is about."""

    name: str = Field(max_length=30)
    country: str = Field(max_length=30)


@tool
def weather(city: str) -> str:
    """Tell the current weather in a city."""
    return f"It is sunny in {city}, 21 degrees."


def main() -> None:
    with ChatDeepen(models=sys.argv[1:] or PAIR, dtype="bfloat16", max_tokens=96, max_argument_length=30) as chat:
        started = time.perf_counter()
        for number, chunk in enumerate(chat.stream("Write a Python function that reverses a string.")):
            if number == 0:
                print(
                    f"Loaded, and the first words came, after {time.perf_counter() - started:.1f} s\n", file=sys.stderr
                )
            print(chunk.text, end="", flush=True)

        city = chat.with_structured_output(City).invoke("I spent a week in Lisbon, Portugal, and loved it.")
        print(f"\n\nAn object: {city!r}")

        call = chat.bind_tools([weather], tool_choice="any").invoke("What is the weather in Paris?").tool_calls[0]
        print(f"A tool call: {call['name']}({call['args']})")


if __name__ == "__main__":
    main()
