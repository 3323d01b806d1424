"""The engine's answers to a conversation as OpenAI's chat completions, whole and in pieces.

A tool call is sent in one piece, once it is complete and valid, so that clients which complete the JSON of a call that
is cut off never run half a call. One that is cut off, or breaks its schema, is left out and described in `warnings`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from deepen_core.errors import NoToolCallError
from deepen_core.replies import BrokenCall, Call, CutCall, Part, ReplyParser, Text, Thought, parse_reply
from deepen_integrations.adapter import openai_logprobs, trace_part
from deepen_integrations.chat import new_call_id
from deepen_integrations.serve.wire import Wire, ended, traced

if TYPE_CHECKING:
    from deepen_core.results import Chunk, Generation, TokenLogprob
    from deepen_core.tracing import Trace


class ChatWire(Wire):
    """Writes the answers to one conversation.

    Args:
        model: The name by which the client asked.
        parsers: A fresh parser for each answer, which splits it into its parts.
        count: Counts the tokens of a text, to measure the thoughts.
    """

    whole_kind = "chat.completion"
    piece_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, model: str, parsers: Sequence[ReplyParser], count: Callable[[str], int]) -> None:
        super().__init__(model, 1)
        self._answers = [_Streamed(parser) for parser in parsers]
        self._count = count

    def opening(self) -> list[dict[str, Any]]:
        """Returns the choices before the first pieces: that the assistant speaks."""
        delta = {"role": "assistant", "content": ""}
        return [_choice(number, delta) for number in range(len(self._answers))]

    def choices(self, number: int, chunk: Chunk) -> list[dict[str, Any]]:
        """Returns the choices of a piece of one answer."""
        answer = self._answers[number]
        choices = [
            {**_choice(number, delta, logprobs=answer.taken_logprobs()), **answer.taken_trace()}
            for delta in map(answer.delta, answer.fed(chunk))
            if delta
        ]
        if chunk.generation is not None:
            ending = ended(chunk.generation, answer.notes(chunk.generation), calls=answer.calls > 0)
            last = _choice(number, {}, logprobs=answer.taken_logprobs())
            choices.append({**last, **answer.taken_trace(last=True), **ending})
        return choices

    def whole(self, answers: Sequence[Generation]) -> dict[str, Any]:
        """Returns the response with all answers."""
        choices = []
        for number, (answer, streamed) in enumerate(zip(answers, self._answers, strict=True)):
            reply = parse_reply(answer.text, streamed.parser)
            streamed.thoughts = [reply.thoughts]
            streamed.unusable = [call for call in (*reply.broken, reply.cut) if call is not None]
            message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
            if reply.thoughts:
                message["reasoning_content"] = reply.thoughts
            if reply.calls:
                message["content"] = reply.text or None
                message["tool_calls"] = [_call(call) for call in reply.calls]
            logprobs = None if answer.logprobs is None else _logprobs(answer.logprobs)
            ending = ended(answer, streamed.notes(answer), calls=bool(reply.calls))
            choices.append({"index": number, "message": message, "logprobs": logprobs, **traced(answer), **ending})
        return self.response(choices, answers)

    def usage(self, answers: Sequence[Generation]) -> dict[str, Any]:
        """Returns the numbers of tokens, with those of thoughts if there are any."""
        thoughts = sum(self._count("".join(answer.thoughts)) for answer in self._answers if any(answer.thoughts))
        details = {"completion_tokens_details": {"reasoning_tokens": thoughts}} if thoughts else {}
        return {**super().usage(answers), **details}


class _Streamed:
    """What there is of one answer so far."""

    def __init__(self, parser: ReplyParser) -> None:
        self.parser = parser
        self.calls = 0
        self.thoughts: list[str] = []
        self.unusable: list[CutCall | BrokenCall] = []
        self._logprobs: list[TokenLogprob] | None = None
        self._trace: Trace | None = None

    def fed(self, chunk: Chunk) -> list[Part]:
        if chunk.logprobs is not None:
            self._logprobs = [*(self._logprobs or ()), *chunk.logprobs]
        if chunk.trace is not None:
            self._trace = chunk.trace if self._trace is None else self._trace + chunk.trace
        parts = self.parser.feed(chunk.text)
        return parts if chunk.generation is None else [*parts, *self.parser.finish()]

    def delta(self, part: Part) -> dict[str, Any]:
        """Returns what a part adds to the message; nothing if it is not sent."""
        if isinstance(part, Text):
            return {"content": part.text}
        if isinstance(part, Thought):
            self.thoughts.append(part.text)
            return {"reasoning_content": part.text}
        if isinstance(part, Call):
            self.calls += 1
            return {"tool_calls": [{"index": self.calls - 1, **_call(part)}]}
        self.unusable.append(part)
        return {}

    def taken_logprobs(self) -> dict[str, Any] | None:
        """Returns the logprobs of the tokens since the last event, if they were requested."""
        tokens, self._logprobs = self._logprobs, None
        return None if tokens is None else _logprobs(tokens)

    def taken_trace(self, *, last: bool = False) -> dict[str, Any]:
        """Returns the trace of the tokens since the last event, if it was requested."""
        trace, self._trace = self._trace, None
        return {} if trace is None else {"trace": trace_part(trace, last=last)}

    def notes(self, answer: Generation) -> list[str]:
        """Returns warnings beyond the engine's own."""
        return [*self.parser.warnings, *(_unusable(call, answer) for call in self.unusable)]


def _choice(number: int, delta: dict[str, Any], *, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _call(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": new_call_id(), "type": "function", "function": function}


def _unusable(call: CutCall | BrokenCall, answer: Generation) -> str:
    if isinstance(call, BrokenCall):
        return str(NoToolCallError.from_broken_call(call.name, call.problem))
    return str(NoToolCallError.from_cut_call(call.text, answer.finish_reason))


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {**openai_logprobs(tokens), "refusal": None}
