"""Streams that LlamaIndex's callback handlers observe, and that are closed with their reader."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage

from deepen_integrations.llama_index.responses import Response

if TYPE_CHECKING:
    from llama_index.core.llms import LLM


def observed(
    callback: Callable[[Callable[..., Any]], Callable[..., Any]],
    llm: LLM,
    request: str | Sequence[ChatMessage],
    pieces: Generator[Response, None, None],
    options: Mapping[str, Any],
) -> Generator[Response, None, None]:
    """Reports a stream to LlamaIndex's handlers, and closes it when its reader stops.

    The decorator alone leaves closing to the garbage collector. A handler that keeps the exception of an abandoned
    stream, as `LlamaDebugHandler` does, would then keep the stream open for good.

    Args:
        callback: LlamaIndex's decorator of the method.
        llm: The model.
        request: The prompt or the messages.
        pieces: The responses.
        options: The call's options.
    """
    reported = callback(lambda _llm, _request, **_options: pieces)(llm, request, **options)

    def read() -> Generator[Response, None, None]:
        try:
            yield from reported
        finally:
            pieces.close()

    return read()


async def aobserved(
    callback: Callable[[Callable[..., Any]], Callable[..., Any]],
    llm: LLM,
    request: str | Sequence[ChatMessage],
    pieces: AsyncGenerator[Response, None],
    options: Mapping[str, Any],
) -> AsyncGenerator[Response, None]:
    """Like `observed`, for an event loop."""

    async def given(_llm: LLM, _request: object, **_options: Any) -> AsyncGenerator[Response, None]:
        return pieces

    reported = await callback(given)(llm, request, **options)

    async def read() -> AsyncGenerator[Response, None]:
        async with aclosing(pieces):
            async for response in reported:
                yield response

    return read()
