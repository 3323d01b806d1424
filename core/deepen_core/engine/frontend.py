"""The ways to ask an ensemble: whole answers or pieces, one prompt or several, from threads or event loops."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar, overload

from deepen_core.chat.messages import Message, Prompt, check_messages, prompt_list
from deepen_core.config import SamplingParams, resolve_sampling
from deepen_core.engine.decoder import Decoder
from deepen_core.engine.handle import Handle
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.engine.worker import Worker
from deepen_core.errors import DeepenError, PromptError
from deepen_core.results import Chunk, Generation

T = TypeVar("T")
Outcome = Generation | DeepenError
"""What a prompt comes to where one that fails does not end the others."""


class GenerationAPI(ABC):
    """What every way of asking comes to: prompts are read into sequences, which the worker decodes together.

    Wrong options and prompts are told by the call itself, before anything is run. The asynchronous ways do the same on
    the worker and never hold up the event loop; they may be used from several loops at once.
    """

    @abstractmethod
    def _serving(self) -> tuple[Worker, Decoder]:
        """What decodes.

        Raises:
            ClosedError: If the ensemble was closed.
        """

    @overload
    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        return_exceptions: bool,
        **options: Any,
    ) -> Outcome: ...
    @overload
    def generate(
        self,
        prompt: Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        return_exceptions: bool,
        **options: Any,
    ) -> list[Outcome]: ...
    @overload
    def generate(self, prompt: str, params: SamplingParams | None = None, **options: Any) -> Generation: ...
    @overload
    def generate(
        self, prompt: Sequence[Message], params: SamplingParams | None = None, **options: Any
    ) -> Generation: ...
    @overload
    def generate(
        self, prompt: Sequence[str], params: SamplingParams | None = None, **options: Any
    ) -> list[Generation]: ...
    @overload
    def generate(
        self, prompt: Sequence[Sequence[Message]], params: SamplingParams | None = None, **options: Any
    ) -> list[Generation]: ...
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        return_exceptions: bool = False,
        **options: Any,
    ) -> Outcome | Sequence[Outcome]:
        r"""Answers one prompt, or several together.

        Args:
            prompt: A text, a conversation (a list of messages, each member renders its own chat template), or a list of
                either.
            params: Options of the request.
            return_exceptions: Give the error of a prompt in the place of its answer, as `asyncio.gather` does, so that
                the other prompts of a list are answered all the same. Wrong options still raise, and so does a
                closed ensemble.
            options: The same by keyword, such as `max_new_tokens=64, stop=["\n"]`; they win over `params`.

        Returns:
            A `Generation`, or a list of them for a list of prompts; with `return_exceptions` there may be errors among
            them.

        Raises:
            SamplingError: For an unknown option or value.
            PromptError: For an empty prompt or one of unknown shape.
            ContextWindowError: If a prompt is longer than a member's window.
            MemberError: If a member fails.
            ClosedError: If the ensemble is closed, before or meanwhile.
        """
        resolved = resolve_sampling(params, options)
        prompts, single = prompt_list(prompt)
        worker, decoder = self._serving()
        sequences = [_kept(return_exceptions, partial(_start, decoder, p, resolved)) for p in prompts]
        handles = worker.submit(_readable(sequences), self)
        try:
            answers = [_kept(return_exceptions, handle.result) for handle in handles]
        finally:
            _cancel(handles)
        outcomes = _in_place(sequences, answers)
        return outcomes[0] if single else outcomes

    @overload
    async def agenerate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        return_exceptions: bool,
        **options: Any,
    ) -> Outcome: ...
    @overload
    async def agenerate(
        self,
        prompt: Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        return_exceptions: bool,
        **options: Any,
    ) -> list[Outcome]: ...
    @overload
    async def agenerate(self, prompt: str, params: SamplingParams | None = None, **options: Any) -> Generation: ...
    @overload
    async def agenerate(
        self, prompt: Sequence[Message], params: SamplingParams | None = None, **options: Any
    ) -> Generation: ...
    @overload
    async def agenerate(
        self, prompt: Sequence[str], params: SamplingParams | None = None, **options: Any
    ) -> list[Generation]: ...
    @overload
    async def agenerate(
        self, prompt: Sequence[Sequence[Message]], params: SamplingParams | None = None, **options: Any
    ) -> list[Generation]: ...
    async def agenerate(
        self,
        prompt: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        return_exceptions: bool = False,
        **options: Any,
    ) -> Outcome | Sequence[Outcome]:
        """As `generate`; a task that is cancelled here ends the work."""
        resolved = resolve_sampling(params, options)
        prompts, single = prompt_list(prompt)
        asked = time.perf_counter()
        worker, decoder = self._serving()
        reads = [worker.call(partial(_kept, return_exceptions, partial(_start, decoder, p, resolved))) for p in prompts]
        sequences = [await asyncio.wrap_future(read) for read in reads]
        handles = worker.submit(_readable(sequences), self, asked)
        try:
            answers = [await _akept(return_exceptions, handle.aresult()) for handle in handles]
        finally:
            _cancel(handles)
        outcomes = _in_place(sequences, answers)
        return outcomes[0] if single else outcomes

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> Generator[Chunk, None, None]:
        """Answers one prompt piece by piece. Work begins with the first piece that is asked for; closing ends it.

        Args:
            prompt: A text or a conversation.
            params: Options of the request.
            options: The same by keyword.

        Yields:
            Pieces of text as they become certain, never half a character or part of a stop string; the last one carries
            the finish reason and the whole `Generation`.

        Raises:
            DeepenError: As from `generate`.
        """
        resolved = resolve_sampling(params, options)
        worker, decoder = self._serving()
        return self._pieces(worker, decoder.start(_only(prompt, "stream"), resolved))

    def _pieces(self, worker: Worker, sequence: EnsembleSequence) -> Generator[Chunk, None, None]:
        (handle,) = worker.submit([sequence], self)
        try:
            yield from handle
        finally:
            handle.cancel()

    def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> AsyncGenerator[Chunk, None]:
        """As `stream`; a task that is cancelled here ends the work."""
        resolved = resolve_sampling(params, options)
        return self._apieces(_only(prompt, "astream"), resolved)

    async def _apieces(self, prompt: Prompt, params: SamplingParams) -> AsyncGenerator[Chunk, None]:
        handle = await self._aread_and_submit(prompt, params)
        try:
            async for chunk in handle:
                yield chunk
        finally:
            handle.cancel()

    def submit(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Handle:
        """Asks, and leaves the answer to be collected.

        Args:
            prompt: A text or a conversation.
            params: Options of the request.
            options: The same by keyword.

        Returns:
            The caller's end of the request. Dropping it cancels the request.

        Raises:
            DeepenError: As from `generate`, where it is the request that is wrong; what fails later the handle tells.
        """
        resolved = resolve_sampling(params, options)
        worker, decoder = self._serving()
        (handle,) = worker.submit([decoder.start(_only(prompt, "submit"), resolved)], self)
        return handle

    async def asubmit(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Handle:
        """As `submit`, for an event loop: a long prompt is read elsewhere."""
        resolved = resolve_sampling(params, options)
        return await self._aread_and_submit(_only(prompt, "asubmit"), resolved)

    async def _aread_and_submit(self, prompt: Prompt, params: SamplingParams) -> Handle:
        asked = time.perf_counter()
        worker, decoder = self._serving()
        sequence = await asyncio.wrap_future(worker.call(partial(decoder.start, prompt, params)))
        (handle,) = worker.submit([sequence], self, asked)
        return handle


def _only(prompt: Prompt, way: str) -> Prompt:
    prompts, single = prompt_list(prompt)
    if not single:
        raise PromptError(f"{way} takes one prompt; for a list use generate, or {way} each of them.")
    return prompts[0]


def _start(decoder: Decoder, prompt: Prompt, params: SamplingParams) -> EnsembleSequence:
    return decoder.start(prompt if isinstance(prompt, str) else check_messages(prompt), params)


def _kept(keep: bool, work: Callable[[], T]) -> T | DeepenError:
    """What some work comes to; its error, if that is to be kept not raised."""
    try:
        return work()
    except DeepenError as error:
        if not keep:
            raise
        return error


async def _akept(keep: bool, work: Awaitable[T]) -> T | DeepenError:
    try:
        return await work
    except DeepenError as error:
        if not keep:
            raise
        return error


def _readable(sequences: Iterable[EnsembleSequence | DeepenError]) -> list[EnsembleSequence]:
    return [sequence for sequence in sequences if isinstance(sequence, EnsembleSequence)]


def _in_place(sequences: Iterable[EnsembleSequence | DeepenError], answers: Iterable[Outcome]) -> list[Outcome]:
    """The answers, and among them the errors of the prompts that could not be read."""
    coming = iter(answers)
    return [sequence if isinstance(sequence, DeepenError) else next(coming) for sequence in sequences]


def _cancel(handles: Sequence[Handle]) -> None:
    for handle in handles:
        handle.cancel()
