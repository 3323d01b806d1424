"""A running request, and the caller's handle to it."""

from __future__ import annotations

import threading

from typing_extensions import Self

from deepen_core.engine.decoder import Decoder
from deepen_core.engine.failures import forget_frames
from deepen_core.engine.output_queue import OutputQueue, Wakeups
from deepen_core.engine.sequence import EnsembleSequence
from deepen_core.errors import DeepenError, NotDoneError
from deepen_core.results import Chunk, Generation


class Request:
    """A sequence and the queue of its output.

    Args:
        sequence: The sequence to decode.
        decoder: Steps it; the scheduler's own if None.

    Attributes:
        decoder: As given; None once the request has ended, so that a handle does not keep the models.
        mail: Holds the output until it is taken.
        cancelled: Set by the handle; the worker checks it once per step.
    """

    def __init__(self, sequence: EnsembleSequence, decoder: Decoder | None = None) -> None:
        self.sequence = sequence
        self.decoder = decoder
        self.mail = OutputQueue()
        self.cancelled = False

    def deliver(self, wakeups: Wakeups) -> None:
        """Puts new output into the queue, but no error: `deliver_error` does that.

        Args:
            wakeups: Wakes the tasks that wait for it.
        """
        chunk = self.sequence.take_chunk()
        if chunk is not None:
            self.mail.put(chunk, wakeups)
        if self.sequence.ended:
            self.decoder = None

    def deliver_error(self) -> None:
        """Ends the output of a sequence that has failed with its error."""
        error = self.sequence.error
        assert error is not None, "it has failed"
        forget_frames(error)  # now: once a caller has raised it, it keeps that caller's frames as well
        self.mail.fail(error)

    def fail(self, error: DeepenError) -> None:
        """Ends the request with an error."""
        self.sequence.fail(error)
        self.mail.fail(error)
        self.decoder = None


class AnsweredRequest:
    """A request that ended before there was anything to decode.

    Args:
        answer: Its answer.
    """

    def __init__(self, answer: Generation) -> None:
        self.mail = OutputQueue()
        whole = Chunk(answer.text, answer.token_ids, answer.finish_reason, answer, answer.logprobs)
        self.mail.put(whole, Wakeups())  # nobody waits yet
        self.cancelled = False


class Handle:
    """One request: wait for its answer, read it piece by piece, or cancel it.

    It may be used from several threads and event loops. Each piece goes to the first reader that takes it; every reader
    can get the whole answer. A handle that is dropped cancels its request.

    Args:
        request: The request.
        owner: Kept alive as long as the handle, since the request ends with it.

    Attributes:
        output: What was not read yet; for the engine.

    Examples:
        >>> handle = ens.submit("Once upon a time", max_new_tokens=64)
        >>> for chunk in handle:
        ...     print(chunk.text, end="")
        >>> handle.result().usage
    """

    def __init__(self, request: Request | AnsweredRequest, owner: object) -> None:
        self._request = request
        self.output = request.mail
        self._owner = owner

    @property
    def done(self) -> bool:
        """Whether the request has ended in any way."""
        return self.output.ended()

    def cancel(self) -> None:
        """Ends the request at its next step, if not done, with `finish_reason="cancelled"` and a partial answer."""
        # Only sets a flag: this runs in destructors too, where no lock may be taken.
        self._request.cancelled = True

    def result(self, timeout: float | None = None) -> Generation:
        """Waits for the whole answer.

        Args:
            timeout: Maximum number of seconds to wait; the request continues in any case. What is longer than Python
                can wait (292 years) is no limit.

        Raises:
            NotDoneError: If the timeout has passed.
            DeepenError: The error that ended the request.
        """
        bounded = None if timeout is None or timeout > threading.TIMEOUT_MAX else timeout
        if not self.output.wait(self.output.ended, bounded):
            raise NotDoneError(
                f"The answer was not complete after {timeout} s. The request continues: ask for the result again, "
                "cancel it, or give the request a timeout of its own, which ends it with the partial answer."
            )
        return self.output.answer()

    async def aresult(self) -> Generation:
        """Waits for the whole answer without blocking the event loop.

        Raises:
            DeepenError: The error that ended the request.
        """
        await self.output.sleep(self.output.ended)
        return self.output.answer()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        while not self.output.emptied():
            self.output.wait(self.output.has_news)
            if chunk := self.output.take():
                return chunk
        raise StopIteration

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        while not self.output.emptied():
            await self.output.sleep(self.output.has_news)
            if chunk := self.output.take():
                return chunk
        raise StopAsyncIteration

    def __copy__(self) -> Self:
        """Returns this handle itself: a copy that is dropped would cancel the request."""
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        """See `__copy__`."""
        return self

    def __del__(self) -> None:
        self.cancel()
