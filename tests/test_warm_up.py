"""`warm_up` of the adapters: the models are loaded and have answered, off the event loop, before the first request."""

import asyncio

import pytest

from deepen_core import Ensemble
from deepen_core.errors import ChatTemplateError, ClosedError, ModelFilesError
from deepen_integrations.langchain import ChatDeepen
from deepen_integrations.langchain import DeepenLLM as LangChainLLM
from deepen_integrations.langchain.error_kinds import ModelNotFoundError
from deepen_integrations.llama_index import DeepenLLM as LlamaIndexLLM

KINDS = (LangChainLLM, ChatDeepen, LlamaIndexLLM)


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind.__module__.split('.')[1]}.{kind.__name__}")
def kind(request):
    return request.param


@pytest.fixture
def loaded(monkeypatch):
    """The ensembles that are loaded."""
    found, load = [], Ensemble.load

    def spy(*models, **options):
        found.append(load(*models, **options))
        return found[-1]

    monkeypatch.setattr(Ensemble, "load", spy)
    return found


def forwards(ensemble):
    return [member.work.forwards for member in ensemble._engine.members]


def test_the_models_are_loaded_and_have_answered(kind, folders, loaded):
    with kind(models=[folders["alpha"], folders["beta"]], device="cpu", progress=False) as llm:
        assert not loaded
        llm.warm_up()
        assert all(forwards(loaded[0]))
        assert llm.ensemble is loaded[0]
        llm.warm_up()
    assert len(loaded) == 1


async def test_the_event_loop_goes_on_meanwhile(kind, folders, loaded):
    with kind(models=[folders["alpha"], folders["beta"]], device="cpu", progress=False) as llm:
        warming = asyncio.create_task(llm.awarm_up())
        ticks = 0
        while not warming.done():
            await asyncio.sleep(0.001)
            ticks += 1
        await warming
        assert ticks > 10
        assert all(forwards(loaded[0]))


def test_a_chat_model_refuses_members_without_templates_before_it_loads_them(folders, loaded):
    members = {"models": [folders["beta"], folders["gamma"]], "device": "cpu", "progress": False}
    with pytest.raises(ChatTemplateError, match="gamma"):
        ChatDeepen(**members).warm_up()
    assert not loaded
    with LangChainLLM(**members, apply_chat_template=True) as llm:  # answers strings all the same
        llm.warm_up()


def test_what_it_raises(kind):
    llm = kind(models=["/no/such/folder"])
    with pytest.raises(ModelFilesError) as told:
        llm.warm_up()
    assert isinstance(told.value, ModelNotFoundError) is (kind is not LlamaIndexLLM)
    llm.close()
    with pytest.raises(ClosedError):
        llm.warm_up()
