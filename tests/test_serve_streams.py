"""How often a stream has an event."""

import json

import pytest
from serve_parts import KEY, running

from deepen_integrations.serve import ServeOptions

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
PROMPT = "Question: Where does Felix live?\nAnswer:"
TOKENS = 24


def streamed(server, **more):
    """The choices of all events."""
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": TOKENS, "ignore_eos": True, "stream": True, **more}
    lines = server.post("/v1/completions", json=body).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    return [choice for event in events for choice in event["choices"]]


@pytest.mark.parametrize("logprobs", [None, 2])
@pytest.mark.parametrize("interval", [0.0, 3600.0])
def test_tokens_within_the_interval_share_an_event(served_demo, interval, logprobs):
    with running({"demo": served_demo}, ServeOptions(api_keys=[KEY], stream_interval_s=interval)) as server:
        choices = streamed(server, logprobs=logprobs)
    whole = served_demo.generate(PROMPT, max_new_tokens=TOKENS, ignore_eos=True)
    assert "".join(choice["text"] for choice in choices) == whole.text
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
    if logprobs:
        told = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["tokens"]]
        assert len(told) == TOKENS
    if interval:
        assert choices[0]["text"], "the first token is sent at once"
        assert len(choices) <= 3
    else:
        assert len(choices) >= TOKENS // 2


@pytest.mark.parametrize(("pace", "interval"), [(1e-6, 0.001), (1e9, 3600.0)], ids=["many answers", "few answers"])
def test_the_interval_grows_with_the_answers_and_never_shrinks(served_demo, monkeypatch, pace, interval):
    """The one answer here counts as a million times the usual number, or as next to none of it."""
    monkeypatch.setattr("deepen_integrations.serve.endpoints.ANSWERS_AT_FULL_PACE", pace)
    with running({"demo": served_demo}, ServeOptions(api_keys=[KEY], stream_interval_s=interval)) as server:
        choices = streamed(server)
    assert "".join(choice["text"] for choice in choices)
    assert len(choices) <= 3
