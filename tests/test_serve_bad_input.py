"""Whatever a client sends, it gets a status below 500 and an error in OpenAI's form."""

import json
import socket

import httpx
import pytest
from amounts import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_parts import KEY, running, until

from deepen_integrations.serve import ServeOptions

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASKED = [{"role": "user", "content": "Where?"}]
GOOD = {
    CHAT: {"model": "demo", "messages": ASKED, "max_tokens": 2},
    TEXT: {"model": "demo", "prompt": "Where?", "max_tokens": 2},
}


def checked(response):
    """Whether the request was answered; if not, its error must be one of OpenAI's form."""
    if response.status_code == 200:
        return True
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["type"] in {"invalid_request_error", "authentication_error", "rate_limit_error"}
    return False


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.root, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def sent(client):
    """Sends a body to one of the paths."""

    def send(path, body):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return client.post(path, content=raw, headers={"content-type": "application/json"})

    return send


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"model": None}, "model", "valid string"),
        ({"model": 5}, "model", "valid string"),
        ({"messages": "hi"}, "messages", "valid list"),
        ({"messages": None}, "messages", "valid list"),
        ({"messages": ["hi"]}, "messages.0", "valid dictionary"),
        ({"messages": [{}]}, None, "role"),
        ({"messages": [{"role": "user", "content": 5}]}, None, "content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            None,
            "image",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None, "surrogate"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, None, "tool_calls"),
        ({"max_tokens": 0}, None, "max_new_tokens"),
        ({"max_tokens": True}, "max_tokens", "valid integer"),
        ({"max_tokens": 1.5}, "max_tokens", "valid integer"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, None, "not both"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"temperature": 1e9}, None, "temperature"),
        ({"top_p": 7}, None, "top_p"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 1000}, "n", "less than or equal to 128"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"stream_options": {"include_usage": True}}, None, "stream"),
        ({"stop": 5}, None, "stop"),
        ({"stop": [""]}, None, "stop"),
        ({"stop": ["\udfff"]}, None, "surrogate"),
        ({"logit_bias": {"hello": 1}}, None, "no token id"),
        ({"logit_bias": {"1": 1000}}, None, "bias"),
        ({"logprobs": 3}, "logprobs", "valid boolean"),
        ({"logprobs": True, "top_logprobs": 1000}, None, "logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, None, "logprobs"),
        ({"seed": 2**70}, "seed", "less than"),
        ({"tools": [{"type": "function"}]}, None, "not a tool"),
        ({"tools": [{"type": "retrieval"}]}, None, "not a tool"),
        ({"tools": [TOOL], "tool_choice": "g"}, None, "'f'"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, None, "'f'"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 5}}}]}, None, "f"),
        ({"num_ctx": 2048}, "num_ctx", "--max-context-window"),
        ({"n_ctx": 2048}, "n_ctx", "--max-context-window"),
        ({"functions": [{"name": "f"}]}, "functions", "use tools"),
        ({"response_format": {"type": "yaml"}}, None, "response_format"),
        ({"response_format": {"type": []}}, None, "response_format"),
        ({"response_format": {"type": "json_schema"}}, None, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "cat"}}}}, None, "cat"),
        ({"response_format": {"type": "json_object"}, "tools": [TOOL], "regex": "a"}, None, "constraint"),
        ({"regex": "("}, None, "regex"),
        ({"modalities": ["audio"]}, "modalities.0", "text"),
        ({"audio": {"voice": "x"}}, "audio", "text"),
        ({"reasoning_effort": "high"}, None, "reasoning"),
        ({"timeout": -1}, None, "timeout"),
        ({"nonsense": 1}, None, "Unknown option 'nonsense'"),
    ],
    ids=str,
)
def test_mistakes_in_a_chat(sent, change, param, message):
    response = sent(CHAT, {**GOOD[CHAT], **change})
    assert not checked(response), response.text
    assert response.status_code == 400
    error = response.json()["error"]
    assert message in error["message"]
    assert error["param"] == param


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2, 3]}, "token ids"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"echo": True}, "suffix and best_of are not supported"),
        ({"best_of": 5}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt": ["a"] * 300}, "300 answers"),
        ({"messages": ASKED}, "messages"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes_in_a_completion(sent, change, message):
    response = sent(TEXT, {**GOOD[TEXT], **change})
    assert not checked(response), response.text
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"5",
        b'"hi"',
        b"null",
        b"{}",
        b'{"model": NaN}',
        b'{"model": 1e999}',
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b"[" * 100_000,
        b'{"model": ' + b"9" * 5000 + b"}",
        b'{"model": "\\ud800", "messages": [{"role": "user", "content": "a"}]}',
    ],
    ids=lambda raw: str(raw[:20]),
)
def test_bodies_that_are_no_request(sent, raw):
    for path in (CHAT, TEXT):
        assert not checked(sent(path, raw))


_scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text())
_names = st.sampled_from(
    "role content type text name function arguments parameters tool_calls properties $ref anyOf enum items".split()
)
_values = st.recursive(
    _scalars | st.sampled_from(["user", "assistant", "tool", "system", "text", "function", "object", "json_schema"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
_fields = st.sampled_from(
    "messages prompt model n stream stream_options temperature top_p top_k min_p stop seed logprobs top_logprobs tools "
    "tool_choice parallel_tool_calls response_format logit_bias max_completion_tokens presence_penalty user metadata "
    "functions reasoning reasoning_effort chat_template_kwargs regex choices grammar json_schema timeout on_timeout "
    "penalty_window control_tokens strict echo best_of suffix modalities api_key extra trace member".split()
)
_wild = settings(
    max_examples=examples(400),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_wild
@given(st.sampled_from([CHAT, TEXT]), st.dictionaries(_fields, _values, min_size=1, max_size=3))
@pytest.mark.filterwarnings("ignore::deepen_core.errors.SchemaWarning")
def test_wild_fields(sent, path, change):
    checked(sent(path, {**GOOD[path], **change}))


_messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "developer", "function"]) | st.text(max_size=4)},
    optional=dict.fromkeys(("content", "tool_calls", "tool_call_id", "name", "prefix", "reasoning_content"), _values),
)


@_wild
@given(st.lists(_messages, min_size=1, max_size=4))
def test_wild_conversations(sent, messages):
    checked(sent(CHAT, {**GOOD[CHAT], "messages": messages}))


@_wild
@given(_values, st.sampled_from(["tool", "object"]))
@pytest.mark.filterwarnings("ignore::deepen_core.errors.SchemaWarning")
def test_wild_schemas(sent, schema, place):
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    asked = {"tools": [tool], "tool_choice": "required"}
    if place == "object":
        asked = {"response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}}
    checked(sent(CHAT, {**GOOD[CHAT], **asked}))


@pytest.mark.parametrize(
    "part",
    [
        {"type": None},
        {"type": 5.5},
        {"type": "object", "properties": 5},
        {"type": "object", "required": 5},
        {"type": "object", "properties": {"a": {}}, "required": [{}]},
        {"$ref": ["x" + "\xe9" * 60]},  # llguidance cuts what it quotes inside of a character
    ],
    ids=str,
)
def test_a_malformed_part_of_a_schema_that_does_not_count(sent, part):
    """Arguments are an object, of which `items` says nothing."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"items": part}}}
    assert checked(sent(CHAT, {**GOOD[CHAT], "tools": [tool]}))


@_wild
@given(st.binary(max_size=60))
def test_wild_bytes(sent, raw):
    assert not checked(sent(CHAT, raw))


def test_paths_and_methods_that_there_are_not(client):
    for method, path, status in [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/models/gpt-5", 404),
        ("GET", "/../../etc/passwd", 404),
        ("DELETE", "/v1/models/demo", 405),
    ]:
        response = client.request(method, path)
        assert response.status_code == status
        assert not checked(response)


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_that_web_pages_can_send_is_refused(client, kind):
    headers = {} if kind is None else {"content-type": kind}
    response = client.post(CHAT, content=json.dumps(GOOD[CHAT]).encode(), headers=headers)
    assert response.status_code == 415
    assert not checked(response)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer sk-wrong",
        f"Basic {KEY}",
        KEY,
        f"Bearer {KEY}x",
        "Bearer \xe9".encode("latin-1"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", CHAT, "/nowhere"])
def test_no_or_a_wrong_key(server, header, path):
    headers = {} if header is None else {"authorization": header}
    response = httpx.get(f"{server.root}{path}", headers=headers)
    assert response.status_code == 401
    assert not checked(response)
    assert response.headers["www-authenticate"] == "Bearer"


def test_probes_need_no_key(server):
    for path in ("/health", "/ready"):
        assert httpx.get(f"{server.root}{path}").status_code == 200


def test_without_keys_anyone_is_served(served_demo):
    with running({"demo": served_demo}, ServeOptions()) as server:
        assert httpx.get(f"{server.url}/models").status_code == 200


def test_a_body_that_is_too_large(served_demo):
    with running({"demo": served_demo}, ServeOptions(api_keys=[KEY], max_body_bytes=2000)) as server:
        body = {**GOOD[CHAT], "user": "x" * 2000}
        response = server.post(CHAT, json=body)
        assert response.status_code == 413
        assert not checked(response)
        assert "2000 bytes" in response.json()["error"]["message"]
        assert server.post(CHAT, json=GOOD[CHAT]).status_code == 200


def test_a_body_that_never_comes(served_demo):
    with (
        running({"demo": served_demo}, ServeOptions(body_timeout_s=0.2)) as server,
        socket.create_connection(server.address) as connection,
    ):
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b"content-length: 100\r\n\r\n{"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_more_answers_than_there_is_room_for(served_demo):
    endless = {**GOOD[CHAT], "max_tokens": 900, "ignore_eos": True, "stream": True}
    headers = {"authorization": f"Bearer {KEY}"}
    with (
        running({"demo": served_demo}, ServeOptions(api_keys=[KEY], max_answers=2)) as server,
        httpx.Client(base_url=server.root, headers=headers, timeout=60) as client,
    ):
        with client.stream("POST", CHAT, json=endless) as first, client.stream("POST", CHAT, json=endless) as second:
            assert (first.status_code, second.status_code) == (200, 200)
            assert server.metric("deepen_answers_running") == 2
            refused = client.post(CHAT, json=GOOD[CHAT])
        assert refused.status_code == 429
        assert not checked(refused)
        assert int(refused.headers["retry-after"]) >= 1
        assert until(lambda: server.metric("deepen_answers_running") == 0)
        assert client.post(CHAT, json=GOOD[CHAT]).status_code == 200
        assert client.post(TEXT, json={**GOOD[TEXT], "prompt": ["a"] * 3}).status_code == 400
