"""How a member reaches its actor, whatever carries the messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from deepen_core.members.ray.messages import Facts


class LostActorError(Exception):
    """The actor, or the way to it, is gone, and whatever it had computed."""


class NoReplyError(Exception):
    """There is no answer in time."""


class Call(Protocol):
    """Something that an actor was asked for."""

    def result(self, timeout: float) -> Any:
        """Waits for the answer.

        Args:
            timeout: In seconds.

        Raises:
            NoReplyError: If there is none in time.
            LostActorError: If the actor is gone.
            Exception: What the actor has raised.
        """
        ...

    def done(self) -> bool:
        """Whether there is an answer, or never will be one."""
        ...


class Link(Protocol):
    """The way to one actor, which does what it is asked for in order."""

    def call(self, method: str, *given: object) -> Call:
        """Asks for a method of `MemberActor` without waiting for it."""
        ...

    def kill(self) -> None:
        """Ends the actor; further calls do nothing."""
        ...


@dataclass(frozen=True)
class LoadedActor:
    """An actor that has loaded its member."""

    link: Link
    facts: Facts


class Starter(Protocol):
    """Starts actors for one member."""

    def start(self) -> LoadedActor:
        """Starts an actor and has it load the member.

        Raises:
            DeepenError: If that fails.
        """
        ...

    def close(self) -> None:
        """Gives back what actors need, such as the connection; further calls do nothing."""
        ...
