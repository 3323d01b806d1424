"""DeepenLLM behind LlamaIndex's agents, settings and loaders."""

import asyncio
import copy

import pytest
from llama_index.core import PromptTemplate, Settings
from llama_index.core.agent.workflow import AgentStream, AgentWorkflow, ReActAgent
from llama_index.core.extractors import TitleExtractor
from llama_index.core.llms.loading import load_llm
from llama_index.core.tools import FunctionTool

from deepen_core.demo import member_paths
from deepen_integrations.llama_index import DeepenLLM, configure_settings

# LlamaIndex's workflows use old names of pydantic and of their own.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("loop_of_llama_index"),
]

ACTION = 'Thought: I look it up.\nAction: town\nAction Input: {"name": "Mira"}'
ANSWER = "Thought: I know it now.\nAnswer: Lisbon"


@pytest.fixture
def settings(monkeypatch):
    """LlamaIndex's global settings, as they were again afterwards."""
    import llama_index.core

    names = ("_llm", "_prompt_helper", "_chat_prompt_helper", "_node_parser", "_transformations")
    kept = [name for name in names if hasattr(Settings, name)]
    for name in kept:
        monkeypatch.setattr(Settings, name, getattr(Settings, name))
    monkeypatch.setattr(llama_index.core, "global_tokenizer", llama_index.core.global_tokenizer)
    return Settings


def town(name: str) -> str:
    """The town where somebody lives."""
    return f"{name} lives in Lisbon."


class Scripted:
    """Lets a rule ensemble write one thing until a tool has been asked, and then another."""

    def __init__(self, ensemble):
        self._answer = ensemble._answer
        self.ensemble = ensemble
        ensemble._answer = self

    def __call__(self, prompt, params):
        asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        self.ensemble.default = ANSWER if "lives in Lisbon." in asked else f"{ACTION}\nObservation: made up"
        return self._answer(prompt, params)


@pytest.fixture(params=[False, True], ids=["texts", "chats"])
def llm(ensemble, request):
    ensemble.has_chat_template = request.param
    Scripted(ensemble)
    return DeepenLLM.from_ensemble(ensemble)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_react_agent_hears_the_tool_and_nothing_made_up(llm, streaming):
    agent = ReActAgent(tools=[FunctionTool.from_defaults(town)], llm=llm.for_react(), streaming=streaming)

    async def run():
        handler = agent.run("Where does Mira live?")
        said = [event.delta async for event in handler.stream_events() if isinstance(event, AgentStream)]
        return str(await handler), "".join(said)

    answer, said = asyncio.run(run())
    assert answer == "Lisbon"
    assert "made up" not in said
    assert bool(said) is streaming


def test_for_react_is_a_copy_on_the_same_ensemble(llm):
    react = llm.for_react()
    assert react.stop == ("\nObservation:",)
    assert llm.stop == ()
    assert react.ensemble is llm.ensemble
    assert react.for_react() is react


def test_predict_and_call(llm):
    tools = [FunctionTool.from_defaults(town)]
    assert llm.predict_and_call(tools, "Where does Mira live?").response == "Mira lives in Lisbon."

    async def ask():
        return await llm.apredict_and_call(tools, "Where does Mira live?")

    assert asyncio.run(ask()).response == "Mira lives in Lisbon."


def test_a_workflow_takes_a_react_agent(llm):
    workflow = AgentWorkflow.from_tools_or_functions([town], llm=llm.for_react())
    assert isinstance(next(iter(workflow.agents.values())), ReActAgent)

    async def run():
        return str(await workflow.run("Where does Mira live?"))

    assert asyncio.run(run()) == "Lisbon"


def test_settings_count_by_mains_tokenizer(ensemble, settings):
    before = settings.tokenizer
    llm = DeepenLLM.from_ensemble(ensemble)
    assert settings.tokenizer is before  # constructing touches no global
    settings._prompt_helper = settings._node_parser = "of another model"
    configure_settings(llm)
    assert settings.llm is llm
    assert settings.tokenizer("one two three") == ensemble.tokenize("one two three")
    assert settings.prompt_helper.context_window == 512
    assert settings.node_parser != "of another model"


def test_loaders_find_it(settings):
    llm = DeepenLLM(models=[str(path) for path in member_paths()], max_new_tokens=5)
    loaded = load_llm(llm.to_dict())
    assert isinstance(loaded, DeepenLLM)
    assert loaded.to_dict() == llm.to_dict()
    extractor = TitleExtractor.from_dict(TitleExtractor(llm=llm).to_dict())
    assert extractor.llm.to_dict() == llm.to_dict()


def test_copies_share_the_ensemble(ensemble):
    llm = DeepenLLM.from_ensemble(ensemble)
    for copied in (copy.deepcopy(llm), llm.model_copy(update={"max_new_tokens": 2})):
        assert copied.ensemble is ensemble
    assert llm.predict(PromptTemplate("{x}"), x="c") == " The answer is Lisbon."
