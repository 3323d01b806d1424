"""Chooses the replica of a Ray Serve deployment that has read the beginning of a prompt before."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from deepen_integrations.serve.prefixes import preferred


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # Ray is an extra
    """Sends requests whose first argument is the same text to one replica, as long as that takes more requests.

    Then, and without such a text, to the one of two others that has fewer.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Returns groups of replicas, the preferred ones first; Ray takes the idlest of the first that has room."""
        prefix: Any = ""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # else Ray asks again without a pause
            prefix = pending_request.args[0] if pending_request.args else ""
        if not isinstance(prefix, str) or not prefix:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        order = preferred(prefix, [replica.replica_id.unique_id for replica in candidate_replicas])
        first, *others = [candidate_replicas[place] for place in order]
        return [[first], random.sample(others, min(2, len(others))), others]
