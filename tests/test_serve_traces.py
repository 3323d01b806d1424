"""The server's own fields: traces, and members that answer alone."""

from functools import partial

import pytest
from openai import BadRequestError, OpenAI
from serve_parts import KEY

from deepen_core.tracing import Trace

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
QUESTION = [{"role": "user", "content": "What does Esther work as?"}]


@pytest.fixture(scope="module")
def client(server):
    with OpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client:
        yield client


def test_a_choice_has_the_trace_that_the_engine_has(client, served_demo):
    known = served_demo.generate(QUESTION, trace=True)
    chat = {"model": "demo", "messages": QUESTION}
    assert "trace" not in client.chat.completions.create(**chat).choices[0].model_extra
    (choice,) = client.chat.completions.create(**chat, extra_body={"trace": True}).choices
    assert Trace.from_dict(choice.trace) == known.trace
    steps, last = [], {}
    for event in client.chat.completions.create(**chat, stream=True, extra_body={"trace": True}):
        last = getattr(event.choices[0], "trace", None) or {}
        steps += last.get("steps", [])
    assert Trace.from_dict({**last, "steps": steps}) == known.trace


def test_completions(client, served_demo):
    served_demo.generate("Anna's home is in", max_new_tokens=1)  # from now on its likelihood is known, bit by bit
    known = served_demo.generate("Anna's home is in", max_new_tokens=6, trace=True)
    asked = {"model": "demo", "prompt": "Anna's home is in", "max_tokens": 6, "extra_body": {"trace": True}}
    (choice,) = client.completions.create(**asked).choices
    assert Trace.from_dict(choice.trace) == known.trace
    events = list(client.completions.create(**asked, stream=True))
    steps = [step for event in events for step in event.choices[0].trace["steps"]]
    assert Trace.from_dict({**events[-1].choices[0].trace, "steps": steps}) == known.trace


@pytest.mark.parametrize("name", ["atlas-gpt2", "almanac-llama"])
def test_a_member_answers_alone(client, served_demo, name):
    known = served_demo.alone(name).generate(QUESTION, trace=True)
    asked = {"model": "demo", "messages": QUESTION, "extra_body": {"member": name, "trace": True}}
    (choice,) = client.chat.completions.create(**asked).choices
    assert choice.message.content == known.text
    assert Trace.from_dict(choice.trace) == known.trace
    text = client.completions.create(model="demo", prompt="Anna's", max_tokens=4, extra_body={"member": name})
    assert text.choices[0].text == served_demo.alone(name).generate("Anna's", max_new_tokens=4).text


def test_models_name_their_members(client):
    model = client.models.retrieve("demo")
    assert model.model_extra["members"] == ["atlas-gpt2", "almanac-llama"]
    assert model.model_extra["main"] == "atlas-gpt2"
    assert model.model_extra["chats"] == ["atlas-gpt2", "almanac-llama"]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"member": "nobody"}, "member"),
        ({"member": ""}, "member"),
        ({"member": 1}, "member"),
        ({"member": ["atlas-gpt2"]}, "member"),
        ({"trace": "yes"}, "trace"),
        ({"trace": 5}, "trace"),
        ({"trace": {}}, "trace"),
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_bad_input(client, given, param, chat):
    if chat:
        ask = partial(client.chat.completions.create, messages=QUESTION)
    else:
        ask = partial(client.completions.create, prompt="x")
    with pytest.raises(BadRequestError) as caught:
        ask(model="demo", extra_body=given)
    assert caught.value.param == param
