"""What a kind of server is asked, how its replies are read, and which of them are refused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from deepen_core.members.server.connection import Connection, Reply, Request, ServerError

T = TypeVar("T")
Form = TypeVar("Form", bound="ReplyForm")

_PER_TOKEN = 2**10  # bytes of a reply, for each token with its text and its bytes; it takes a tenth of that
_LEAST = 2**22
_MOST_MASS = 1.01  # servers add thousands of float32 probabilities up: 1.0002 was seen
_RISE = 1e-4  # of a log-probability over the one before it in an order, by rounding
_LOWEST = -9999.0  # what vLLM has for a probability of 0; llama.cpp has the lowest float


class ReplyForm(BaseModel):
    """A part of a reply; numbers must be numbers, and finite."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


@dataclass(frozen=True)
class Served:
    """What a server says of its model; equal after it was restarted with the same one.

    Attributes:
        name: Its name in replies.
        vocabulary_size: Number of its logits, if the server says that.
        parameters: Their number; 0 if the server does not say it.
        window: Maximum number of ids of a text.
        slots: Number of texts that the server holds, on a server where that is fixed.
        file: More about the file that it was loaded from.
    """

    name: str
    vocabulary_size: int | None
    parameters: int
    window: int | None
    slots: int | None
    file: str


@dataclass(frozen=True)
class TopTokens:
    """The most probable next tokens.

    Attributes:
        ids: int64 [tokens].
        logprobs: In nats, float64 [tokens].
        ids_run: Number of ids of the text that the server ran for it; None if it does not say that.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    ids_run: int | None

    @classmethod
    def checked(
        cls, tokens: Sequence[tuple[int, float]], asked: int, size: int | None, ids_run: int | None
    ) -> TopTokens:
        """Returns them in their order, unless they cannot be what a model says.

        Args:
            tokens: Ids and log-probabilities, the most probable one first.
            asked: The number of tokens that were asked for.
            size: Number of the model's logits, if that is known.
            ids_run: As in `TopTokens`.

        Raises:
            ServerError: If there are too few, an id occurs twice or is none of the model's, or the probabilities rise
                or add up to more than 1.
        """
        ids = torch.tensor([token_id for token_id, _ in tokens], dtype=torch.long)
        logprobs = torch.tensor([value for _, value in tokens], dtype=torch.float64).clamp_min(_LOWEST)
        wanted = asked if size is None else min(asked, size)
        if len(ids) < max(1, wanted):
            raise ServerError(f"it has the probabilities of {len(ids)} tokens, and {wanted} were asked for")
        if int(ids.min()) < 0 or (size is not None and int(ids.max()) >= size) or len(ids.unique()) < len(ids):
            raise ServerError(f"it has ids that are none of the model's ({size}), or the same twice")
        if bool((logprobs.diff() > _RISE).any()):
            raise ServerError("its probabilities are not in order")
        if (mass := float(logprobs.exp().sum())) > _MOST_MASS:
            raise ServerError(f"its probabilities add up to {mass:.4f}")
        return cls(ids, logprobs, ids_run)


class Asked(Protocol):
    """A server with a known model, see `ModelServer`."""

    @property
    def served(self) -> Served:
        """Its model."""
        ...

    async def ask(self, request: Request, read: Callable[[Reply], T]) -> T:
        """Sends a request, and returns what was read of the reply."""
        ...


class ServerApi(ABC):
    """A kind of server.

    Attributes:
        label: Its name, for reports.
        asks_by_token: Whether `token_logprobs` takes a request for each token.
    """

    label: str
    asks_by_token: bool = False

    @abstractmethod
    async def identify(self, connection: Connection) -> Served:
        """Asks the server for its model.

        Raises:
            ServerError: If it has none, or not the one that was named.
        """

    @abstractmethod
    async def encode(self, server: Asked, text: str) -> list[int]:
        """Returns the ids that the server has for a text, without BOS."""

    @abstractmethod
    async def fill(self, server: Asked, ids: Sequence[int], slot: int) -> int | None:
        """Makes the server run a text ahead.

        Args:
            server: With its model.
            ids: The text.
            slot: The slot to hold it, on a server that has slots.

        Returns:
            Number of ids that it ran, if it says that.
        """

    @abstractmethod
    async def next_tokens(self, server: Asked, ids: Sequence[int], count: int, slot: int) -> TopTokens:
        """Returns the most probable tokens after a text; arguments as for `fill`.

        Raises:
            ServerError: If the reply is of another text or model, or is none.
        """

    @abstractmethod
    async def token_logprobs(self, server: Asked, ids: Sequence[int], start: int, count: int) -> list[float]:
        """See `Member.token_logprobs`; `count` as for `next_tokens`."""


def parsed(form: type[Form], reply: Reply) -> Form:
    """Reads a reply.

    Raises:
        ServerError: If it is not JSON, or of another form.
    """
    try:
        return form.model_validate_json(reply.content)
    except ValidationError as problem:
        fault = problem.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise ServerError(f"it has another form ({place + ': ' if place else ''}{fault['msg']})") from problem


def bytes_for(tokens: int) -> int:
    """Returns the longest reply that can be meant, with the probabilities of so many tokens."""
    return _LEAST + _PER_TOKEN * tokens


def check_text(told: int, ids: Sequence[int], name: str, served: Served) -> None:
    """Refuses the reply to another text, or of another model.

    Args:
        told: Number of ids of the text in the reply.
        ids: The text.
        name: The model in the reply.
        served: The model of the member.

    Raises:
        ServerError: If it is.
    """
    if name != served.name:
        raise ServerError(f"it is of the model {name!r}, and the member's is {served.name!r}", is_final=True)
    if told != len(ids):
        raise ServerError(f"it is of a text of {told} ids, and {len(ids)} were sent")


def described(fault: ServerError, of: str) -> ServerError:
    """Returns a fault that says what it is of."""
    return ServerError(f"{of}{fault}", status=fault.status, is_final=fault.is_final)
