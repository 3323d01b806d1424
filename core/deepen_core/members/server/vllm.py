"""The server of vLLM (`vllm serve`), by its completions in OpenAI's form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from deepen_core.members.server.api import (
    Asked,
    ReplyForm,
    Served,
    ServerApi,
    TopTokens,
    bytes_for,
    check_text,
    parsed,
)
from deepen_core.members.server.connection import Connection, Reply, Request, ServerError

_TOKEN = "token_id:"  # with return_tokens_as_token_ids
_MOST = re.compile(r"max allowed: (\d+)")  # of the error for too many log-probabilities
# Whatever the server's own defaults are (--generation-config): nothing changes the probabilities.
_ALWAYS: dict[str, Any] = {
    "max_tokens": 1,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "return_tokens_as_token_ids": True,
    "return_token_ids": True,
}


class _Model(ReplyForm):
    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Models(ReplyForm):
    """Of /v1/models."""

    data: list[_Model] = Field(min_length=1)


class _Tokens(ReplyForm):
    """Of /tokenize."""

    tokens: list[int]


class _Details(ReplyForm):
    cached_tokens: int | None = None


class _Usage(ReplyForm):
    prompt_tokens: int
    prompt_tokens_details: _Details | None = None


class _Logprobs(ReplyForm):
    top_logprobs: list[dict[str, float]] = Field(min_length=1, max_length=1)


class _Likelihood(ReplyForm):
    logprob: float


class _Choice(ReplyForm):
    prompt_token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    prompt_logprobs: list[dict[str, _Likelihood] | None] | None = None


class _Completion(ReplyForm):
    """Of /v1/completions."""

    model: str
    choices: list[_Choice] = Field(min_length=1, max_length=1)
    usage: _Usage


class VllmApi(ServerApi):
    """A server of vLLM.

    Args:
        model: The name of the model that is asked; None for the server's only one.
    """

    label = "vllm"

    def __init__(self, model: str | None) -> None:
        self._model = model

    async def identify(self, connection: Connection) -> Served:
        """See `ServerApi.identify`."""
        found = parsed(_Models, await connection.send(Request("/v1/models"))).data
        names = [model.id for model in found]
        if self._model is not None and self._model not in names:
            raise ServerError(f"it has no model {self._model!r}, but {', '.join(names)}", is_final=True)
        whole = [model for model in found if model.parent is None] or found  # the others are adapters of these
        if self._model is None and len(whole) > 1:
            raise ServerError(f"it has several models, {', '.join(names)}: name one as model of server", is_final=True)
        model = whole[0] if self._model is None else found[names.index(self._model)]
        return Served(model.id, None, 0, model.max_model_len, None, model.root or "")

    async def encode(self, server: Asked, text: str) -> list[int]:
        """See `ServerApi.encode`."""
        body = {"model": server.served.name, "prompt": text, "add_special_tokens": False}
        return await server.ask(Request("/tokenize", body), lambda reply: parsed(_Tokens, reply).tokens)

    async def fill(self, server: Asked, ids: Sequence[int], slot: int) -> int | None:  # noqa: ARG002 (it has no slots)
        """See `ServerApi.fill`."""
        return await server.ask(_request(server, ids, {}), lambda reply: _ran(_checked(server, reply, ids), ids))

    async def next_tokens(self, server: Asked, ids: Sequence[int], count: int, slot: int) -> TopTokens:  # noqa: ARG002
        """See `ServerApi.next_tokens`."""

        def read(reply: Reply) -> TopTokens:
            found = _checked(server, reply, ids)
            logprobs = found.choices[0].logprobs
            if logprobs is None:
                raise ServerError("it has no probabilities")
            # The token that was chosen comes first, and again among the others only if it is not one of them.
            tokens = sorted(
                ((_id_of(name), value) for name, value in logprobs.top_logprobs[0].items()), key=_descending
            )
            return TopTokens.checked(tokens, count, None, _ran(found, ids))

        return await server.ask(_request(server, ids, {"logprobs": count}, bytes_for(count)), read)

    async def token_logprobs(self, server: Asked, ids: Sequence[int], start: int, count: int) -> list[float]:  # noqa: ARG002
        """See `ServerApi.token_logprobs`: one request for all."""

        def read(reply: Reply) -> list[float]:
            places = _checked(server, reply, ids).choices[0].prompt_logprobs or []
            own = [place.get(str(i)) for i, place in zip(ids, places, strict=False) if place is not None]
            own = own[len(own) - (len(ids) - start) :]
            found = [likelihood.logprob for likelihood in own if likelihood is not None]
            if len(places) != len(ids) or len(found) != len(ids) - start:
                raise ServerError(f"it has the probabilities of {len(found)} of {len(ids) - start} tokens")
            return found

        return await server.ask(_request(server, ids, {"prompt_logprobs": 1}, bytes_for(2 * len(ids))), read)


def most_allowed(fault: ServerError) -> int | None:
    """Returns how many log-probabilities a server gives at most, if that is what a request failed for."""
    found = _MOST.search(str(fault))
    return None if found is None else int(found[1])


def _request(server: Asked, ids: Sequence[int], more: dict[str, Any], limit: int = bytes_for(0)) -> Request:
    body = {"model": server.served.name, "prompt": list(ids), **_ALWAYS, **more}
    return Request("/v1/completions", body, limit + bytes_for(len(ids)))


def _checked(server: Asked, reply: Reply, ids: Sequence[int]) -> _Completion:
    found = parsed(_Completion, reply)
    check_text(found.usage.prompt_tokens, ids, found.model, server.served)
    if found.choices[0].prompt_token_ids not in (None, list(ids)):
        raise ServerError("it is of another text than was sent")
    return found


def _ran(found: _Completion, ids: Sequence[int]) -> int | None:
    details = found.usage.prompt_tokens_details
    return None if details is None or details.cached_tokens is None else len(ids) - details.cached_tokens


def _id_of(name: str) -> int:
    number = name.removeprefix(_TOKEN)
    if number == name or not number.isdecimal():
        raise ServerError(f"it names a token {name!r} in place of its id")
    return int(number)


def _descending(token: tuple[int, float]) -> float:
    return -token[1]
