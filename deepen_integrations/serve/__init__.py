"""DeePEn ensembles behind an HTTP endpoint that speaks OpenAI's protocol."""

from deepen_integrations.extras import require

require("starlette", extra="serve")
require("uvicorn", extra="serve")
require("prometheus_client", extra="serve")

from deepen_integrations.serve.app import create_app  # noqa: E402 (the error for a missing extra comes first)
from deepen_integrations.serve.options import ServeOptions  # noqa: E402
from deepen_integrations.serve.server import serve  # noqa: E402

__all__ = ["ServeOptions", "create_app", "serve"]
