"""What LlamaIndex reads from answers by itself can be read, whatever is said: by LlamaIndex's own parsers."""

import asyncio

import pytest
from conftest import RuleEnsemble
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.evaluation import (
    AnswerRelevancyEvaluator,
    ContextRelevancyEvaluator,
    CorrectnessEvaluator,
    FaithfulnessEvaluator,
    GuidelineEvaluator,
    PairwiseComparisonEvaluator,
    RelevancyEvaluator,
)
from llama_index.core.indices.struct_store import JSONQueryEngine
from llama_index.core.indices.vector_store.retrievers.auto_retriever.output_parser import VectorStoreQueryOutputParser
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.selectors import LLMMultiSelector, LLMSingleSelector
from llama_index.core.tools import ToolMetadata
from pydantic import BaseModel, Field

from deepen_integrations.llama_index import DeepenLLM, DeepenToolLLM

pytestmark = [
    pytest.mark.usefixtures("fresh_settings", "loop_of_llama_index"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class House(BaseModel):
    number: int = Field(ge=1, le=9)
    street: str = Field(max_length=5)


class Talker(RuleEnsemble):
    """Says what the constraint of a request allows, chosen at random."""

    seed = 0

    def _answer(self, prompt, params):
        self.default = self.spoken(params, self.seed) if params.constraint else "I would rather not say."
        self.answers.clear()
        return super()._answer(prompt, params)


@pytest.fixture(params=["texts", "chats"])
def talker(request, spoken):
    ensemble = Talker()
    ensemble.context_window = 4000
    ensemble.has_chat_template = request.param == "chats"
    ensemble.spoken = spoken
    return ensemble


@pytest.fixture
def llm(talker):
    kind = DeepenToolLLM if talker.has_chat_template else DeepenLLM
    return kind.from_ensemble(talker, max_new_tokens=20)


def spelled(talker, ask, times=6):
    found = []
    for talker.seed in range(times):
        found.append(ask())
    return found


PLACES = [ToolMetadata(name=name, description=f"All about {name}.") for name in ("ports", "hills", "parks")]


def test_selectors_choose_what_there_is(talker, llm):
    for selector, most in [
        (LLMSingleSelector.from_defaults(llm), 1),
        (LLMMultiSelector.from_defaults(llm), 3),
        (LLMMultiSelector.from_defaults(llm, max_outputs=2), 2),
    ]:
        for found in spelled(talker, lambda chooser=selector: chooser.select(PLACES, "Where do ships go?")):
            assert 1 <= len(found.selections) <= most
            assert all(0 <= one.index < 3 for one in found.selections)
            assert all(len(one.reason) <= 10 for one in found.selections)


def test_questions_go_to_tools_that_exist(talker, llm):
    generator = LLMQuestionGenerator.from_defaults(llm)
    for found in spelled(talker, lambda: generator.generate(PLACES, QueryBundle("Ports and hills?"))):
        assert found
        assert {question.tool_name for question in found} <= {"ports", "hills", "parks"}
    assert asyncio.run(generator.agenerate(PLACES, QueryBundle("Ports?")))


@pytest.mark.parametrize("prompt", ["text", "messages", "system"])
def test_completion_programs_make_objects(talker, llm, prompt):
    templates = {
        "text": PromptTemplate("The house of {name}?"),
        "messages": ChatPromptTemplate([ChatMessage(role="user", content="The house of {name}?")]),
        "system": ChatPromptTemplate(
            [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="The house of {name}?")]
        ),
    }
    program = LLMTextCompletionProgram.from_defaults(output_cls=House, prompt=templates[prompt], llm=llm)
    if prompt == "system" and not talker.has_chat_template:
        pytest.skip("the instructions are in the middle of a text")
    assert all(isinstance(found, House) for found in spelled(talker, lambda: program(name="Kofi")))
    assert isinstance(asyncio.run(program.acall(name="Kofi")), House)
    assert [*program.stream_call(name="Kofi")][-1].number
    assert talker.requests[-1][1].json_schema == House.model_json_schema()


def test_rerankers_name_documents_that_exist(talker, llm):
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in ("ships", "sheep", "swings")]
    for found in spelled(talker, lambda: LLMRerank(llm=llm).postprocess_nodes(nodes, query_str="Ships?")):
        assert found
        assert all(1 <= one.score <= 10 for one in found)


@pytest.mark.parametrize(
    "kind",
    [
        CorrectnessEvaluator,
        FaithfulnessEvaluator,
        RelevancyEvaluator,
        AnswerRelevancyEvaluator,
        ContextRelevancyEvaluator,
        GuidelineEvaluator,
        PairwiseComparisonEvaluator,
    ],
)
def test_evaluators_find_their_verdict(talker, llm, kind):
    evaluator = kind(llm=llm)
    given = {"query": "Where?", "response": "In Oslo.", "contexts": ["Mira lives in Oslo."], "reference": "Oslo"}
    if kind is PairwiseComparisonEvaluator:
        given["second_response"] = "In Lima."
    for found in spelled(talker, lambda: asyncio.run(evaluator.aevaluate(**given)), times=3):
        assert found.score is not None
        assert not found.invalid_result
    assert all(params.constraint for _, params in talker.requests)


def test_json_paths_are_paths_and_the_answer_is_free(talker, llm):
    said = []
    engine = JSONQueryEngine(
        {"name": "Mira"}, {"type": "object"}, llm=llm, output_processor=lambda path, value: said.append(path) or {}
    )
    answers = spelled(talker, lambda: str(engine.query("Whose?")))
    assert all(path.startswith("JSONPath: $") and "," not in path and "\n" not in path for path in said)
    assert set(answers) == {"I would rather not say."}


def test_filters_are_valid(talker, llm):
    prompt = PromptTemplate("Filter {query_str}.", output_parser=VectorStoreQueryOutputParser())
    for said in spelled(talker, lambda: llm.predict(prompt, query_str="ships")):
        assert prompt.output_parser.parse(said).parsed_output.query is not None


def test_a_constraint_of_the_caller_takes_precedence(talker, llm):
    prompt = PromptTemplate("House?", output_parser=PydanticOutputParser(House))
    strict = llm.with_options(choices=["yes", "no"])
    assert strict.predict(prompt) in {"yes", "no"}
    program = LLMTextCompletionProgram.from_defaults(output_cls=House, prompt_template_str="House?", llm=llm)
    with pytest.raises(ValueError, match="extract"):
        program(llm_kwargs={"regex": "[a-z]{3}"})


def test_what_reads_the_answer_may_be_unknown(talker, llm):
    class Own(PydanticOutputParser):
        def parse(self, text):
            return text

    assert llm.predict(PromptTemplate("House?", output_parser=Own(House))) == "I would rather not say."
    assert llm.predict(PromptTemplate("House?")) == "I would rather not say."
    assert talker.requests[-1][1].constraint is None


def test_a_class_that_decoding_cannot_follow_is_read_as_before(talker, llm):
    class Odd(BaseModel):
        size: int = Field(json_schema_extra={"$ref": "https://example.com/schema"})

    assert llm.predict(PromptTemplate("Odd?", output_parser=PydanticOutputParser(Odd))) == "I would rather not say."


def test_text_of_a_user_holds_nothing(talker, llm):
    """Even if it reads like a parser's instructions: only a program's prompt, or a model without messages, is held."""
    text = PydanticOutputParser(House).format("House?")
    llm.chat([ChatMessage(role="user", content=text)])
    assert talker.requests[-1][1].constraint is None
    llm.predict(PromptTemplate("{said}"), said=text)
    assert talker.requests[-1][1].constraint is None
