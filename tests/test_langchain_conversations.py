"""Long conversations: what is trimmed or summarised by the model's own counts fits every member."""

from enum import Enum

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.messages import AIMessage, HumanMessage, trim_messages
from langchain_core.runnables import ConfigurableField

from deepen_core.errors import SamplingError
from deepen_integrations.langchain import ChatDeepen, DeepenLLM

QUESTION = HumanMessage("Where does Felix live?")


@pytest.fixture(scope="module")
def chat(needs_demo):
    with ChatDeepen.demo(max_tokens=8, max_context_window=400) as chat:
        yield chat


def test_what_is_trimmed_to_the_window_is_answered(chat):
    """The other member needs a third more tokens than main for this text."""
    talk = [(AIMessage if i % 2 else HumanMessage)("Søren lives in Zürich. " * 3) for i in range(201)]
    room = chat.profile["max_input_tokens"] - chat.max_tokens
    kept = trim_messages(talk, max_tokens=room, token_counter=chat, strategy="last", start_on="human")
    assert len(kept) > 1
    assert room * 0.8 < chat.get_num_tokens_from_messages(kept) <= room
    assert chat.ensemble.count_tokens([{"role": "user", "content": m.text} for m in kept]) < room * 0.9
    assert chat.invoke(kept).usage_metadata["output_tokens"] > 0


def test_a_conversation_of_200_turns_goes_on(chat):
    """The first turns are made up; the last ones, with their summaries, are the model's."""
    room = chat.profile["max_input_tokens"]
    memory = SummarizationMiddleware(
        chat,
        trigger=("tokens", room // 2),
        keep=("tokens", room // 4),
        token_counter=chat.get_num_tokens_from_messages,
        trim_tokens_to_summarize=room // 2,
        summary_prompt="What was said:\n{messages}",
    )
    agent = create_agent(chat, [], middleware=[memory])
    talk = [QUESTION, AIMessage(" Lisbon.")] * 190
    talk = [message.model_copy(update={"id": str(number)}) for number, message in enumerate(talk)]
    summaries, lengths = set(), []
    for _ in range(10):
        talk = agent.invoke({"messages": [*talk, HumanMessage(QUESTION.content)]})["messages"]
        summaries |= {m.id for m in talk if m.additional_kwargs.get("lc_source") == "summarization"}
        lengths.append(chat.get_num_tokens_from_messages(talk))
        assert talk[-1].text.strip()
    assert len(summaries) > 1
    assert max(lengths) < room


class Town(Enum):
    HERE, THERE = "Lisbon", "Oslo"


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_an_enumeration_answers_a_member(chat, method):
    assert chat.with_structured_output(Town, method=method).invoke("Where does Felix live?") in Town


def test_an_enumeration_of_other_values_is_refused(chat):
    for options in ({"schema": Enum("Number", {"ONE": 1})}, {"schema": Town, "include_raw": True}):
        with pytest.raises(SamplingError, match="is an enumeration: its values must be texts"):
            chat.with_structured_output(**options)


@pytest.mark.parametrize("kind", [ChatDeepen, DeepenLLM])
@pytest.mark.parametrize("name", ["max_tokens", "max_new_tokens"])
def test_the_length_of_an_answer_can_be_configured(needs_demo, kind, name):
    model = kind.demo(max_tokens=64).configurable_fields(**{name: ConfigurableField(id="length")})
    short, own = model.with_config(configurable={"length": 1}), kind.demo(max_tokens=1)
    question = "Where does Felix live?"
    said = [getattr(answer, "text", answer) for answer in (short.invoke(question), own.invoke(question))]
    assert said[0] == said[1]
    assert model.default.max_tokens == 64
