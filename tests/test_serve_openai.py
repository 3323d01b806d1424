"""The official `openai` client against a server of the demo: it gets what the ensemble says in this process."""

import json

import openai
import pytest
from pydantic import BaseModel
from serve_parts import sequences_held, until

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
ASKED = [{"role": "user", "content": "Where does Felix live?"}]
TEXT = "Question: Where does Felix live?\nAnswer:"
LOOK_UP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {"name": {"enum": ["Anna", "Felix"]}},
            "required": ["name"],
            "additionalProperties": False,
        },
    },
}
LONG = {"max_tokens": 200, "extra_body": {"ignore_eos": True}}


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0) as client:
        yield client


@pytest.fixture
def chat(client):
    return lambda messages=ASKED, **options: client.chat.completions.create(model="demo", messages=messages, **options)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").object == "model"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens": 3},
        {"max_completion_tokens": 3},
        {"temperature": 1.5, "seed": 7, "top_p": 0.9},
        {"stop": ["sb"]},
        {"frequency_penalty": 1.0, "presence_penalty": 0.5},
        {"logit_bias": {"300": -100}},
    ],
)
def test_an_answer_is_the_ensembles(chat, served_demo, options):
    expected = served_demo.generate(ASKED, **{("max_tokens" if "max" in n else n): v for n, v in options.items()})
    answer = chat(**options)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == expected.usage.completion_tokens
    assert answer.usage.total_tokens == expected.usage.total_tokens


def test_a_stream_is_the_answer_in_pieces_with_its_usage(chat, served_demo):
    expected = served_demo.generate(ASKED, max_new_tokens=20, ignore_eos=True)
    options = {"max_tokens": 20, "extra_body": {"ignore_eos": True}}
    events = list(chat(stream=True, stream_options={"include_usage": True}, **options))
    *pieces, last = events
    texts = [piece.choices[0].delta.content or "" for piece in pieces]
    assert "".join(texts) == expected.text
    assert sum(map(bool, texts)) > 1, "tokens within the stream interval share an event, however many that are"
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [piece.choices[0].finish_reason for piece in pieces[-2:]] == [None, "length"]
    assert last.choices == []
    assert last.usage.completion_tokens == 20
    assert {event.id for event in events} == {last.id}
    assert all(piece.usage is None for piece in pieces)


def test_a_stream_without_usage_has_none(chat):
    assert all(event.usage is None and event.choices for event in chat(stream=True, max_tokens=3))


def test_several_answers(chat, served_demo):
    options = {"temperature": 2.0, "max_tokens": 8, "extra_body": {"ignore_eos": True}}
    expected = [
        served_demo.generate(ASKED, temperature=2.0, max_new_tokens=8, ignore_eos=True, seed=seed).text
        for seed in (5, 6, 7)
    ]
    answer = chat(n=3, seed=5, **options)
    assert [choice.message.content for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens == served_demo.generate(ASKED, max_new_tokens=1).usage.prompt_tokens
    streamed = ["", "", ""]
    for event in chat(n=3, seed=5, stream=True, **options):
        streamed[event.choices[0].index] += event.choices[0].delta.content or ""
    assert streamed == expected


def test_logprobs(chat, served_demo):
    expected = served_demo.generate(ASKED, max_new_tokens=4, ignore_eos=True, logprobs=2).logprobs
    options = {"logprobs": True, "top_logprobs": 2, "max_tokens": 4, "extra_body": {"ignore_eos": True}}
    found = chat(**options).choices[0].logprobs.content
    assert [token.logprob for token in found] == pytest.approx([token.logprob for token in expected], abs=1e-4)
    assert [bytes(token.bytes) for token in found] == [token.token for token in expected]
    assert [len(token.top_logprobs) for token in found] == [2] * 4
    events = [event.choices[0].logprobs for event in chat(stream=True, **options)]
    streamed = [token.token for logprobs in events if logprobs for token in logprobs.content]
    assert streamed == [token.token for token in found]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "look_up"}}], ids=["required", "named"]
)
def test_a_tool_is_called(chat, choice, stream):
    options = {"tools": [LOOK_UP], "tool_choice": choice, "max_tokens": 120, "parallel_tool_calls": False}
    if stream:
        events = list(chat(stream=True, **options))
        calls = [call for event in events for call in event.choices[0].delta.tool_calls or ()]
        reason = events[-1].choices[0].finish_reason
    else:
        answer = chat(**options).choices[0]
        calls, reason = answer.message.tool_calls, answer.finish_reason
        assert answer.message.content is None
    assert [call.function.name for call in calls] == ["look_up"]
    assert json.loads(calls[0].function.arguments)["name"] in {"Anna", "Felix"}
    assert calls[0].id.startswith("call_")
    assert reason == "tool_calls"


def test_the_result_of_a_call_goes_back(chat):
    call = chat(tools=[LOOK_UP], tool_choice="required", max_tokens=120, parallel_tool_calls=False).choices[0].message
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "Felix lives in Lisbon."}
    answer = chat([*ASKED, call.model_dump(exclude_none=True), result], tools=[LOOK_UP], tool_choice="none")
    assert answer.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_off_is_never_sent(chat, stream):
    options = {"tools": [LOOK_UP], "tool_choice": "required", "max_tokens": 12}
    if stream:
        events = list(chat(stream=True, **options))
        assert not any(event.choices[0].delta.tool_calls for event in events)
        last = events[-1].choices[0]
    else:
        last = chat(**options).choices[0]
        assert not last.message.tool_calls
    assert last.finish_reason == "length"
    assert "inside a tool call" in last.warnings[0]


def test_an_object_follows_its_schema(client):
    class Home(BaseModel):
        city: str
        old: bool

    schema = {"type": "json_schema", "json_schema": {"name": "Home", "schema": Home.model_json_schema()}}
    schema["json_schema"]["schema"]["properties"]["city"]["enum"] = ["Lisbon", "Oslo"]
    answer = client.chat.completions.create(model="demo", messages=ASKED, response_format=schema, max_tokens=100)
    assert Home.model_validate_json(answer.choices[0].message.content).city in {"Lisbon", "Oslo"}


def test_any_object(chat):
    answer = chat(response_format={"type": "json_object"}, max_tokens=30).choices[0]
    assert answer.message.content.startswith("{")


def test_completions(client, served_demo):
    prompts = [TEXT, "Felix"]
    expected = served_demo.generate(prompts, max_new_tokens=6, ignore_eos=True, logprobs=2)
    options = {"max_tokens": 6, "extra_body": {"ignore_eos": True}}
    answer = client.completions.create(model="demo", prompt=prompts, logprobs=2, **options)
    assert [choice.text for choice in answer.choices] == [each.text for each in expected]
    assert answer.usage.prompt_tokens == sum(each.usage.prompt_tokens for each in expected)
    for choice, each in zip(answer.choices, expected, strict=True):
        assert choice.logprobs.token_logprobs == pytest.approx([t.logprob for t in each.logprobs], abs=1e-4)
        assert "".join(choice.logprobs.tokens) == each.text
        starts = choice.logprobs.text_offset
        assert [each.text[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)] == choice.logprobs.tokens
        assert all(len(top) == 2 for top in choice.logprobs.top_logprobs)
    streamed = ["", ""]
    for event in client.completions.create(model="demo", prompt=prompts, stream=True, **options):
        streamed[event.choices[0].index] += event.choices[0].text
    assert streamed == [each.text for each in expected]


def test_a_stream_that_is_closed_frees_its_sequence(chat, served_demo):
    with chat(stream=True, **LONG) as events:
        next(events)
        assert until(lambda: sequences_held(served_demo) == 1)
    assert until(lambda: sequences_held(served_demo) == 0, 2)


def test_a_request_whose_client_gives_up_frees_its_sequence(chat, served_demo, server):
    with pytest.raises(openai.APITimeoutError):
        chat(timeout=0.1, n=4, temperature=1.0, max_tokens=900, extra_body={"ignore_eos": True})
    assert until(lambda: sequences_held(served_demo) == 0, 2)
    assert until(lambda: server.metric("deepen_clients_gone_total") >= 1)


async def test_the_async_client(server, served_demo):
    async with openai.AsyncOpenAI(base_url=server.url, api_key=server.key) as client:
        events = await client.chat.completions.create(model="demo", messages=ASKED, stream=True)
        text = "".join([event.choices[0].delta.content or "" async for event in events])
    assert text == served_demo.generate(ASKED).text


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (openai.NotFoundError, {"model": "gpt-5"}, "this server has 'demo'"),
        (openai.BadRequestError, {"temperature": -1}, "temperature"),
        (openai.BadRequestError, {"extra_body": {"temprature": 1}}, "did you mean 'temperature'"),
        (openai.BadRequestError, {"messages": []}, "messages"),
        (openai.BadRequestError, {"n": 2}, "temperature 0"),
        (openai.BadRequestError, {"tool_choice": "required"}, "there are no tools"),
        (openai.BadRequestError, {"messages": [{"role": "user", "content": "Felix " * 3000}]}, "window"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(client, error, options, message, stream):
    with pytest.raises(error, match=message):
        client.chat.completions.create(**{"model": "demo", "messages": ASKED, "stream": stream, **options})


def test_a_wrong_key(server):
    with openai.OpenAI(base_url=server.url, api_key="sk-wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
