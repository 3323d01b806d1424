"""The application: its paths, what surrounds them, and the life of the ensembles."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from deepen_core.errors import DeepenError
from deepen_integrations.serve.admission import Admission
from deepen_integrations.serve.endpoints import Endpoints
from deepen_integrations.serve.metrics import Metrics
from deepen_integrations.serve.middleware import Keyed, Observed, on_error, on_gone, on_http
from deepen_integrations.serve.options import ServeOptions
from deepen_integrations.serve.page import Page
from deepen_integrations.serve.served import Catalogue, Loader
from deepen_integrations.serve.streams import ClientGoneError

if TYPE_CHECKING:
    from deepen_core import Ensemble


def create_app(
    models: Mapping[str, Loader | Ensemble],
    options: ServeOptions | None = None,
    *,
    sampling: Mapping[str, Mapping[str, Any]] | None = None,
) -> Starlette:
    """Returns an ASGI application that serves ensembles.

    It loads them in the background when it starts, one after the other, and releases them when it ends.

    Args:
        models: What loads each ensemble, or an ensemble, which stays its owner's to close; by the names by which
            clients ask for them.
        options: Keys and limits.
        sampling: Sampling options for what a request does not give, by the same names.

    Raises:
        ConfigurationError: If there are no models, or options for one that is not there.
        SamplingError: For wrong sampling options.
    """
    return app_of(Catalogue(models, sampling), ServeOptions() if options is None else options)


def app_of(catalogue: Catalogue, options: ServeOptions) -> Starlette:
    """Returns the application of a catalogue."""
    admission = Admission(options.max_answers)
    metrics = Metrics(catalogue, admission)
    endpoints = Endpoints(catalogue, options, admission, metrics)
    routes = [
        Route("/", Page().answer),
        Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
        Route("/v1/completions", endpoints.completions, methods=["POST"]),
        Route("/v1/models", endpoints.models),
        Route("/v1/models/{name:path}", endpoints.model),
        Route("/health", endpoints.health),
        Route("/ready", endpoints.ready),
        Route("/metrics", endpoints.metrics),
    ]

    @asynccontextmanager
    async def life(_app: Starlette) -> AsyncIterator[None]:
        catalogue.start()
        try:
            yield
        finally:
            catalogue.close()

    return Starlette(
        routes=routes,
        middleware=[
            Middleware(Observed, metrics=metrics, paths=frozenset(route.path for route in routes)),
            Middleware(Keyed, keys=options.api_keys),
        ],
        exception_handlers={
            DeepenError: on_error,
            ClientGoneError: on_gone,
            HTTPException: on_http,
        },
        lifespan=life,
    )
