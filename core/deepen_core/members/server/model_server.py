"""A server with a known model: requests are repeated once, and the replies of another model are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from deepen_core.members.server.api import Served, ServerApi, described
from deepen_core.members.server.connection import Connection, Reply, Request, ServerError

T = TypeVar("T")

_PAUSE_S = 0.1  # before a request is repeated


class ModelServer:
    """A server and the model that it had at first.

    Every request holds a whole text, so it may be repeated, also after the server was restarted.

    Args:
        connection: To the server.
        api: Its kind.
        served: Its model.

    Attributes:
        connection: As given.
        api: As given.
        served: As given.
    """

    def __init__(self, connection: Connection, api: ServerApi, served: Served) -> None:
        self.connection = connection
        self.api = api
        self.served = served

    async def ask(self, request: Request, read: Callable[[Reply], T]) -> T:
        """Sends a request and reads the reply; once more, if there is none that can be used.

        Raises:
            ServerError: If there is none again, or the server has another model now.
        """
        try:
            return await self._once(request, read)
        except ServerError as fault:
            if fault.is_final:
                raise
        await asyncio.sleep(_PAUSE_S)
        return await self._once(request, read)

    async def _once(self, request: Request, read: Callable[[Reply], T]) -> T:
        try:
            reply = await self.connection.send(request)
        except ServerError as fault:
            if fault.status is not None and fault.is_final:  # another model may be why
                await self._check_model()
            raise
        if reply.is_reconnected:
            await self._check_model()
        try:
            return read(reply)
        except ServerError as fault:
            raise described(fault, f"the reply of {self.connection.url} to {request.path} is not used: ") from fault

    async def _check_model(self) -> None:
        """Refuses a server that was restarted with another model: names alone may be equal."""
        found = await self.api.identify(self.connection)
        if found != self.served:
            raise ServerError(
                f"{self.connection.url} has another model now ({found}, and it was {self.served}): load the ensemble "
                "again, or start the server with its model",
                is_final=True,
            )
