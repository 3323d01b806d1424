"""Agents and graphs on ChatDeepen.

Members made of rules call a tool and answer from what came of it; random members show what holds whatever they say.
"""

from enum import Enum
from typing import Annotated, Literal

import pytest
import taught
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    LLMToolSelectorMiddleware,
    ModelFallbackMiddleware,
    SummarizationMiddleware,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_parts import summed
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent, tools_condition
from pydantic import BaseModel, Field

from deepen_core.errors import ContextWindowError
from deepen_integrations.langchain import ChatDeepen

ASKED = {"messages": [("human", "Where does Mira live?")]}


def call(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@tool
def look_up(name: str) -> str:
    """Look up what is written about a person."""
    return f"{name} lives in Oslo."


@tool
def fail(name: str) -> str:
    """Look up, in vain."""
    raise ValueError("no such book")


def result_message(result, plain=True):
    """The message that tells members of a tool's result."""
    asked_for = "\nAnswer my question in plain words if you can." if plain else ""
    return f"<tool_response>\n{result}\n</tool_response>{asked_for}"


@pytest.fixture
def clever(ensemble):
    """An ensemble that looks things up and answers from what it was told."""
    ensemble.answers |= {
        "Where does Mira live?": " Let me see.\n" + call("look_up", '{"name": "Mira"}'),
        result_message("Mira lives in Oslo."): " In Oslo, it says.",
        "And Ada?": call("look_up", '{"name": "Ada"}'),
        result_message("Ada lives in Oslo."): " There too.",
    }
    return ensemble


@pytest.fixture
def agent(clever):
    return create_agent(ChatDeepen.from_ensemble(clever), [look_up, fail], system_prompt="Be brief.")


def kinds(messages):
    return [type(message).__name__ for message in messages]


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_an_agent_calls_a_tool_and_answers(agent, clever, way):
    handler = UsageMetadataCallbackHandler()
    config = {"callbacks": [handler]}
    told = agent.invoke(ASKED, config) if way == "invoke" else await agent.ainvoke(ASKED, config)
    assert kinds(told["messages"]) == ["HumanMessage", "AIMessage", "ToolMessage", "AIMessage"]
    _, called, result, last = told["messages"]
    assert called.tool_calls[0]["args"] == {"name": "Mira"}
    assert (result.content, result.tool_call_id) == ("Mira lives in Oslo.", called.tool_calls[0]["id"])
    assert last.text == " In Oslo, it says."
    (prompt, _) = clever.requests[-1]
    assert [message["role"] for message in prompt] == ["system", "user", "assistant", "user"]
    assert "".join(prompt[0]["content"]).startswith("Be brief.\n\n# Tools")
    total = called.usage_metadata["output_tokens"] + last.usage_metadata["output_tokens"]
    assert handler.usage_metadata["alpha+beta"]["output_tokens"] == total


@pytest.mark.parametrize("way", ["stream", "astream"])
async def test_an_agent_streams_tokens_and_steps(agent, way):
    modes = {"stream_mode": ["messages", "updates"]}
    if way == "stream":
        told = list(agent.stream(ASKED, **modes))
    else:
        told = [event async for event in agent.astream(ASKED, **modes)]
    pieces = [message for mode, (message, _) in (t for t in told if t[0] == "messages") if mode]
    by_id = {}
    for piece in pieces:
        if isinstance(piece, AIMessageChunk):
            by_id.setdefault(piece.id, []).append(piece)
    first, second = map(summed, by_id.values())
    assert first.tool_calls[0]["args"] == {"name": "Mira"}
    assert second.text == " In Oslo, it says."
    assert len(by_id[second.id]) > 3
    assert [next(iter(update)) for mode, update in told if mode == "updates"] == ["model", "tools", "model"]


async def test_events_of_an_agent(agent):
    events = [event async for event in agent.astream_events(ASKED, version="v2")]
    names = [event["event"] for event in events]
    assert names.count("on_chat_model_start") == names.count("on_chat_model_end") == 2
    assert names.count("on_tool_end") == 1
    assert names.count("on_chat_model_stream") > 6


def test_an_agent_remembers(clever):
    agent = create_agent(ChatDeepen.from_ensemble(clever), [look_up], checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    agent.invoke(ASKED, config)
    told = agent.invoke({"messages": [("human", "And Ada?")]}, config)["messages"]
    assert len(told) == 8
    assert told[-1].text == " There too."


def test_a_tool_that_fails_is_told(ensemble):
    ensemble.answers["q"] = call("fail", '{"name": "Mira"}')
    ensemble.default = " I cannot tell."
    model = ChatDeepen.from_ensemble(ensemble).bind_tools([fail])
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([fail], handle_tool_errors=True))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    told = graph.compile().invoke({"messages": [("human", "q")]})["messages"]
    assert kinds(told) == ["HumanMessage", "AIMessage", "ToolMessage", "AIMessage"]
    assert told[2].status == "error"
    assert "no such book" in told[2].content
    assert told[3].text == " I cannot tell."


@pytest.mark.filterwarnings("ignore:create_react_agent")
@pytest.mark.parametrize("bound", [False, True])
def test_a_react_agent(clever, bound):
    chat = ChatDeepen.from_ensemble(clever)
    agent = create_react_agent(chat.bind_tools([look_up]) if bound else chat, [look_up])
    told = agent.invoke(ASKED)["messages"]
    assert kinds(told) == ["HumanMessage", "AIMessage", "ToolMessage", "AIMessage"]
    assert told[-1].text == " In Oslo, it says."


def test_a_call_that_is_cut_off_is_not_run(clever):
    told = create_agent(ChatDeepen.from_ensemble(clever, max_tokens=6), [look_up]).invoke(ASKED)["messages"]
    assert kinds(told) == ["HumanMessage", "AIMessage"]
    assert told[-1].response_metadata["finish_reason"] == "length"
    assert (told[-1].text, len(told[-1].invalid_tool_calls)) == (" Let me see.", 1)


# Objects


class Color(Enum):
    RED = "rouge"
    BLUE = "青"


class Town(BaseModel):
    """Where somebody lives."""

    name: Literal["Oslo", "Zürich"]
    color: Color
    people: Annotated[int, Field(ge=0, le=999)]


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream"])
@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy, None])
async def test_random_members_give_an_object(terse, strategy, way):
    chat = ChatDeepen.from_ensemble(terse, max_tokens=300)
    wanted = Town if strategy is None else strategy(Town)
    agent = create_agent(chat, [], response_format=wanted)
    if way == "invoke":
        told = agent.invoke(ASKED)
    elif way == "ainvoke":
        told = await agent.ainvoke(ASKED)
    else:
        told = list(agent.stream(ASKED, stream_mode="values"))[-1]
    assert type(told["structured_response"]) is Town
    called = told["messages"][1].tool_calls
    assert bool(called) == (strategy is ToolStrategy)  # by its profile the model needs no tool for an object


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_tools_first_and_then_an_object(clever, strategy):
    said = '{"name": "Oslo", "color": "rouge", "people": 3}'
    final = call("Town", said) if strategy is ToolStrategy else said
    # Where an object must follow, members are asked for it, and not for plain words.
    asked = '\n\nIf you can, answer my question as JSON now, such as {"name": "...", "color": "...", "people": "..."}.'
    told = result_message("Mira lives in Oslo.", plain=False)
    another = '\n\nCall another function now: "Town".'
    clever.answers[told + (another if strategy is ToolStrategy else asked)] = final
    agent = create_agent(ChatDeepen.from_ensemble(clever), [look_up], response_format=strategy(Town))
    told = agent.invoke(ASKED)
    assert told["structured_response"] == Town(name="Oslo", color=Color.RED, people=3)
    for _, params in clever.requests:
        assert "look_up" in params.grammar
        assert "Zürich" in params.grammar


# Middleware


def test_a_conversation_is_summarised(clever):
    clever.default = " They spoke of Mira."
    chat = ChatDeepen.from_ensemble(clever)
    agent = create_agent(
        chat, [look_up], middleware=[SummarizationMiddleware(chat, trigger=("messages", 4), keep=("messages", 1))]
    )
    talk = [HumanMessage("a"), AIMessage("b"), HumanMessage("c"), AIMessage("d"), *map(HumanMessage, ["And Ada?"])]
    told = agent.invoke({"messages": talk})["messages"]
    assert "They spoke of Mira." in told[0].text
    assert told[-1].text == " There too."


def test_a_summary_may_be_triggered_by_a_share_of_the_window(clever):
    """LangChain asks the profile of the model how long a prompt may be."""
    chat = ChatDeepen.from_ensemble(clever)
    assert chat.profile["max_input_tokens"] == 511
    middleware = SummarizationMiddleware(chat, trigger=("fraction", 0.01), keep=("messages", 1))
    clever.default = " Short."
    talk = [HumanMessage("long " * 40), AIMessage("b"), HumanMessage("And Ada?")]
    told = create_agent(chat, [look_up], middleware=[middleware]).invoke({"messages": talk})["messages"]
    assert "Short." in told[0].text


def test_old_results_are_cleared_by_the_models_own_count(terse):
    chat = ChatDeepen.from_ensemble(terse, max_tokens=4)
    edit = ClearToolUsesEdit(trigger=900, keep=0, placeholder="[gone]")
    agent = create_agent(
        chat, [look_up], middleware=[ContextEditingMiddleware(edits=[edit], token_count_method="model")]
    )
    calls = [AIMessage("", tool_calls=[{"name": "look_up", "args": {"name": "Mira"}, "id": "a"}])]
    talk = [HumanMessage("hi"), *calls, ToolMessage("oslo " * 300, tool_call_id="a")]
    answer = agent.invoke({"messages": talk})["messages"][-1]
    uncut = create_agent(chat, [look_up]).invoke({"messages": talk})["messages"][-1]
    assert answer.usage_metadata["input_tokens"] < 900 < uncut.usage_metadata["input_tokens"]


def test_tools_are_selected_by_the_members(terse):
    """The selection is an object whose texts are one of the tools' names: an answer that is always valid."""
    chat = ChatDeepen.from_ensemble(terse, max_tokens=300)

    def prompt_tokens(**options):
        return (
            create_agent(chat, [look_up, fail], **options).invoke(ASKED)["messages"][1].usage_metadata["input_tokens"]
        )

    assert prompt_tokens(middleware=[LLMToolSelectorMiddleware(max_tools=1)]) < prompt_tokens() - 50


def test_another_model_takes_over(clever, terse):
    short = ChatDeepen.from_ensemble(clever)
    clever.failure = ContextWindowError("too long")
    fallback = ModelFallbackMiddleware(ChatDeepen.from_ensemble(terse, max_tokens=3))
    told = create_agent(short, [], middleware=[fallback]).invoke(ASKED)["messages"]
    assert told[-1].response_metadata["model_name"] == "brief+wordy"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_members_choose_to_call_and_then_to_answer(taught_folders, way):
    """Nothing is forced here: whether to call is the members' choice, which they have learned."""
    with ChatDeepen(models=taught_folders, progress=False, max_tokens=200) as model:
        agent = create_agent(model, [taught.get_weather])
        asked = {"messages": [("human", "What is the weather in San Francisco, CA?")]}
        state = agent.invoke(asked) if way == "invoke" else await agent.ainvoke(asked)
    _, asks, found, answer = state["messages"]
    assert [(c["name"], c["args"]) for c in asks.tool_calls] == [("get_weather", {"location": "San Francisco, CA"})]
    assert found.text == "It's sunny."
    assert answer.text == "It is sunny in San Francisco."
