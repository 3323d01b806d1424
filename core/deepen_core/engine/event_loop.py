"""The event loop of async methods."""

from __future__ import annotations

import asyncio

from deepen_core.errors import ConfigurationError


def running_loop() -> asyncio.AbstractEventLoop:
    """Returns the event loop of this task.

    Raises:
        ConfigurationError: If the task runs in something other than asyncio, such as trio.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            "Async methods need asyncio, and no loop of asyncio runs here: with trio, call generate or stream in a "
            "thread, as by trio.to_thread.run_sync; with anyio, choose the backend asyncio."
        ) from None
