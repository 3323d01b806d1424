"""A first load counts towards the timeout of the request that begins it; the load goes on for the others."""

import asyncio
import threading
import time

import pytest
from scheduler_parts import eventually

from deepen_core.errors import MemberTimeoutError, QueueFullError, TimedOutError
from deepen_integrations import shared_ensembles
from deepen_integrations.langchain import ChatDeepen, DeepenLLM
from deepen_integrations.llama_index import DeepenLLM as LlamaDeepen
from deepen_integrations.serve.errors import api_error

SYNC = {
    ChatDeepen: lambda llm: llm.invoke("q").content,
    DeepenLLM: lambda llm: llm.invoke("q"),
    LlamaDeepen: lambda llm: llm.complete("q").text,
}
ASYNC = {
    ChatDeepen: lambda llm: llm.ainvoke("q"),
    DeepenLLM: lambda llm: llm.ainvoke("q"),
    LlamaDeepen: lambda llm: llm.acomplete("q"),
}


@pytest.fixture
def slow_loads(loads, monkeypatch):
    """Lets the loads that have begun come to their end."""
    load, go = shared_ensembles._load, threading.Event()

    def slowly(*arguments):
        assert go.wait(60), "a test has left a load waiting"
        return load(*arguments)

    monkeypatch.setattr(shared_ensembles, "_load", slowly)
    yield go
    go.set()


@pytest.mark.parametrize("make", [ChatDeepen, DeepenLLM, LlamaDeepen])
@pytest.mark.parametrize("on_timeout", ["return", "raise"])
def test_a_load_that_takes_longer(slow_loads, loads, make, on_timeout):
    # A name of its own: the errors' tracebacks keep the shared ensemble for a while.
    llm = make(models=[f"{make.__module__}.{make.__name__}.{on_timeout}"], timeout=0.2, on_timeout=on_timeout)
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(TimedOutError, match=r"still being loaded after 0\.2 s.*warm_up"):
            SYNC[make](llm)
        with pytest.raises(TimedOutError):
            asyncio.run(ASYNC[make](llm))
    assert time.monotonic() - started < 30
    slow_loads.set()
    eventually(lambda: llm._shared._loaded is not None)
    assert "Lisbon" in SYNC[make](llm)
    assert len(loads) == 1


def test_a_load_in_time_is_the_callers(slow_loads, loads):
    slow_loads.set()
    for llm in (DeepenLLM(models=["in time"], timeout=60), DeepenLLM(models=["in any time"])):
        assert "Lisbon" in llm.invoke("q")
    assert len(loads) == 2


def test_the_timeout_counts_from_the_call(loads, monkeypatch):
    """The engine gets a request after a load, and counts from before it."""
    load = shared_ensembles._load

    def slowly(*arguments):
        time.sleep(0.2)
        return load(*arguments)

    monkeypatch.setattr(shared_ensembles, "_load", slowly)
    llm, called = DeepenLLM(models=["counted"], timeout=60), time.perf_counter()
    llm.invoke("q")
    (asked,) = [params.asked for _, params in loads[0].ensemble.requests]
    assert 0 <= asked - called < time.perf_counter() - called - 0.2


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [(QueueFullError("full"), 429, "rate_limit_exceeded", "1"), (MemberTimeoutError("slow"), 504, "timeout", None)],
)
def test_what_a_server_answers(error, status, code, retry):
    answered = api_error(error)
    assert (answered.status, answered.code, answered.headers.get("retry-after")) == (status, code, retry)
    assert str(answered) == str(error)
