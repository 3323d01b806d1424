"""Finds out what a server is and what it serves, and says in an error what to do about one that cannot be used."""

from __future__ import annotations

from http import HTTPStatus

from pydantic import Field

from deepen_core.config.servers import ServerConfig
from deepen_core.errors import ConfigurationError
from deepen_core.members.server.api import ReplyForm, ServerApi, described, parsed
from deepen_core.members.server.connection import Connection, Request, ServerError
from deepen_core.members.server.llama_cpp import LlamaCppApi
from deepen_core.members.server.model_server import ModelServer
from deepen_core.members.server.vllm import VllmApi

_KEY = "It needs another key: give its api_key in server"
_WAYS_OUT: dict[int | None, str] = {
    None: "Start it, or correct its address",
    HTTPStatus.UNAUTHORIZED: _KEY,
    HTTPStatus.FORBIDDEN: _KEY,
    HTTPStatus.NOT_FOUND: "Give the address and the api of a llama.cpp or vLLM server",
    HTTPStatus.SERVICE_UNAVAILABLE: "It is still loading its model: wait until its /health is ok",
}


class _Version(ReplyForm):
    """Of /version of vLLM."""

    version: str = Field(min_length=1)


async def find_server(connection: Connection, config: ServerConfig, whole_id: int) -> ModelServer:
    """Returns the server with its model.

    Args:
        connection: To the server.
        config: How it is asked.
        whole_id: A token of whole characters.

    Raises:
        ServerError: If there is none, or it has no model.
    """
    name = config.api or await _name(connection)
    api: ServerApi = LlamaCppApi(whole_id) if name == LlamaCppApi.label else VllmApi(config.model)
    try:
        return ModelServer(connection, api, await api.identify(connection))
    except ServerError as fault:
        if fault.status is not None:
            raise
        raise described(fault, f"{connection.url} is no {name} server with a model: ") from fault


async def _name(connection: Connection) -> str:
    """Returns which server it is: that of llama.cpp has /props, and that of vLLM has /version."""
    try:
        await connection.send(Request("/props"))
    except ServerError as fault:
        if fault.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            raise
        parsed(_Version, await connection.send(Request("/version")))
        return VllmApi.label
    return LlamaCppApi.label


def unusable(fault: ServerError, name: str, url: str) -> ConfigurationError:
    """Returns the error of a member whose server cannot be used.

    Args:
        fault: What went wrong.
        name: The member's name.
        url: The server's address.
    """
    way_out = _WAYS_OUT.get(fault.status, "See its log")
    return ConfigurationError(f"Member {name!r} cannot be asked at {url}: {fault}. {way_out}.")
