"""The server of llama.cpp (`llama-server`)."""

from __future__ import annotations

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

_ANY = -1  # the server chooses the slot
_ALL = 2**22  # tokens: more than any vocabulary has
_CHOSEN = 1e6  # of a logit: more than any other has
# The probabilities are those before any sampler; the sampled token itself is not used. Keys that are moved to other
# places (n_cache_reuse) would give other ones than the text has.
_ALWAYS: dict[str, Any] = {
    "cache_prompt": True,
    "n_cache_reuse": 0,
    "stream": False,
    "temperature": 0.0,
    "samplers": ["top_k"],
    "top_k": 1,
    "post_sampling_probs": False,
    "backend_sampling": False,
}
# Of the reply; it would hold the text and all settings as well.
_FIELDS = ["completion_probabilities", "tokens_evaluated", "truncated", "model", "timings/cache_n"]


class _Settings(ReplyForm):
    n_ctx: int


class _Props(ReplyForm):
    """Of /props."""

    default_generation_settings: _Settings
    total_slots: int


class _Meta(ReplyForm):
    n_vocab: int
    n_params: int = 0
    size: int = 0
    ftype: str = ""


class _Model(ReplyForm):
    id: str
    meta: _Meta | None = None


class _Models(ReplyForm):
    """Of /v1/models."""

    data: list[_Model] = Field(min_length=1)


class _Tokens(ReplyForm):
    """Of /tokenize."""

    tokens: list[int]


class _Token(ReplyForm):
    id: int
    logprob: float


class _Place(ReplyForm):
    top_logprobs: list[_Token]


class _Filled(ReplyForm):
    """Of /completion, without probabilities."""

    model: str
    tokens_evaluated: int
    truncated: bool
    run_before: int | None = Field(default=None, alias="timings/cache_n")


class _Completion(_Filled):
    """Of /completion."""

    completion_probabilities: list[_Place] = Field(min_length=1, max_length=1)


class LlamaCppApi(ServerApi):
    """A server of llama.cpp, from b4365 (December 2024) on.

    Args:
        whole_id: A token of whole characters. The server is made to choose it: it leaves out the probabilities of a
            place where it has chosen a part of a character.
    """

    label = "llama.cpp"
    asks_by_token = True

    def __init__(self, whole_id: int) -> None:
        self._whole_id = whole_id

    async def identify(self, connection: Connection) -> Served:
        """See `ServerApi.identify`."""
        props = parsed(_Props, await connection.send(Request("/props")))
        model = parsed(_Models, await connection.send(Request("/v1/models"))).data[0]
        meta = model.meta
        if meta is None:
            raise ServerError("it does not say which model it has loaded (/v1/models has no meta)", is_final=True)
        return Served(
            name=model.id,
            vocabulary_size=meta.n_vocab,
            parameters=meta.n_params,
            window=props.default_generation_settings.n_ctx,
            slots=props.total_slots,
            file=f"{meta.ftype} {meta.size}",
        )

    async def encode(self, server: Asked, text: str) -> list[int]:
        """See `ServerApi.encode`."""
        body = {"content": text, "add_special": False, "parse_special": False}
        return await server.ask(Request("/tokenize", body), lambda reply: parsed(_Tokens, reply).tokens)

    async def fill(self, server: Asked, ids: Sequence[int], slot: int) -> int | None:
        """See `ServerApi.fill`."""
        request = Request("/completion", self._body(ids, 0, slot))
        return await server.ask(request, lambda reply: _ran(server, parsed(_Filled, reply), ids))

    async def next_tokens(self, server: Asked, ids: Sequence[int], count: int, slot: int) -> TopTokens:
        """See `ServerApi.next_tokens`."""

        def read(reply: Reply) -> TopTokens:
            found = parsed(_Completion, reply)
            ran = _ran(server, found, ids)
            tokens = [(token.id, token.logprob) for token in found.completion_probabilities[0].top_logprobs]
            return TopTokens.checked(tokens, count, server.served.vocabulary_size, ran)

        limit = bytes_for(min(count, server.served.vocabulary_size or count))
        return await server.ask(Request("/completion", self._body(ids, count, slot), limit), read)

    async def token_logprobs(self, server: Asked, ids: Sequence[int], start: int, count: int) -> list[float]:
        """See `ServerApi.token_logprobs`: a request for each, and one for all tokens where it is not among the top."""
        found = []
        for place in range(start, len(ids)):
            for width in (count, _ALL):
                top = await self.next_tokens(server, ids[:place], width, _ANY)
                at = (top.ids == ids[place]).nonzero()[:, 0]
                if len(at):
                    found.append(float(top.logprobs[at[0]]))
                    break
            else:
                raise ServerError(f"it knows no token {ids[place]}", is_final=True)
        return found

    def _body(self, ids: Sequence[int], count: int, slot: int) -> dict[str, Any]:
        asked = {"prompt": list(ids), "id_slot": slot, "n_predict": min(1, count), "n_probs": count}
        return {**asked, **_ALWAYS, "logit_bias": [[self._whole_id, _CHOSEN]], "response_fields": _FIELDS}


def _ran(server: Asked, found: _Filled, ids: Sequence[int]) -> int | None:
    """Returns how many ids of a text were run, after checking that the reply is of this text."""
    check_text(found.tokens_evaluated, ids, found.model, server.served)
    if found.truncated:
        raise ServerError("the server has cut the text", is_final=True)
    return None if found.run_before is None else len(ids) - found.run_before
