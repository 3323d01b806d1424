"""The callers of the soak: each asks the same again and again, and compares the answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.llms import ChatMessage

from deepen_core import Ensemble
from deepen_core.errors import DeepenError
from deepen_integrations.langchain import ChatDeepen, DeepenLLM
from deepen_integrations.llama_index import DeepenLLM as LlamaDeepen

TOKENS = 24
_OPTIONS: dict[str, Any] = {"max_new_tokens": TOKENS, "ignore_eos": True}
_QUESTION = "Question: Where does {} live?\nAnswer:"
_SCHEMA = {"type": "object", "properties": {"town": {"type": "string", "maxLength": 12}}, "required": ["town"]}
_TOOL = {
    "type": "function",
    "function": {"name": "look_up", "description": "Looks up a person.", "parameters": _SCHEMA},
}


@dataclass(frozen=True)
class Outcome:
    """How a request ended.

    Attributes:
        began: When it was made (`time.monotonic`).
        ended: When its answer was there.
        right: Whether it is the one that was expected.
        what: The answer, for reports.
    """

    began: float
    ended: float
    right: bool
    what: str


class Caller:
    """Asks one request again and again.

    Args:
        name: For reports.
        ask: Makes the request; returns its answer, or awaits it.
        matches: Compares an answer with the first one; by default they are equal.

    Attributes:
        outcomes: Of all requests since `begin`.
        gaps: Seconds between the pieces of streams since `begin`.
    """

    def __init__(
        self, name: str, ask: Callable[[Caller], Any], matches: Callable[[Any, Any], bool] = lambda a, b: bool(a == b)
    ) -> None:
        self.name = name
        self.is_async = asyncio.iscoroutinefunction(ask)
        self._ask = ask
        self._matches = matches
        self._expected: Any = None
        self.begin()

    def begin(self) -> None:
        """Forgets what was measured."""
        self.outcomes: list[Outcome] = []
        self.gaps: list[float] = []

    def learn(self) -> None:
        """Takes an answer that is made alone as the right one."""
        found = self._ask(self)
        self._expected = asyncio.run(found) if self.is_async else found

    def ask_on(self, going_on: Callable[[], bool]) -> None:
        """Asks until it is over."""
        while going_on():
            began = time.monotonic()
            try:
                found = self._ask(self)
            except DeepenError as error:
                found = error
            self._note(began, found)

    async def aask_on(self, going_on: Callable[[], bool]) -> None:
        """Like `ask_on`, on an event loop."""
        while going_on():
            began = time.monotonic()
            try:
                found = await self._ask(self)
            except DeepenError as error:
                found = error
            self._note(began, found)

    def _note(self, began: float, found: Any) -> None:
        right = not isinstance(found, DeepenError) and self._matches(found, self._expected)
        self.outcomes.append(Outcome(began, time.monotonic(), right, f"{self.name}: {found!r}" if not right else ""))


class Loop:
    """An event loop with several callers.

    Args:
        callers: The callers.
        going_on: Whether there is time left.
    """

    def __init__(self, callers: Sequence[Caller], going_on: Callable[[], bool]) -> None:
        self._callers = callers
        self._going_on = going_on

    def run(self) -> None:
        """Runs it until all callers have ended."""
        asyncio.run(self._all())

    async def _all(self) -> None:
        await asyncio.gather(*(caller.aask_on(self._going_on) for caller in self._callers))


def _generate(ensemble: Ensemble, who: str) -> Caller:
    return Caller("generate", lambda _: ensemble.generate(_QUESTION.format(who), **_OPTIONS).token_ids)


def _stream(ensemble: Ensemble, who: str) -> Caller:
    def ask(caller: Caller) -> str:
        text, last = "", None
        for chunk in ensemble.stream(_QUESTION.format(who), **_OPTIONS):
            now = time.perf_counter()
            caller.gaps += [] if last is None else [now - last]
            text, last = text + chunk.text, now
        return text

    return Caller("stream", ask)


def _schema(ensemble: Ensemble) -> Caller:
    return Caller("schema", lambda _: ensemble.generate("The town:", json_schema=_SCHEMA, max_new_tokens=TOKENS).text)


def _cancelled(ensemble: Ensemble) -> Caller:
    def ask(_caller: Caller) -> str:
        handle = ensemble.submit(_QUESTION.format("Irene"), **{**_OPTIONS, "max_new_tokens": 200})
        next(handle)
        handle.cancel()
        return handle.result(timeout=60).text

    return Caller("cancelled", ask, lambda found, whole: found.startswith(whole[:1]) if whole else True)


def _timed_out(ensemble: Ensemble) -> Caller:
    whole = ensemble.generate(_QUESTION.format("Diego"), **{**_OPTIONS, "max_new_tokens": 150}).text
    return Caller(
        "timed out",
        lambda _: ensemble.generate(_QUESTION.format("Diego"), timeout=0.2, **{**_OPTIONS, "max_new_tokens": 150}).text,
        lambda found, _: whole.startswith(found),
    )


def _langchain_tools(ensemble: Ensemble) -> Caller:
    chat = ChatDeepen.from_ensemble(ensemble, max_tokens=TOKENS).bind_tools([_TOOL], tool_choice="look_up")

    def ask(_caller: Caller) -> list[Any]:
        return [(call["name"], call["args"]) for call in chat.invoke("Where does Felix live?").tool_calls]

    return Caller("LangChain's tools", ask)


def _llama_index(ensemble: Ensemble) -> Caller:
    llm = LlamaDeepen.from_ensemble(ensemble, max_new_tokens=TOKENS)
    return Caller("LlamaIndex's complete", lambda _: llm.complete("Where does Diego live?").text)


def _agenerate(ensemble: Ensemble, who: str) -> Caller:
    async def ask(_caller: Caller) -> list[int]:
        return (await ensemble.agenerate(_QUESTION.format(who), **_OPTIONS)).token_ids

    return Caller("agenerate", ask)


def _astream(ensemble: Ensemble, who: str) -> Caller:
    async def ask(caller: Caller) -> str:
        text, last = "", None
        async for chunk in ensemble.astream(_QUESTION.format(who), **_OPTIONS):
            now = time.perf_counter()
            caller.gaps += [] if last is None else [now - last]
            text, last = text + chunk.text, now
        return text

    return Caller("astream", ask)


def _aschema(ensemble: Ensemble) -> Caller:
    async def ask(_caller: Caller) -> str:
        return (await ensemble.agenerate("A number:", regex="[0-9]{3}", max_new_tokens=TOKENS)).text

    return Caller("regex", ask)


def _acancelled(ensemble: Ensemble) -> Caller:
    async def ask(_caller: Caller) -> str:
        task = asyncio.ensure_future(ensemble.agenerate(_QUESTION.format("Irene"), **_OPTIONS))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return ""

    return Caller("cancelled task", ask)


def _langchain_chat(ensemble: Ensemble) -> Caller:
    chat = ChatDeepen.from_ensemble(ensemble, max_tokens=TOKENS)

    async def ask(_caller: Caller) -> Any:
        return (await chat.ainvoke("Where does Irene live?")).content

    return Caller("LangChain's chat", ask)


def _langchain_text(ensemble: Ensemble) -> Caller:
    llm = DeepenLLM.from_ensemble(ensemble, max_tokens=TOKENS)

    async def ask(_caller: Caller) -> str:
        return await llm.ainvoke(_QUESTION.format("Felix"))

    return Caller("LangChain's text", ask)


def _llama_index_chat(ensemble: Ensemble) -> Caller:
    llm = LlamaDeepen.from_ensemble(ensemble, max_new_tokens=TOKENS)

    async def ask(_caller: Caller) -> Any:
        return (await llm.achat([ChatMessage(role="user", content="Where does Felix live?")])).message.content

    return Caller("LlamaIndex's chat", ask)


CALLERS: list[Callable[[Ensemble], Caller]] = [
    lambda e: _generate(e, "Felix"),
    lambda e: _generate(e, "Irene"),
    lambda e: _stream(e, "Diego"),
    lambda e: _stream(e, "Felix"),
    _schema,
    _cancelled,
    _timed_out,
    _langchain_tools,
    _llama_index,
    lambda e: _agenerate(e, "Diego"),
    lambda e: _astream(e, "Irene"),
    _aschema,
    _acancelled,
    _langchain_chat,
    _langchain_text,
    _llama_index_chat,
]
"""Nine in threads and seven on one event loop."""
