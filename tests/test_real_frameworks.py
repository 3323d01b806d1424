"""LangChain and LlamaIndex on a real pair: agents, long conversations, ingestion. See `test_real_models.py`.

What has to succeed five times out of five runs five times at the same time, so that the batches differ.
"""

import asyncio
from typing import ClassVar, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.indices.property_graph import SchemaLLMPathExtractor
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from pydantic import BaseModel, Field
from real_parts import QWEN, REAL, SMOL, opened

from deepen_integrations.langchain import ChatDeepen
from deepen_integrations.llama_index import DeepenLLM, DeepenToolLLM

pytestmark = REAL


def weather(city: str) -> str:
    """Tell the current weather in a city."""
    return f"It is sunny in {city}, 21 degrees."


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


ASKED = [
    ("What is the weather in Paris?", ("weather", {"city": "Paris"}), "21 degrees"),
    ("What is 12 times 34?", ("multiply", {"a": 12, "b": 34}), "408"),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LlamaIndex's own
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("names", [(SMOL, QWEN), (QWEN, SMOL)], ids="-".join)
async def test_agents_call_the_right_tool_and_answer(names, dtype):
    """Five times out of five, in both frameworks, where the members may choose to call or not.

    The ten agents of a framework run at the same time, so that the batches differ.
    """
    with opened(names, dtype) as ensemble:
        chain = create_agent(ChatDeepen.from_ensemble(ensemble, max_tokens=96), [weather, multiply])
        llm = DeepenToolLLM.from_ensemble(ensemble, max_new_tokens=96)
        runs = await chain.abatch([{"messages": [("human", question)]} for question, _, _ in ASKED * 5])
        for (_, call, answer), run in zip(ASKED * 5, runs, strict=True):
            _, calls, _, last = run["messages"]
            assert [(one["name"], one["args"]) for one in calls.tool_calls] == [call]
            assert answer in last.text

        async def run_of(question):
            return await FunctionAgent(tools=[weather, multiply], llm=llm).run(question, max_iterations=4)

        told = await asyncio.gather(*(run_of(question) for question, _, _ in ASKED * 5))
        for (_, call, answer), run in zip(ASKED * 5, told, strict=True):
            assert [(one.tool_name, one.tool_kwargs) for one in run.tool_calls] == [call]
            assert answer in str(run)


class Report(BaseModel):
    """The weather of a city."""

    city: str
    degrees: int


@pytest.mark.parametrize("names", [(SMOL, QWEN), (QWEN, SMOL)], ids="-".join)
def test_agents_end_with_an_object(names):
    """By their profile's own way the right one; through a tool at least one, in a few steps."""
    with opened(names, "float32") as ensemble:
        chat = ChatDeepen.from_ensemble(ensemble, max_tokens=96)
        for strategy in (ProviderStrategy, ToolStrategy):
            agent = create_agent(chat, [weather, multiply], response_format=strategy(Report))
            run = agent.invoke({"messages": [("human", ASKED[0][0])]}, {"recursion_limit": 12})
            assert run["messages"][1].tool_calls[0]["name"] == "weather"
            assert run["structured_response"].city == "Paris"
            assert strategy is ToolStrategy or run["structured_response"].degrees == 21


async def test_conversations_of_200_turns_go_on():
    """Five conversations at the same time, under the middleware that summarises, in a small window."""
    with opened((SMOL, QWEN), "float32", max_context_window=384) as ensemble:
        chat = ChatDeepen.from_ensemble(ensemble, max_tokens=12)
        # LangChain's own prompt does not fit into so small a window, and a larger one takes long on a CPU.
        asked = "Sum this up in one sentence.\n{messages}"
        shorten = SummarizationMiddleware(
            chat, trigger=("tokens", 140), keep=("messages", 3), summary_prompt=asked, trim_tokens_to_summarize=None
        )
        agent, states = create_agent(chat, [], middleware=[shorten]), [{"messages": []} for _ in range(5)]
        summarised = 0
        for turn in range(200):
            for number, state in enumerate(states):
                state["messages"] = [*state["messages"], ("human", f"What is {turn} plus {number}?")]
            before = [len(state["messages"]) for state in states]
            states = await agent.abatch(states)
            assert all(state["messages"][-1].text.strip() for state in states), turn
            summarised += sum(len(state["messages"]) <= n for n, state in zip(before, states, strict=True))
        assert summarised >= 5 * 5


class Kept(BaseModel):
    type: Literal["PERSON", "PLACE"]
    name: Literal["Anna", "Felix", "Prague", "Lisbon"]


class Link(BaseModel):
    type: Literal["LIVES_IN"]


class Triplet(BaseModel):
    subject: Kept
    relation: Link
    object: Kept


class CutShort(DeepenLLM):
    """Has only five tokens for the object of a text that says so."""

    cut: ClassVar[list[str]] = []

    async def astructured_predict(self, output_cls, prompt, llm_kwargs=None, **prompt_args):
        short = "cut short" in prompt_args["text"]
        if short:
            self.cut.append(prompt_args["text"])
        return await super().astructured_predict(
            output_cls, prompt, {"max_new_tokens": 5} if short else llm_kwargs, **prompt_args
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LlamaIndex's own
def test_an_ingestion_of_20_chunks_with_three_cut_off_ones_ends():
    """Five times; the other chunks have their triplets."""

    class Triplets(BaseModel):
        triplets: list[Triplet] = Field(min_length=1, max_length=1)

    with opened((SMOL, QWEN), "float32") as ensemble:
        llm = CutShort.from_ensemble(ensemble, max_new_tokens=200)
        extractor = SchemaLLMPathExtractor(
            llm=llm,
            kg_schema_cls=Triplets,
            strict=False,
            max_triplets_per_chunk=1,
            num_workers=20,
            raise_on_error=False,
        )
        for _ in range(5):
            CutShort.cut.clear()
            nodes = [
                TextNode(
                    text=f"{name} lives in {place}.{' This is cut short.' if number in (3, 9, 15) else ''} No. {number}"
                )
                for number, (name, place) in enumerate([("Anna", "Prague"), ("Felix", "Lisbon")] * 10)
            ]
            found = IngestionPipeline(transformations=[extractor], disable_cache=True).run(nodes=nodes)
            assert len(found) == 20
            assert len(CutShort.cut) == 3
            for number, node in enumerate(found):
                relations = node.metadata["relations"]
                assert bool(relations) is (number not in (3, 9, 15)), (number, node.metadata)
