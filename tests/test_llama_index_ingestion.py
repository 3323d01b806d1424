"""Ingestion of 20 chunks, three of which cannot be answered for: it ends, and the others have what they have alone."""

import asyncio
from typing import ClassVar, Literal

import pytest
from llama_index.core.extractors import KeywordExtractor
from llama_index.core.indices.property_graph import SchemaLLMPathExtractor
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from pydantic import BaseModel, Field

from deepen_core import Ensemble
from deepen_core.demo import documents, questions
from deepen_core.errors import ClosedError, StructuredAnswerError
from deepen_integrations.llama_index import DeepenLLM, NodeByNode

pytestmark = pytest.mark.usefixtures("loop_of_llama_index")
BAD = {3, 9, 15}


def pipeline_of(transformation):
    return IngestionPipeline(transformations=[transformation], disable_cache=True)


def run(transformation, nodes, way):
    pipeline = pipeline_of(transformation)
    return asyncio.run(pipeline.arun(nodes=nodes)) if way == "arun" else pipeline.run(nodes=nodes)


@pytest.fixture(scope="module")
def demo(needs_demo):
    with Ensemble.demo() as ensemble:
        yield DeepenLLM.from_ensemble(ensemble, max_new_tokens=12)


class Asked:
    """Chunks that each end in a question about their document, whose answers are known; some are far too long."""

    def __init__(self):
        by_name = {document.text.split()[0]: document.text for document in documents()}
        known = [(by_name[name], q) for q in questions() for name in by_name if name in q.text][:20]
        self.answers = [question.answer for _, question in known]
        self.chunks = [
            f"{text * (60 if place in BAD else 1)}\n\n{question.text}" for place, (text, question) in enumerate(known)
        ]

    def nodes(self):
        return [TextNode(text=text, id_=str(place)) for place, text in enumerate(self.chunks)]


def keywords(llm):
    return KeywordExtractor(llm=llm, prompt_template="{context_str}", show_progress=False)


@pytest.mark.parametrize("way", ["run", "arun"])
def test_chunks_that_are_too_long_cost_the_others_nothing(demo, way, caplog):
    asked = Asked()
    found = [node.metadata for node in run(NodeByNode(transformation=keywords(demo)), asked.nodes(), way)]
    alone = [
        {} if n in BAD else {"excerpt_keywords": demo.complete(t).text.strip()} for n, t in enumerate(asked.chunks)
    ]
    assert len(found) == 20
    assert found == alone
    right = [metadata.get("excerpt_keywords") == answer for metadata, answer in zip(found, asked.answers, strict=True)]
    assert sum(right) >= 15, found
    told = [record.getMessage() for record in caplog.records if record.name == "deepen_integrations"]
    assert len(told) == 3
    assert all("passes without KeywordExtractor" in line and "shorten it by at least" in line for line in told)


class Named(BaseModel):
    type: Literal["PERSON", "PLACE"]
    name: str = Field(min_length=1, max_length=4)


class Relation(BaseModel):
    type: Literal["NEAR"]


class Triplet(BaseModel):
    subject: Named
    relation: Relation
    object: Named


class Triplets(BaseModel):
    triplets: list[Triplet] = Field(min_length=1, max_length=1)


def triplets(llm):
    return SchemaLLMPathExtractor(llm=llm, kg_schema_cls=Triplets, strict=False)


class CutShort(DeepenLLM):
    """Has only three tokens for the object of a text that says so."""

    cut: ClassVar = []

    async def astructured_predict(self, output_cls, prompt, llm_kwargs=None, **prompt_args):
        if "cut short" in prompt_args["text"]:
            llm_kwargs = {"max_new_tokens": 3}
        try:
            return await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        except StructuredAnswerError:
            self.cut.append(prompt_args["text"])
            raise


def paths(node):
    """Which entities and relations were found, without the ids that LlamaIndex makes up."""
    nodes, relations = node.metadata["nodes"], node.metadata["relations"]
    return [(n.label, n.name) for n in nodes], [(r.label, r.source_id, r.target_id) for r in relations]


def test_answers_that_are_cut_off_cost_the_others_nothing(terse):
    """Extractors of paths tolerate them by themselves."""
    llm = CutShort.from_ensemble(terse, max_new_tokens=400, temperature=1.0, seed=3)
    texts = [f"The dog number {place} {'was cut short' if place in BAD else 'sleeps'}." for place in range(20)]
    alone = {place: triplets(llm)([TextNode(text=texts[place])])[0] for place in (0, 10, 19)}
    found = pipeline_of(triplets(llm)).run(nodes=[TextNode(text=text) for text in texts])
    assert all(paths(found[place]) == paths(node) for place, node in alone.items())
    assert [place for place, node in enumerate(found) if paths(node) == ([], [])] == sorted(BAD)
    assert sorted(llm.cut) == sorted(texts[place] for place in BAD)


async def test_what_is_wrong_with_the_ensemble_is_raised_at_once(demo):
    """And nothing goes on in the background, where LlamaIndex leaves what it has started."""
    llm = DeepenLLM.demo(max_new_tokens=12)
    llm.close()
    nodes = [TextNode(text="dog") for _ in range(5)]
    with pytest.raises(ClosedError):
        await NodeByNode(transformation=keywords(llm), num_workers=2).acall(nodes)
    assert len(asyncio.all_tasks()) == 1
