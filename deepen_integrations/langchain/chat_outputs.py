"""Turns the engine's answers into LangChain's chat messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall
from langchain_core.messages.ai import OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from deepen_core.errors import NoToolCallError
from deepen_core.replies import BrokenCall, Call, CutCall, Part, ReplyParser, Text, Thought, parse_reply
from deepen_integrations.adapter import openai_logprobs, report, trace_part
from deepen_integrations.chat import new_call_id
from deepen_integrations.langchain.outputs import total_usage

if TYPE_CHECKING:
    from deepen_core.results import Chunk, Generation, TokenLogprob
    from deepen_core.tracing import Trace

PROVIDER = "deepen"
_Count = Callable[[str], int]


def chat_result(
    answers: Sequence[Generation], parsers: Sequence[ReplyParser], model_name: str, count: _Count
) -> ChatResult:
    """Makes the result of all whole answers to one conversation.

    Args:
        answers: The engine's answers.
        parsers: A fresh parser for each, which splits the answer into its parts.
        model_name: The model's name, for the metadata.
        count: Counts the tokens of a text, to measure the thoughts.
    """
    usages = [report(answer)["usage"] for answer in answers]
    return ChatResult(
        generations=[_generation(*each, model_name, count) for each in zip(answers, parsers, strict=True)],
        llm_output={"token_usage": total_usage([usages]), "model_name": model_name},
    )


def _generation(answer: Generation, parser: ReplyParser, model_name: str, count: _Count) -> ChatGeneration:
    reply = parse_reply(answer.text, parser)
    metadata = _metadata(answer, model_name, parser, calls=bool(reply.calls))
    invalid = [_invalid(call, answer.finish_reason) for call in (*reply.broken, reply.cut) if call is not None]
    message = AIMessage(
        content=reply.text,
        additional_kwargs={"reasoning_content": reply.thoughts} if reply.thoughts else {},
        tool_calls=[tool_call(name=c.name, args=c.arguments, id=new_call_id()) for c in reply.calls],
        invalid_tool_calls=invalid,
        response_metadata=metadata,
        usage_metadata=_usage(answer, reply.thoughts, count),
    )
    return ChatGeneration(message=message, generation_info=metadata)


class ChatChunks:
    """Makes message chunks from the pieces of one answer.

    LangChain merges chunks by adding them. So only the last chunk has the metadata, and each chunk has the logprobs and
    the steps of the trace of the tokens since the previous one. A tool call is one chunk, because LangChain would
    complete a call that is cut off, and run it. One that is cut off, or breaks its schema, begins with its tag, so that
    it is not JSON and LangChain takes it for invalid.

    Args:
        parser: A fresh parser, which splits the answer into its parts.
        model_name: The model's name, for the metadata.
        count: Counts the tokens of a text, to measure the thoughts.
    """

    def __init__(self, parser: ReplyParser, model_name: str, count: _Count) -> None:
        self._parser = parser
        self._model_name = model_name
        self._count = count
        self._thoughts: list[str] = []
        self._calls = 0
        self._logprobs: list[TokenLogprob] | None = None
        self._trace: Trace | None = None

    def chunks_for(self, piece: Chunk) -> Iterator[ChatGenerationChunk]:
        """Yields the chunks that this piece completes; after the last piece, also a chunk with the metadata."""
        if piece.logprobs is not None:
            self._logprobs = [*(self._logprobs or ()), *piece.logprobs]
        if piece.trace is not None:
            self._trace = piece.trace if self._trace is None else self._trace + piece.trace
        for part in self._parser.feed(piece.text):
            yield ChatGenerationChunk(message=self._message(part))
        if piece.generation is None:
            return
        for part in self._parser.finish():
            yield ChatGenerationChunk(message=self._message(part))
        metadata = _metadata(piece.generation, self._model_name, self._parser, calls=self._calls > 0)
        last = AIMessageChunk(
            content="",
            response_metadata={**metadata, **self._since_last(last=True)},
            usage_metadata=_usage(piece.generation, "".join(self._thoughts), self._count),
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last)

    def _message(self, part: Part) -> AIMessageChunk:
        metadata = self._since_last()
        if isinstance(part, Text):
            return AIMessageChunk(content=part.text, response_metadata=metadata)
        if isinstance(part, Thought):
            self._thoughts.append(part.text)
            thought = {"reasoning_content": part.text}
            return AIMessageChunk(content="", additional_kwargs=thought, response_metadata=metadata)
        arguments = json.dumps(part.arguments, ensure_ascii=False) if isinstance(part, Call) else part.text
        call = tool_call_chunk(name=part.name, args=arguments, id=new_call_id(), index=self._calls)
        self._calls += 1
        return AIMessageChunk(content="", tool_call_chunks=[call], response_metadata=metadata)

    def _since_last(self, *, last: bool = False) -> dict[str, Any]:
        """Returns the logprobs and the trace of the tokens since the last chunk, if they were requested."""
        tokens, self._logprobs = self._logprobs, None if self._logprobs is None else []
        trace, self._trace = self._trace, None
        found = {} if tokens is None else {"logprobs": openai_logprobs(tokens)}
        return found if trace is None else {**found, "trace": trace_part(trace, last=last)}


def _invalid(call: CutCall | BrokenCall, finish_reason: str) -> InvalidToolCall:
    if isinstance(call, BrokenCall):
        error = NoToolCallError.from_broken_call(call.name, call.problem)
    else:
        error = NoToolCallError.from_cut_call(call.text, finish_reason)
    return invalid_tool_call(name=call.name, args=call.text, id=new_call_id(), error=str(error))


def _metadata(answer: Generation, model_name: str, parser: ReplyParser, *, calls: bool) -> dict[str, Any]:
    told = report(answer, parser.warnings, calls=calls)
    reported = {name: value for name, value in told.items() if name != "usage"}
    return {**reported, "model_name": model_name, "model_provider": PROVIDER}


def _usage(answer: Generation, thoughts: str, count: _Count) -> UsageMetadata:
    usage = UsageMetadata(
        input_tokens=answer.usage.prompt_tokens,
        output_tokens=answer.usage.completion_tokens,
        total_tokens=answer.usage.total_tokens,
    )
    if thoughts:
        usage["output_token_details"] = OutputTokenDetails(reasoning=count(thoughts))
    return usage
