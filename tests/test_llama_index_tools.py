"""LlamaIndex's agents and programs on a model that calls tools, and what DeepenToolLLM is."""

import json
import pickle

import pytest
from jsonschema import validate
from llama_index.core.agent.workflow import AgentStream, AgentWorkflow, FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.loading import load_llm
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from deepen_core.errors import NoToolCallError, SamplingError
from deepen_integrations.llama_index import DeepenLLM, DeepenToolLLM

# LlamaIndex's agents use what pydantic has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def multiply(a: int, b: int) -> int:
    """Multiplies two numbers."""
    return a * b


def capital(country: str) -> str:
    """Names the capital of a country."""
    return f"{country}'s capital"


class City(BaseModel):
    """A city."""

    name: str
    rivers: list[str]


TOOLS = [FunctionTool.from_defaults(multiply), FunctionTool.from_defaults(capital)]
ASK = [ChatMessage(role=MessageRole.USER, content="What is 12 times 13?")]


@pytest.fixture(scope="module")
def llm(terse_folders):
    with DeepenToolLLM(models=terse_folders, max_new_tokens=400, progress=False) as model:
        yield model


def test_what_it_is(llm):
    assert isinstance(llm, (DeepenLLM, FunctionCallingLLM))
    assert llm.class_name() == "DeepenToolLLM"
    assert llm.metadata.is_function_calling_model
    assert llm.metadata.is_chat_model
    assert not DeepenLLM(models=llm.models).metadata.is_function_calling_model
    for copied in (load_llm(llm.to_dict()), pickle.loads(pickle.dumps(llm)), DeepenToolLLM.from_dict(llm.to_dict())):
        assert copied.ensemble is llm.ensemble


def checked(call):
    """A call whose arguments are what its tool takes."""
    (tool,) = (tool for tool in TOOLS if tool.metadata.name == call.tool_name)
    validate(call.tool_kwargs, tool.metadata.get_parameters_dict())
    assert call.tool_id.startswith("call_")
    return call


@pytest.mark.parametrize("way", ["chat", "stream", "achat", "astream"])
async def test_a_required_call_is_made_and_valid(llm, way):
    options = {"user_msg": "What is 12 times 13?", "tool_required": True}
    if way == "chat":
        responses = [llm.chat_with_tools(TOOLS, **options)]
    elif way == "achat":
        responses = [await llm.achat_with_tools(TOOLS, **options)]
    elif way == "stream":
        responses = list(llm.stream_chat_with_tools(TOOLS, **options))
    else:
        responses = [r async for r in await llm.astream_chat_with_tools(TOOLS, **options)]
    last = responses[-1]
    (call,) = map(checked, llm.get_tool_calls_from_response(last))
    assert last.message.content == ""
    assert last.raw["finish_reason"] == "tool_calls"
    (told,) = last.message.additional_kwargs["tool_calls"]
    assert told["id"] == call.tool_id
    assert json.loads(told["function"]["arguments"]) == call.tool_kwargs
    for early in responses[:-1]:
        assert not early.message.additional_kwargs.get("tool_calls") or early.message.blocks[-1].tool_name


def test_a_named_tool_is_called(llm):
    for name in ("multiply", "capital"):
        for choice in (name, {"type": "function", "function": {"name": name}}):
            response = llm.chat_with_tools(TOOLS, user_msg="Hi.", tool_choice=choice)
            (call,) = map(checked, llm.get_tool_calls_from_response(response))
            assert call.tool_name == name


def test_several_calls_where_they_are_allowed(llm):
    messages = {"user_msg": "Hi.", "tool_required": True}
    one = llm.get_tool_calls_from_response(llm.chat_with_tools(TOOLS, **messages))
    assert len(one) == 1
    several = llm.chat_with_tools(TOOLS, allow_parallel_tool_calls=True, **messages)
    calls = list(map(checked, llm.get_tool_calls_from_response(several)))
    assert len({call.tool_id for call in calls}) == len(calls)


def test_a_call_that_is_cut_off_is_none(llm):
    """It is no answer either, in no way."""
    asked = {"user_msg": "Hi.", "tool_required": True, "max_new_tokens": 12}
    for ask in (llm.chat_with_tools, lambda *args, **options: list(llm.stream_chat_with_tools(*args, **options))):
        with pytest.raises(
            NoToolCallError, match=r"ended \(length\) inside a tool call, after '<tool_call>.*raise max"
        ):
            ask(TOOLS, **asked)


async def test_a_call_that_is_cut_off_ends_an_agent(llm):
    agent = FunctionAgent(tools=TOOLS[:1], llm=llm.with_options(max_new_tokens=12), initial_tool_choice="multiply")
    with pytest.raises(NoToolCallError, match=r"inside a tool call"):
        await agent.run("Hi.")


def test_mistakes_are_told_before_anything_is_loaded(tmp_path):
    llm = DeepenToolLLM(models=[tmp_path / "missing"])
    with pytest.raises(SamplingError, match="'divide': choose"):
        llm.chat_with_tools(TOOLS, user_msg="Hi.", tool_choice="divide")
    unique = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    odd = {"type": "function", "function": {"name": "odd", "parameters": {"properties": {"a": unique}}}}
    with pytest.raises(SamplingError, match=r"properties\.a"):
        llm.chat(ASK, tools=[odd], strict=True)
    with pytest.raises(SamplingError, match="Unknown option 'tool'"):
        llm.chat(ASK, tool=TOOLS)
    with pytest.raises(SamplingError, match="Unknown option 'tools'"):
        DeepenLLM(models=[tmp_path / "missing"]).chat(ASK, tools=[])


@pytest.mark.parametrize("where", ["tools", "response_format"])
def test_a_schema_that_cannot_be_followed_is_told_before_anything_is_loaded(tmp_path, where):
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    function, form = {"name": "f", "parameters": schema}, {"name": "f", "schema": schema}
    given = {
        "tools": [{"type": "function", "function": function}],
        "response_format": {"type": "json_schema", "json_schema": form},
    }
    with pytest.raises(SamplingError, match="uniqueItems"):
        DeepenToolLLM(models=[str(tmp_path)], strict=True).chat(ASK, **{where: given[where]})


@pytest.mark.parametrize("way", ["predict", "apredict"])
async def test_what_is_called_is_run(llm, way):
    options = {"user_msg": "What is 12 times 13?", "tool_required": True}
    if way == "predict":
        said = llm.predict_and_call([TOOLS[0]], **options)
    else:
        said = await llm.apredict_and_call([TOOLS[0]], **options)
    (source,) = said.sources
    assert said.response == str(source.raw_output) == str(multiply(**source.raw_input["kwargs"]))


def test_an_answer_without_a_call_is_an_error_of_ours(llm):
    with pytest.raises(NoToolCallError, match="calls no tool"):
        llm.predict_and_call(TOOLS, user_msg="Hi.", max_new_tokens=3)


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_function_agent_calls_and_answers(llm, streaming):
    agent = FunctionAgent(
        tools=TOOLS, llm=llm, streaming=streaming, initial_tool_choice="multiply", allow_parallel_tool_calls=False
    )
    handler = agent.run("What is 12 times 13?")
    events = [event async for event in handler.stream_events()]
    (result,) = (event for event in events if isinstance(event, ToolCallResult))
    assert result.tool_output.raw_output == multiply(**result.tool_kwargs)
    assert any(isinstance(event, AgentStream) for event in events) == streaming
    answer = await handler
    assert answer.response.content
    assert not answer.tool_calls or answer.tool_calls[0].tool_name == "multiply"


async def test_a_workflow_takes_the_agent_that_fits(llm):
    workflow = AgentWorkflow.from_tools_or_functions(TOOLS, llm=llm)
    (agent,) = workflow.agents.values()
    assert isinstance(agent, FunctionAgent)
    assert (await workflow.run("Hi.")).response.content


def test_members_are_told_of_the_tools_and_of_what_they_said(llm, monkeypatch):
    seen = []
    generate = llm.ensemble.generate
    monkeypatch.setattr(
        llm.ensemble, "generate", lambda prompt, params: seen.append(prompt) or generate(prompt, params)
    )
    call = ToolCallBlock(tool_call_id="1", tool_name="multiply", tool_kwargs={"a": 12, "b": 13})
    thought = ThinkingBlock(content="Hm.")
    history = [
        ChatMessage(role=MessageRole.SYSTEM, content="Be brief."),
        *ASK,
        ChatMessage(role=MessageRole.ASSISTANT, blocks=[thought, TextBlock(text="Let me see."), call]),
        ChatMessage(role=MessageRole.TOOL, content="156", additional_kwargs={"tool_call_id": "1"}),
    ]
    llm.chat_with_tools(TOOLS, chat_history=history)
    roles, texts = zip(*((m["role"], "".join(m["content"])) for m in seen[0]), strict=True)
    assert roles == ("system", "user", "assistant", "user")
    assert texts[0].startswith("Be brief.\n\n# Tools")
    assert all(f'"name": "{tool.metadata.name}"' in texts[0] for tool in TOOLS)
    assert texts[2] == ('Let me see.\n<tool_call>\n{"name": "multiply", "arguments": {"a": 12, "b": 13}}\n</tool_call>')
    assert texts[3] == "<tool_response>\n156\n</tool_response>"  # after thoughts, more would look like a new question


def test_members_without_templates_are_told_too(llm):
    said = []

    def render(messages):
        said.append([(m.role.value, m.content) for m in messages])
        return "\n".join(f"{m.role.value}: {m.content}" for m in messages)

    plain = llm.model_copy(update={"messages_to_prompt": render})
    response = plain.chat_with_tools(TOOLS, user_msg="Hi.", tool_required=True)
    assert list(map(checked, llm.get_tool_calls_from_response(response)))
    ((role, told), user) = said[0]
    assert (role, user) == ("system", ("user", "Hi."))
    assert "multiply" in told


@pytest.mark.parametrize(
    "way", ["call", "astream", *(pytest.param(way, marks=pytest.mark.slow) for way in ("acall", "stream"))]
)
async def test_programs_get_objects_through_tools(llm, way):
    """LlamaIndex 0.14 requires the call where it does not stream; where it does, the choice is to be given."""
    choice = {"tool_choice": "City"} if "stream" in way else {}
    program = FunctionCallingProgram.from_defaults(City, prompt_template_str="Describe {city}.", llm=llm, **choice)
    if way == "call":
        city = program(city="Oslo")
    elif way == "acall":
        city = await program.acall(city="Oslo")
    elif way == "stream":
        *_, city = program.stream_call(city="Oslo")
    elif way == "astream":
        *_, city = [city async for city in await program.astream_call(city="Oslo")]
    assert City.model_validate(city.model_dump()) == City(**city.model_dump())


def test_a_stream_of_objects_ends_with_the_class(llm):
    *_, city = llm.stream_structured_predict(City, PromptTemplate("Describe {city}."), city="Oslo")
    assert isinstance(city, City)
