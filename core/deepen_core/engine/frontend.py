"""The public ways to generate: whole answers or streams, one prompt or several, from threads or event loops."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar, overload

from deepen_core.chat.messages import Message, Prompt, check_messages, prompt_list
from deepen_core.config import SamplingParams, resolve_sampling
from deepen_core.engine.deadline import seconds_left, timed_out_early
from deepen_core.engine.decoder import Decoder
from deepen_core.engine.event_loop import running_loop
from deepen_core.engine.handle import AnsweredRequest, Handle
from deepen_core.engine.preparation import is_short
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.engine.worker import Worker
from deepen_core.errors import DeepenError, PromptError, SamplingError
from deepen_core.results import Chunk, Generation

T = TypeVar("T")
Sampling = SamplingParams | Sequence[SamplingParams] | None
"""The options of all prompts, or of each."""
Outcome = Generation | DeepenError
"""The result of a prompt when errors are returned, so that one does not end the others."""


class GenerationAPI(ABC):
    """Reads prompts into sequences, which the worker decodes together.

    Wrong options and prompts raise in the call itself, before anything is run. The async methods check them on
    threads of their own and never block the event loop; they may be used from several loops at once.
    """

    @abstractmethod
    def _serving(self) -> tuple[Worker, Decoder]:
        """Returns the worker and the decoder.

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
        params: Sampling = None,
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
    def generate(self, prompt: Sequence[Prompt], params: Sampling = None, **options: Any) -> list[Generation]: ...
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        params: Sampling = None,
        *,
        return_exceptions: bool = False,
        **options: Any,
    ) -> Outcome | Sequence[Outcome]:
        r"""Answers one prompt, or several together.

        Args:
            prompt: A text, a conversation (a list of messages that each member renders with its own chat template), or
                a list of either. If the last message is the assistant's and its field `prefix` is true, the answer
                continues it.
            params: Options of the request; for a list of prompts also a list, with the options of each.
            return_exceptions: Return the error of a prompt in place of its answer, as `asyncio.gather` does, so that
                the other prompts of a list are still answered. Wrong options still raise, and so does a closed
                ensemble.
            options: Options by keyword, such as `max_new_tokens=64, stop=["\n"]`; they override `params`.

        Returns:
            A `Generation`, or a list of them for a list of prompts; with `return_exceptions`, some may be errors.

        Raises:
            SamplingError: For an unknown option or value, or if there are more or fewer options than prompts.
            PromptError: For an empty prompt or one of unknown shape.
            ContextWindowError: If a prompt is longer than a member's window.
            MemberError: If a member fails.
            QueueFullError: If more requests wait than `max_waiting` allows.
            ClosedError: If the ensemble is closed, before the call or during it.
        """
        asked = time.perf_counter()
        prompts, single = prompt_list(prompt)
        each = _options_for(prompts, single, params, options)
        worker, decoder = self._admitted()
        sequences = [
            _kept(return_exceptions, partial(_start, decoder, p, o)) for p, o in zip(prompts, each, strict=True)
        ]
        handles: list[Handle] = []
        try:  # Ctrl-C may come at any time
            handles = worker.submit(_readable(sequences), self, decoder, asked)
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
        params: Sampling = None,
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
        self, prompt: Sequence[Prompt], params: Sampling = None, **options: Any
    ) -> list[Generation]: ...
    async def agenerate(
        self,
        prompt: Prompt | Sequence[Prompt],
        params: Sampling = None,
        *,
        return_exceptions: bool = False,
        **options: Any,
    ) -> Outcome | Sequence[Outcome]:
        """Like `generate`; cancelling the task ends the work.

        Raises:
            ConfigurationError: Outside of asyncio, as in trio; as from all async methods.
        """
        asked = time.perf_counter()
        running_loop()
        prompts, single = prompt_list(prompt)
        each = _options_for(prompts, single, params, options)
        worker, decoder = self._admitted()
        reads = [
            worker.prepare(partial(_start, decoder, p, o), short=is_short(p, o))
            for p, o in zip(prompts, each, strict=True)
        ]
        try:
            sequences = [
                await _akept(return_exceptions, _in_time(read, o, asked)) for read, o in zip(reads, each, strict=True)
            ]
        finally:
            for read in reads:  # those that have not begun, if the task was cancelled or one prompt is wrong
                read.cancel()
        handles = worker.submit(_readable(sequences), self, decoder, asked)
        try:
            answers = [await _akept(return_exceptions, handle.aresult()) for handle in handles]
        finally:
            _cancel(handles)
        outcomes = _in_place(sequences, answers)
        return outcomes[0] if single else outcomes

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> Generator[Chunk, None, None]:
        """Answers one prompt piece by piece. Work begins when the first piece is requested; closing ends it.

        Args:
            prompt: A text or a conversation.
            params: Options of the request.
            options: Options by keyword.

        Yields:
            Pieces of text as soon as they are certain, never part of a character or of a stop string. The last one
            carries the finish reason and the whole `Generation`.

        Raises:
            DeepenError: As from `generate`.
        """
        asked = time.perf_counter()
        resolved = resolve_sampling(params, options)
        worker, decoder = self._admitted()
        sequence = decoder.start(_only(prompt, "stream"), resolved)
        return self._pieces(worker, decoder, sequence, time.perf_counter() - asked)

    def _pieces(
        self, worker: Worker, decoder: Decoder, sequence: EnsembleSequence, spent_s: float
    ) -> Generator[Chunk, None, None]:
        # The time until somebody asks for the first piece does not count.
        handles: list[Handle] = []
        try:
            handles = worker.submit([sequence], self, decoder, time.perf_counter() - spent_s)
            yield from handles[0]
        finally:
            _cancel(handles)

    def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> AsyncGenerator[Chunk, None]:
        """Like `stream`; cancelling the task ends the work."""
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
        """Starts a request and returns at once; the answer is collected later.

        Args:
            prompt: A text or a conversation.
            params: Options of the request.
            options: Options by keyword.

        Returns:
            A handle to the request. Dropping it cancels the request.

        Raises:
            DeepenError: As from `generate`, if the request itself is wrong; later failures are raised by the handle.
        """
        asked = time.perf_counter()
        resolved = resolve_sampling(params, options)
        worker, decoder = self._admitted()
        (handle,) = worker.submit([decoder.start(_only(prompt, "submit"), resolved)], self, decoder, asked)
        return handle

    async def asubmit(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Handle:
        """Like `submit`, for an event loop: a long prompt is tokenised on a thread beside it."""
        resolved = resolve_sampling(params, options)
        return await self._aread_and_submit(_only(prompt, "asubmit"), resolved)

    async def _aread_and_submit(self, prompt: Prompt, params: SamplingParams) -> Handle:
        asked = time.perf_counter()
        running_loop()
        worker, decoder = self._admitted()
        reading = worker.prepare(partial(decoder.start, prompt, params), short=is_short(prompt, params))
        sequence = await _in_time(reading, params, asked)
        if isinstance(sequence, Generation):
            return Handle(AnsweredRequest(sequence), self)
        (handle,) = worker.submit([sequence], self, decoder, asked)
        return handle

    def _admitted(self) -> tuple[Worker, Decoder]:
        """Returns as `_serving`, if there is room for another call.

        Raises:
            QueueFullError: If there is none.
        """
        worker, decoder = self._serving()
        worker.check_room()
        return worker, decoder


def _only(prompt: Prompt, way: str) -> Prompt:
    prompts, single = prompt_list(prompt)
    if not single:
        raise PromptError(f"{way} takes one prompt; for a list use generate, or {way} each of them.")
    return prompts[0]


def _options_for(
    prompts: Sequence[Prompt], single: bool, params: Sampling, options: Mapping[str, Any]
) -> list[SamplingParams]:
    """Returns the options of each prompt."""
    if not isinstance(params, (list, tuple)):
        return [resolve_sampling(params, options)] * len(prompts)  # type: ignore[arg-type]
    if single:
        raise SamplingError("params is a list: one prompt takes one SamplingParams.")
    if len(params) != len(prompts):
        raise SamplingError(f"{len(params)} SamplingParams for {len(prompts)} prompts: give one each, or one for all.")
    return [resolve_sampling(each, options) for each in params]


def _start(decoder: Decoder, prompt: Prompt, params: SamplingParams) -> EnsembleSequence:
    return decoder.start(prompt if isinstance(prompt, str) else check_messages(prompt), params)


def _kept(keep: bool, work: Callable[[], T]) -> T | DeepenError:
    """Returns the result of some work, or its error if that is to be returned rather than raised.

    The traceback of a returned error is removed: it would keep the requests of all prompts of the call in memory.
    """
    try:
        return work()
    except DeepenError as error:
        if not keep:
            raise
        return error.with_traceback(None)


async def _akept(keep: bool, work: Awaitable[T]) -> T | DeepenError:
    """Like `_kept`."""
    try:
        return await work
    except DeepenError as error:
        if not keep:
            raise
        return error.with_traceback(None)


async def _in_time(
    reading: Future[EnsembleSequence], params: SamplingParams, asked: float
) -> EnsembleSequence | Generation:
    """Returns a prepared request; if its timeout passes before, the empty answer with which it ends.

    Raises:
        TimedOutError: If the request asks for an error then.
    """
    waiting = asyncio.wrap_future(reading)
    try:
        await asyncio.wait([waiting], timeout=seconds_left(params, asked))
        return await waiting if waiting.done() else timed_out_early(params, asked)
    finally:
        waiting.cancel()  # nobody waits for it any more


def _readable(sequences: Iterable[EnsembleSequence | Outcome]) -> list[EnsembleSequence]:
    return [sequence for sequence in sequences if isinstance(sequence, EnsembleSequence)]


def _in_place(sequences: Iterable[EnsembleSequence | Outcome], answers: Iterable[Outcome]) -> list[Outcome]:
    """Merges the answers with the outcomes of prompts that were never decoded, in the order of the prompts."""
    coming = iter(answers)
    return [next(coming) if isinstance(sequence, EnsembleSequence) else sequence for sequence in sequences]


def _cancel(handles: Sequence[Handle]) -> None:
    for handle in handles:
        handle.cancel()
