"""The output of several requests, read by one task."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from deepen_core.engine.output_queue import OutputQueue, sleep_until_news
from deepen_core.errors import DeepenError
from deepen_core.results import Chunk


async def merged(outputs: Sequence[OutputQueue]) -> AsyncGenerator[list[tuple[int, Chunk]], None]:
    """Yields the pieces of several answers as they come.

    Args:
        outputs: Those of the answers.

    Yields:
        The pieces that are there, such as those of one decoding step, each with the number of its answer.

    Raises:
        DeepenError: The error that ends one of them, after all pieces before it.
    """
    queues = dict(enumerate(outputs))
    while queues:
        await sleep_until_news([*queues.values()])
        step: list[tuple[int, Chunk]] = []
        failure: DeepenError | None = None
        for number, queue in [*queues.items()]:
            try:
                step += [(number, chunk) for chunk in queue.take_all()]
            except DeepenError as error:
                failure = error
            if queue.emptied():
                del queues[number]
        if step:
            yield step
        if failure is not None:
            raise failure
