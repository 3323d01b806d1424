"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

if TYPE_CHECKING:
    from deepen_core.results import Generation
    from deepen_integrations.serve.admission import Admission
    from deepen_integrations.serve.served import Catalogue, ServedEnsemble

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counts of one server; two servers in a process have counts of their own.

    Args:
        catalogue: The server's ensembles.
        admission: Counts the answers that are running.

    Attributes:
        requests: By path, method and status.
        seconds: From the request to the end of its response, by path.
        gone: Requests whose clients went away.
        first_token: Seconds from the request to the first piece of a streamed answer.
    """

    def __init__(self, catalogue: Catalogue, admission: Admission) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("deepen_requests", "Requests.", ["path", "method", "status"], registry=registry)
        self.seconds = Histogram(
            "deepen_request_seconds", "Seconds of a request.", ["path"], buckets=_SECONDS, registry=registry
        )
        running = Gauge("deepen_answers_running", "Answers that are decoded or wait.", registry=registry)
        running.set_function(lambda: admission.running)
        self.gone = Counter("deepen_clients_gone", "Requests whose clients went away.", registry=registry)
        self.first_token = Histogram(
            "deepen_first_token_seconds",
            "Seconds to the first piece of a streamed answer.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue = Histogram(
            "deepen_queue_seconds",
            "Seconds that an answer waited before its first forward.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokens = Counter("deepen_tokens", "Tokens.", ["model", "kind"], registry=registry)
        ready = Gauge("deepen_model_ready", "Whether a model is loaded.", ["model"], registry=registry)
        for served in catalogue:
            ready.labels(served.name).set_function(partial(_is_ready, served))

    def answered(self, model: str, answers: Sequence[Generation]) -> None:
        """Counts the tokens of complete answers."""
        for answer in answers:
            self._queue.labels(model).observe(answer.timings.queue_s)
            self._tokens.labels(model, "prompt").inc(answer.usage.prompt_tokens)
            self._tokens.labels(model, "completion").inc(answer.usage.completion_tokens)

    def text(self) -> bytes:
        """Returns all counts in Prometheus's text format."""
        return generate_latest(self._registry)


def _is_ready(served: ServedEnsemble) -> float:
    return float(served.status == "ready")
