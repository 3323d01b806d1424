"""Many clients at once, of which some go away: the others get what the ensemble says in this process."""

import asyncio
import gc
import json
import logging
import socket

import httpx
import openai
import pytest
from serve_parts import KEY, running, sequences_held, until

from deepen_core.demo.world import questions

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
CLIENTS, TOKENS = 64, 24
LEAVING = range(3, CLIENTS, 10)
ASKED = [[{"role": "user", "content": question.prompt}] for question in questions()[:CLIENTS]]


async def text_of(client, number):
    """One client: some stream, some wait for the whole answer, and a tenth goes away in the middle."""
    tokens = 900 if number in LEAVING else TOKENS  # those who leave do so before the end, however slow they are
    options = {"max_tokens": tokens, "extra_body": {"ignore_eos": True}}
    asking = {"model": "demo", "messages": ASKED[number], **options}
    if number in LEAVING and number % 4 == 1:
        gives_up = httpx.Timeout(30, read=0.3)  # the request itself arrives, however slow this machine is
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(**asking, timeout=gives_up)
        return None
    if number % 2 == 0:
        return (await client.chat.completions.create(**asking)).choices[0].message.content
    events = await client.chat.completions.create(**{**asking, "stream": True})
    async with events:
        texts = []
        async for event in events:
            texts.append(event.choices[0].delta.content or "")
            if number in LEAVING and len(texts) == 4:
                return None
    return "".join(texts)


async def test_a_tenth_of_the_clients_goes_away(server, served_demo):
    running_before = server.metric("deepen_answers_running")
    gone_before = server.metric("deepen_clients_gone_total")
    async with openai.AsyncOpenAI(base_url=server.url, api_key=KEY, max_retries=0, timeout=120) as client:
        texts = await asyncio.gather(*(text_of(client, number) for number in range(CLIENTS)))
    expected = served_demo.generate(ASKED, max_new_tokens=TOKENS, ignore_eos=True)
    wrong = [
        (text, each.text)
        for number, (text, each) in enumerate(zip(texts, expected, strict=True))
        if number not in LEAVING and text != each.text
    ]
    assert not wrong
    assert [texts[number] for number in LEAVING] == [None] * len(LEAVING)
    assert until(lambda: sequences_held(served_demo) == 0, 5)
    assert running_before == server.metric("deepen_answers_running") == 0
    assert until(lambda: server.metric("deepen_clients_gone_total") - gone_before == len(LEAVING))


def test_clients_that_leave_at_any_moment_leave_nothing_behind(server, served_demo, caplog):
    """Each client closes its connection a little later than the one before; none of it is an error of the server."""
    from deepen_core.engine.handle import Handle

    body = {"model": "demo", "messages": ASKED[0], "max_tokens": 400, "ignore_eos": True, "n": 2, "temperature": 1.0}
    headers = {"authorization": f"Bearer {KEY}"}
    for number in range(20):
        wait = httpx.Timeout(30, read=0.003 * (number + 1))
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/chat/completions", json=body, headers=headers, timeout=wait)
        streamed = {**body, "stream": True}
        with httpx.stream("POST", f"{server.url}/chat/completions", json=streamed, headers=headers) as response:
            events = response.iter_lines()
            for _ in range(number):
                next(events)
    assert until(lambda: sequences_held(served_demo) == 0, 5)
    assert until(lambda: server.metric("deepen_answers_running") == 0)
    gc.collect()
    assert not [found for found in gc.get_objects() if type(found) is Handle and not found.done]
    answer = server.post("/v1/chat/completions", json={**body, "n": 1, "temperature": 0, "max_tokens": 3})
    assert answer.status_code == 200
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_client_that_waits_in_the_queue_and_leaves(needs_demo):
    from deepen_core import Ensemble

    with Ensemble.demo(max_batch_size=1) as ensemble, running({"demo": ensemble}) as server:
        endless = ensemble.submit("Felix", max_new_tokens=900, ignore_eos=True)
        body = {"model": "demo", "prompt": "Where?", "max_tokens": 5}
        headers = {"authorization": f"Bearer {KEY}"}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/completions", json=body, headers=headers, timeout=httpx.Timeout(30, read=0.2))
        assert until(lambda: sequences_held(ensemble) <= 1, 5)
        endless.cancel()
        assert until(lambda: sequences_held(ensemble) == 0, 5)


def test_a_client_that_does_not_read_holds_up_no_other(served_demo):
    """Its connection is full long before its answer ends; what it then reads is complete and in order."""
    asked = {"model": "demo", "prompt": "Felix", "max_tokens": 400, "ignore_eos": True}
    body = json.dumps({**asked, "logprobs": 20, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json"
    with running({"demo": served_demo}) as server, socket.socket() as slow:
        server.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(server.address)
        slow.sendall(f"{head}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        assert until(lambda: sequences_held(served_demo) == 1)
        answer = server.post("/v1/completions", json={**asked, "prompt": "Where?", "max_tokens": 20})
        assert answer.json()["usage"]["completion_tokens"] == 20
        assert until(lambda: sequences_held(served_demo) == 0, 120)  # the engine waits for no client either
        assert server.metric("deepen_answers_running") == 1
        raw = b"".join(iter(lambda: slow.recv(2**20), b""))
        assert until(lambda: server.metric("deepen_answers_running") == 0)
    lines = [line for line in raw.decode().splitlines() if line.startswith("data: {")]
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
    expected = served_demo.generate("Felix", max_new_tokens=400, ignore_eos=True)
    assert "".join(choice["text"] for choice in choices) == expected.text
    assert sum(len(choice["logprobs"]["tokens"]) for choice in choices) == 400


async def test_each_piece_of_each_answer_is_an_event(server):
    """Also of answers that are decoded together, whose events are sent together."""
    body = {"model": "demo", "prompt": ["Felix", "Where?"], "n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 8}
    headers = {"authorization": f"Bearer {KEY}"}
    whole = server.post("/v1/completions", json={**body, "ignore_eos": True}).json()["choices"]
    asked = {**body, "ignore_eos": True, "logprobs": 0, "stream": True, "stream_options": {"include_usage": True}}
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", f"{server.url}/completions", json=asked, headers=headers) as response,
    ):
        blocks = (await response.aread()).decode().split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    *pieces, usage = [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]
    assert usage["usage"]["completion_tokens"] == 6 * 8
    assert usage["choices"] == []
    texts = dict.fromkeys(range(6), "")
    for piece in pieces:
        (choice,) = piece["choices"]
        assert piece["usage"] is None
        texts[choice["index"]] += choice["text"]
    assert [*texts.values()] == [choice["text"] for choice in whole]
    assert len(pieces) >= 6
