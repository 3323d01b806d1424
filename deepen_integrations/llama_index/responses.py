"""Turns the engine's answers into LlamaIndex's responses."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing, closing
from typing import Any, Generic, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from deepen_core.errors import NoToolCallError
from deepen_core.replies import BrokenCall, Call, CutCall, ReplyParser, Text, Thought
from deepen_core.results import Chunk, Generation, TokenLogprob
from deepen_core.tracing import Trace
from deepen_integrations.adapter import openai_logprobs, report
from deepen_integrations.chat import new_call_id

Response = TypeVar("Response", CompletionResponse, ChatResponse)


class Responses(ABC, Generic[Response]):
    """Makes the responses of one answer, each with all the text so far and the logprobs of what it adds.

    In a stream, `additional_kwargs` of each response have the trace of what it adds, as `raw` of the last one has all.

    Args:
        model_name: The model's name, for the raw data.
    """

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name

    @abstractmethod
    def response_for(self, piece: Chunk) -> Response | None:
        """Returns the response to a piece of the answer; None if the piece completes nothing yet."""

    def whole(self, answer: Generation) -> Response:
        """Returns the response of a whole answer."""
        response = self.response_for(Chunk(answer.text, generation=answer))
        assert response is not None, "the last piece always has a response"
        response.delta = None
        response.logprobs = None if answer.logprobs is None else _logprobs(answer.logprobs)
        return response

    def each(self, pieces: Generator[Chunk, None, None]) -> Generator[Response, None, None]:
        """Yields the responses of a stream, and closes the stream when it is closed itself."""
        with closing(pieces):
            for piece in pieces:
                if (response := self.response_for(piece)) is not None:
                    yield response

    async def aeach(self, pieces: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Response, None]:
        """Like `each`, for an event loop."""
        async with aclosing(pieces):
            async for piece in pieces:
                if (response := self.response_for(piece)) is not None:
                    yield response

    def _raw(self, piece: Chunk, warnings: Sequence[str] = (), *, calls: bool = False) -> dict[str, Any] | None:
        """Plain data, because exporters write it as JSON. LlamaIndex's token counter reads its `usage`."""
        if piece.generation is None:
            return None
        return {**report(piece.generation, warnings, calls=calls), "model": self._model_name}


class CompletionResponses(Responses[CompletionResponse]):
    """Responses to a prompt."""

    def __init__(self, model_name: str) -> None:
        super().__init__(model_name)
        self._text = ""

    def response_for(self, piece: Chunk) -> CompletionResponse:
        """Returns the response to a piece of the answer."""
        self._text += piece.text
        logprobs = None if piece.logprobs is None else _logprobs(piece.logprobs)
        return CompletionResponse(
            text=self._text,
            delta=piece.text,
            raw=self._raw(piece),
            logprobs=logprobs,
            additional_kwargs={} if piece.trace is None else {"trace": piece.trace.to_dict()},
        )


class ChatResponses(Responses[ChatResponse]):
    """Responses to a conversation: messages with thoughts, text and tool calls.

    Args:
        model_name: The model's name, for the raw data.
        parser: A fresh parser, which splits the answer into its parts.
        count: Counts the tokens of a text, to measure the thoughts.
    """

    def __init__(self, model_name: str, parser: ReplyParser, count: Callable[[str], int]) -> None:
        super().__init__(model_name)
        self._parser = parser
        self._count = count
        self._thoughts = self._text = ""
        self._calls: list[ToolCallBlock] = []
        self._logprobs: list[TokenLogprob] | None = None
        self._trace: Trace | None = None

    def response_for(self, piece: Chunk) -> ChatResponse | None:
        """Returns the response to a piece of the answer; None if the piece completes nothing yet.

        Raises:
            NoToolCallError: If the answer ends inside a tool call, or a call breaks its tool's schema.
        """
        parts = self._parser.feed(piece.text)
        if piece.logprobs is not None:
            self._logprobs = [*(self._logprobs or ()), *piece.logprobs]
        if piece.trace is not None:
            self._trace = piece.trace if self._trace is None else self._trace + piece.trace
        if piece.generation is not None:
            parts += self._parser.finish()
            for part in parts:
                if isinstance(part, CutCall):
                    raise NoToolCallError.from_cut_call(part.text, piece.generation.finish_reason)
        elif not parts:
            return None
        for part in parts:
            if isinstance(part, BrokenCall):
                raise NoToolCallError.from_broken_call(part.name, part.problem)
        said = "".join(part.text for part in parts if isinstance(part, Text))
        thought = "".join(part.text for part in parts if isinstance(part, Thought))
        self._text += said
        self._thoughts += thought
        self._calls += [_block(part) for part in parts if isinstance(part, Call)]
        raw = self._raw(piece, self._parser.warnings, calls=bool(self._calls))
        tokens, self._logprobs = self._logprobs, None
        trace, self._trace = self._trace, None
        more = {"thinking_delta": thought} if thought else {}
        return ChatResponse(
            message=self._message(last=raw is not None),
            delta=said,
            raw=raw,
            logprobs=None if tokens is None else _logprobs(tokens),
            additional_kwargs=more if trace is None else {**more, "trace": trace.to_dict()},
        )

    def _message(self, *, last: bool) -> ChatMessage:
        """Makes a new message for each response, because chat engines modify the messages they receive."""
        blocks: list[ContentBlock] = []
        if self._thoughts:
            tokens = self._count(self._thoughts) if last else None
            blocks.append(ThinkingBlock(content=self._thoughts, num_tokens=tokens))
        blocks.append(TextBlock(text=self._text))
        # LlamaIndex's programs read calls from `additional_kwargs`, its agents from the blocks.
        calls = [_in_openai_form(call) for call in self._calls]
        more = {"tool_calls": calls} if calls else {}
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=[*blocks, *self._calls], additional_kwargs=more)


def _block(call: Call) -> ToolCallBlock:
    return ToolCallBlock(tool_call_id=new_call_id(), tool_name=call.name, tool_kwargs=call.arguments)


def _in_openai_form(call: ToolCallBlock) -> dict[str, Any]:
    arguments = json.dumps(call.tool_kwargs, ensure_ascii=False)
    return {"id": call.tool_call_id, "type": "function", "function": {"name": call.tool_name, "arguments": arguments}}


def _logprobs(tokens: Sequence[TokenLogprob]) -> list[list[LogProb]]:
    """The chosen token at each position, followed by its alternatives."""
    positions = []
    for chosen in openai_logprobs(tokens)["content"]:
        others = [other for other in chosen["top_logprobs"] if other["bytes"] != chosen["bytes"]]
        pieces = [{key: piece[key] for key in ("token", "logprob", "bytes")} for piece in (chosen, *others)]
        positions.append([LogProb(**piece) for piece in pieces])
    return positions
