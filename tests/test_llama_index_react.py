"""ReAct agents of LlamaIndex on real members of random weights, whose steps are held to a script by constraints."""

import asyncio
import copy

import pytest
import tiny
from chat_templates import TEMPLATES, tokenizer_with
from conftest import RuleEnsemble
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.agent.workflow import AgentStream, AgentWorkflow, ReActAgent, ToolCallResult
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index_parts import QUESTION, index_of

from deepen_core import Ensemble
from deepen_core.config import SamplingParams
from deepen_core.errors import SamplingError
from deepen_integrations.llama_index import DeepenLLM, configure_settings

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # agents use old names of pydantic and of their own
    pytest.mark.usefixtures("loop_of_llama_index", "fresh_settings"),
]

ACTION = 'Thought: I look it up\\.\nAction: town\nAction Input: \\{"name": "(Mira|Felix)"\\}'
MADE_UP = ACTION + "\nObservation: made up"
ANSWER = "Thought: I know it now\\.\nAnswer: (Lisbon|Oslo)"
NONSENSE = "Thought: hm"


@pytest.fixture(scope="module", params=["texts", "chats", pytest.param("strict", marks=pytest.mark.slow)])
def ensemble(request, made_once):
    """Members without templates, with lenient ones, and with such as want roles to alternate and no system message.

    LlamaIndex's explanation of tools has 1,700 tokens here.
    """
    strict, chat = request.param == "strict", request.param != "texts"

    def make(root):
        tokenizers = [tokenizer_with("mistral"), tokenizer_with("gemma")] if strict else []
        one, two = copy.deepcopy(tokenizers) or (tiny.byte_level(), tiny.sentencepiece_bpe())
        members = [
            tiny.save_gpt2(root / "one", one, window=6000, chat=chat),
            tiny.save_llama(root / "two", two, window=6000, chat=chat),
        ]
        for folder, name in zip(members, ("mistral", "gemma"), strict=True) if strict else ():
            (folder / "chat_template.jinja").write_text(TEMPLATES[name][0], encoding="utf-8")

    root = made_once(f"react-{request.param}", make)
    with Ensemble.load([root / "one", root / "two"], progress=False) as ensemble:
        yield ensemble


@pytest.fixture
def ensemble_of_rules():
    return RuleEnsemble()


@pytest.fixture
def llm(ensemble):
    return DeepenLLM.from_ensemble(ensemble, max_new_tokens=120, regex=ACTION).for_react()


def tool_that_leads_on(llm, result="{name} lives in Lisbon."):
    """A tool after which the model can only answer."""

    def town(name: str) -> str:
        """The town where somebody lives."""
        llm.regex = ANSWER
        return result.format(name=name)

    return FunctionTool.from_defaults(town)


def run(agent, **options):
    """What an agent answers, and the events on the way."""

    async def ask():
        handler = agent.run(QUESTION, **options)
        seen = [event async for event in handler.stream_events()]
        return str(await handler).strip(), seen

    return asyncio.run(ask())


@pytest.mark.parametrize("streaming", [False, True])
def test_an_agent_asks_a_tool_and_answers(llm, events, streaming):
    answer, seen = run(ReActAgent(tools=[tool_that_leads_on(llm)], llm=llm, streaming=streaming))
    assert answer in ("Lisbon", "Oslo")
    (asked,) = [event for event in seen if isinstance(event, ToolCallResult)]
    assert asked.tool_output.content == f"{asked.tool_kwargs['name']} lives in Lisbon."
    said = "".join(event.delta for event in seen if isinstance(event, AgentStream))
    steps = events.named("LLMChatEndEvent")
    assert len(steps) == 2
    step = steps[0].response.message.content
    assert said == (f"{step}Thought: I know it now.\nAnswer: {answer}" if streaming else "")
    told = events.named("LLMChatStartEvent")[-1].messages
    assert told[-1].content == f"Observation: {asked.tool_output.content}"


def test_an_agent_works_in_a_workflow(llm):
    agent = ReActAgent(name="guide", tools=[tool_that_leads_on(llm)], llm=llm)
    answer, seen = run(AgentWorkflow(agents=[agent], root_agent="guide"))
    assert answer in ("Lisbon", "Oslo")
    assert any(isinstance(event, ToolCallResult) for event in seen)


@pytest.mark.parametrize("streaming", [False, True])
def test_an_observation_is_never_made_up(llm, streaming):
    llm.regex = MADE_UP
    answer, seen = run(ReActAgent(tools=[tool_that_leads_on(llm)], llm=llm, streaming=streaming))
    assert answer in ("Lisbon", "Oslo")
    assert "Observation" not in "".join(event.delta for event in seen if isinstance(event, AgentStream))
    assert any(isinstance(event, ToolCallResult) for event in seen)


@pytest.mark.parametrize("streaming", [False, True])
def test_after_nonsense_an_agent_tries_again(llm, events, streaming):
    class LeadsOn(ReActOutputParser):
        """Lets the model answer once it was not understood."""

        def parse(self, output, is_streaming=False):
            try:
                return super().parse(output, is_streaming)
            except ValueError:
                llm.regex = ANSWER
                raise

    llm.regex = NONSENSE
    agent = ReActAgent(tools=[tool_that_leads_on(llm)], llm=llm, streaming=streaming, output_parser=LeadsOn())
    answer, _ = run(agent)
    assert answer in ("Lisbon", "Oslo")
    first, second = (event.messages for event in events.named("LLMChatStartEvent"))
    assert [message.role.value for message in first] == ["system", "user"]
    assert [message.role.value for message in second][-3:] == ["user", "assistant", "user"]
    assert second[-2].content == NONSENSE
    assert second[-1].content.startswith("Error while parsing the output")


@pytest.mark.parametrize("streaming", [False, True])
def test_an_agent_that_is_stopped_early_answers_with_what_it_has(llm, events, streaming):
    def town(name: str) -> str:
        """The town where somebody lives."""
        return "nobody knows"

    agent = ReActAgent(tools=[FunctionTool.from_defaults(town)], llm=llm, streaming=streaming)
    answer, seen = run(agent, max_iterations=3, early_stopping_method="generate")
    assert answer.startswith("Thought: I look it up.")
    assert len([event for event in seen if isinstance(event, ToolCallResult)]) == 2
    last = events.named("LLMChatStartEvent")[-1].messages
    assert last[-1].role.value == "system"
    assert "3" in last[-1].content


def test_a_tool_may_be_a_query_engine_on_the_same_ensemble(llm):
    """The engine answers for the agent and for the agent's tool."""
    reader = DeepenLLM.from_ensemble(llm.ensemble, max_new_tokens=6, ignore_eos=True)
    configure_settings(reader)
    tool = QueryEngineTool.from_defaults(
        index_of().as_query_engine(llm=reader, similarity_top_k=1),
        name="town",
        description="Towns.",
        return_direct=True,
    )
    llm.regex = ACTION.replace("name", "input")
    answer, seen = run(ReActAgent(tools=[tool], llm=llm))
    (asked,) = [event for event in seen if isinstance(event, ToolCallResult)]
    assert answer == asked.tool_output.content.strip()
    assert answer


def weather(city: str, days: int = 1) -> str:
    """The weather in a city."""
    return f"{city}: sunny for {days} days"


def multiply(a: float, b: float) -> float:
    """The product."""
    return a * b


HELD = [FunctionTool.from_defaults(weather), FunctionTool.from_defaults(multiply)]


def test_with_tools_every_step_can_be_read(spoken):
    """Whatever is said at random: LlamaIndex's parser finds a known tool with valid arguments, or an answer."""
    given = DeepenLLM.demo(max_new_tokens=20, max_argument_length=9).for_react(HELD).sampling({})
    read = {"weather": 0, "multiply": 0, None: 0}
    for seed in range(40):
        step = ReActOutputParser().parse(spoken(given, seed))
        tool = None if step.is_done else step.action
        read[tool] += 1
        if tool == "weather":
            assert isinstance(step.action_input["city"], str)
            assert set(step.action_input) <= {"city", "days"}
        elif tool == "multiply":
            assert {type(value) for value in step.action_input.values()} <= {int, float}
            assert set(step.action_input) == {"a", "b"}
    assert all(read.values()), read


def test_a_step_is_held_where_agents_need_it_to_be(verdict):
    rules = DeepenLLM.demo().for_react(HELD).grammar
    begin = "Thought: I look it up.\n"
    for text, expected in [
        (begin + 'Action: weather\nAction Input: {"city": "Oslo"}', "whole"),
        (begin + 'Action: multiply\nAction Input: {"a": 12, "b": 34.5}', "whole"),
        (begin + "Answer: It is 3.\nAction: none, really.", "whole"),
        (begin + "Answer: ", "more"),
        (begin + 'Action: weather\nAction Input: {"city": 3}', "no"),
        (begin + 'Action: weather\nAction Input: {"city": "Oslo"}\nObservation:', "no"),
        (begin + "Action: divide", "no"),
        (begin + "It is late.", "no"),
        ("Thought: The Answer: 3\nAnswer: 3", "no"),
        ("Thought: Action: weather\nAnswer: 3", "no"),
        ("Answer: 3", "no"),
        ("Thought: \nAnswer: 3", "no"),
        ("Thought: " + "hm " * 85 + "hm" + "\nAnswer: 3", "whole"),
        ("Thought: " + "hm " * 86 + "hm" + "\nAnswer: 3", "no"),
    ]:
        assert verdict(None, text, given=SamplingParams(grammar=rules)) == expected, text


def test_an_agent_may_hand_off_to_known_agents_only(verdict):
    given = SamplingParams(grammar=DeepenLLM.demo().for_react(HELD, can_handoff_to=["poet"]).grammar)
    said = 'Thought: Not mine.\nAction: handoff\nAction Input: {"to_agent": "poet", "reason": "A poem is wanted."}'
    assert verdict(None, said, given=given) == "whole"
    assert verdict(None, said.replace('"poet"', '"cook"'), given=given) == "no"


def test_a_constraint_of_the_model_takes_precedence():
    llm = DeepenLLM.demo(regex=ACTION)
    assert llm.for_react(HELD).grammar is None
    assert llm.for_react(HELD).regex == ACTION
    plain = DeepenLLM.demo().for_react()
    assert (plain.grammar, plain.stop) == (None, ("\nObservation:",))


def test_what_react_cannot_call_is_refused_before_anything_is_loaded():
    odd = FunctionTool.from_defaults(weather, name="my weather")
    with pytest.raises(SamplingError, match=r"'my weather'.*without blanks"):
        DeepenLLM.demo().for_react([odd])


def test_one_step_is_held(ensemble_of_rules, verdict):
    said = 'Thought: I look.\nAction: weather\nAction Input: {"city": "Oslo", "days": 2}'
    ensemble_of_rules.default = said
    answer = DeepenLLM.from_ensemble(ensemble_of_rules).predict_and_call(HELD, QUESTION)
    assert answer.response == "Oslo: sunny for 2 days"
    given = ensemble_of_rules.requests[-1][1]
    assert verdict(None, said, given=given) == "whole"
    assert verdict(None, said.replace("weather", "news"), given=given) == "no"
