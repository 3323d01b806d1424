"""Structured prediction in LlamaIndex: valid objects even from random weights, in all four forms."""

import asyncio
import copy
from enum import Enum
from typing import Optional

import pytest
import tiny
from amounts import seeds
from llama_index.core import ChatPromptTemplate, Document, PromptTemplate, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, Field, field_validator

from deepen_core import Ensemble
from deepen_core.errors import SamplingError, StructuredAnswerError
from deepen_integrations.llama_index import DeepenLLM, HashingEmbedding


class Colour(Enum):
    RED = "red"
    BLUE = "bleu marine"


class Part(BaseModel):
    name: str = Field(max_length=8)
    size: int = Field(ge=0, le=99)


class Thing(BaseModel):
    """Nested, with an enum, an optional field and a list."""

    title: str = Field(max_length=12)
    colour: Colour
    parts: list[Part] = Field(max_length=2)
    note: Optional[str] = Field(default=None, max_length=6)  # noqa: UP045 (as users write it)


PROMPT = PromptTemplate("Describe {what}.")


@pytest.fixture(scope="module", params=["texts", "chats"])
def llm(request, made_once):
    """Random members; those with chat templates are asked by messages."""
    chat = request.param == "chats"

    def make(root):
        tiny.save_gpt2(root / "one", tiny.byte_level(), window=4096, chat=chat, layers=1)
        tiny.save_llama(root / "two", tiny.sentencepiece_bpe(), window=4096, chat=chat, layers=1)

    root = made_once(f"structured-{request.param}", make)
    with Ensemble.load([root / "one", root / "two"], progress=False) as ensemble:
        llm = DeepenLLM.from_ensemble(ensemble, max_new_tokens=300, temperature=1.0, seed=3)
        assert llm.metadata.is_chat_model is chat
        yield llm


async def _streamed(llm, **options):
    return [one async for one in await llm.astream_structured_predict(Thing, PROMPT, what="it", **options)]


FORMS = {
    "predict": lambda llm, **o: llm.structured_predict(Thing, PROMPT, what="it", **o),
    "apredict": lambda llm, **o: asyncio.run(llm.astructured_predict(Thing, PROMPT, what="it", **o)),
    "stream": lambda llm, **o: list(llm.stream_structured_predict(Thing, PROMPT, what="it", **o))[-1],
    "astream": lambda llm, **o: asyncio.run(_streamed(llm, **o))[-1],
}


@pytest.mark.parametrize(
    "form", ["predict", "astream", *(pytest.param(form, marks=pytest.mark.slow) for form in ("apredict", "stream"))]
)
def test_valid_objects_from_random_weights(llm, form):
    for seed in seeds(3):
        found = FORMS[form](llm, llm_kwargs={"seed": seed})
        assert isinstance(found, Thing)
        assert found == FORMS["predict"](llm, llm_kwargs={"seed": seed})
    assert Thing.model_validate_json(found.model_dump_json()) == found


def test_what_was_given_stays_as_it_was(llm):
    prompt, options = copy.deepcopy(PROMPT), {"seed": 1}
    llm.structured_predict(Thing, prompt, llm_kwargs=options, what="it")
    assert options == {"seed": 1}
    assert prompt.output_parser is None
    assert prompt.template == PROMPT.template


@pytest.mark.parametrize("templates", [False, True])
def test_the_prompt_holds_the_schema_once_and_the_system_prompt_once(ensemble, templates):
    ensemble.has_chat_template = templates
    ensemble.default = '{"name": "a", "size": 3}'
    llm = DeepenLLM.from_ensemble(ensemble, system_prompt="SYS")
    assert llm.structured_predict(Part, PROMPT, what="it") == Part(name="a", size=3)
    prompt, params = ensemble.requests[-1]
    asked = str(prompt)
    assert "{{" not in asked
    assert asked.count("SYS") == asked.count("maxLength") == asked.count("Describe it.") == 1
    assert params.json_schema == {**Part.model_json_schema(), "additionalProperties": False}


def test_a_stream_grows_and_ends_with_the_whole(llm):
    *partial, whole = llm.stream_structured_predict(Thing, PROMPT, what="it")
    assert isinstance(whole, Thing)
    assert partial
    titles = [found.title or "" for found in partial]
    assert titles[-1] == whole.title
    assert all(whole.title.startswith(title) for title in titles)


def test_a_structured_llm(llm):
    structured = llm.as_structured_llm(Part)
    asked = [ChatMessage(role="user", content="Which part?")]
    found = structured.chat(asked).raw
    assert isinstance(found, Part)
    assert asyncio.run(structured.achat(asked)).raw == found
    assert structured.complete("Which part?").raw is not None


@pytest.mark.parametrize("mode", ["compact", "tree_summarize", "refine"])
def test_queries_answer_with_objects(ensemble, mode):
    ensemble.context_window = 3000
    ensemble.default = '{"name": "a", "size": 3}'
    llm = DeepenLLM.from_ensemble(ensemble, max_new_tokens=32)
    index = VectorStoreIndex.from_documents(
        [Document(text="Mira lives in Lisbon.")],
        embed_model=HashingEmbedding(),
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0)],
    )
    answer = index.as_query_engine(llm=llm, output_cls=Part, response_mode=mode).query("Where does Mira live?")
    assert answer.response == Part(name="a", size=3)


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_that_is_cut_off_says_how_to_go_on(llm, form):
    with pytest.raises(StructuredAnswerError, match=r"ended \(length\) after \d+ characters.*raise max_new_tokens"):
        FORMS[form](llm, llm_kwargs={"max_tokens": 4})


def test_a_class_that_wants_more_than_its_schema_says():
    class Never(BaseModel):
        size: int = Field(ge=0, le=9)

        @field_validator("size")
        @classmethod
        def _no(cls, value):
            raise ValueError("never")

    with pytest.raises(StructuredAnswerError, match=r"is JSON but not a valid Never.*never"):
        _demo_like().structured_predict(Never, PROMPT, what="it")


def _demo_like():
    from conftest import RuleEnsemble

    ensemble = RuleEnsemble()
    ensemble.default = '{"size": 3}'
    return DeepenLLM.from_ensemble(ensemble)


def test_a_schema_that_cannot_be_followed_is_refused_before_decoding(llm):
    class Odd(BaseModel):
        size: int = Field(json_schema_extra={"$ref": "https://example.com/schema"})

    with pytest.raises(SamplingError, match="cannot be followed at"):
        llm.structured_predict(Odd, PROMPT, what="it")


def test_messages_without_a_users_get_one(ensemble):
    ensemble.has_chat_template = True
    ensemble.default = ensemble.answers["x"] = '{"name": "a", "size": 3}'
    prompt = ChatPromptTemplate([ChatMessage(role="system", content="Invent a part.")])
    DeepenLLM.from_ensemble(ensemble).structured_predict(Part, prompt)
    roles = [message["role"] for message in ensemble.requests[-1][0]]
    assert roles == ["system", "user"]


def test_other_program_modes_go_llama_indexs_way(ensemble):
    ensemble.default = '{"name": "a", "size": 3}'
    llm = DeepenLLM.from_ensemble(ensemble, pydantic_program_mode=PydanticProgramMode.LLM)
    assert llm.structured_predict(Part, PromptTemplate("Describe {what}."), what="it") == Part(name="a", size=3)
    asked, params = ensemble.requests[-1]
    assert "Here's a JSON schema to follow" in str(asked)
    assert params.json_schema == Part.model_json_schema()  # held by its parser
