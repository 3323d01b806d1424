"""Which of several replicas a request prefers: one that has read the same beginning of a prompt before.

A replica copies what a prompt shares with one that it has in hand, so requests that begin alike are best answered by
one replica. Rendezvous hashing gives each beginning an order of all replicas, in which the others keep their places
when one comes or goes (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any


def prefix_of(body: bytes, characters: int) -> str:
    """Returns the beginning of a request's prompt, after its model; empty for a body that has none.

    Args:
        body: The body of a request for an answer; nothing about it has been checked.
        characters: Length of the beginning.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(values, dict):
        return ""
    text = "\n".join(_texts(values.get("messages", values.get("prompt"))))
    return f"{values.get('model')}\n{text[:characters]}" if text else ""


def preferred(prefix: str, replicas: Sequence[str]) -> list[int]:
    """Returns the places of replicas in the order in which a request with a prefix prefers them.

    Args:
        prefix: What `prefix_of` returned, not empty.
        replicas: Their names.
    """

    def score(place: int) -> bytes:
        return hashlib.blake2b(f"{replicas[place]}\0{prefix}".encode("utf-8", "replace"), digest_size=16).digest()

    return sorted(range(len(replicas)), key=score)


def _texts(prompt: Any) -> list[str]:
    """Returns the texts of a prompt, or of messages with their roles, as far as they have the shape of either."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        return []
    found = []
    for message in prompt:
        if isinstance(message, str):
            found.append(message)
        elif isinstance(message, dict):
            found += [str(message.get("role")), str(message.get("content"))]
    return found
