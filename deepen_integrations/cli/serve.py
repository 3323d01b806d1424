"""`deepen serve`: an ensemble behind an endpoint that speaks OpenAI's protocol."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from typing import Annotated

import typer

from deepen_core.config.serving import ServingConfig
from deepen_integrations.cli import options as opt
from deepen_integrations.cli.application import commands, examples_of
from deepen_integrations.cli.opening import open_ensemble, or_demo
from deepen_integrations.cli.session import checked_sampling, clear_errors, notice
from deepen_integrations.load_options import DEMO

KEY_VARIABLE = "DEEPEN_API_KEY"
_server = functools.partial(typer.Option, rich_help_panel="Server")


class LogFormat(Enum):
    """The format of log lines."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True)
class ServedEnsembleOptions(opt.EnsembleOptions):
    """Which ensemble is served."""

    max_batch_size: Annotated[
        int, typer.Option(min=1, rich_help_panel="Ensemble", help="Maximum number of answers decoded together.")
    ] = ServingConfig().max_batch_size
    step_timeout: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            metavar="SECONDS",
            rich_help_panel="Ensemble",
            help="Time that a member may take for a step before it counts as failed.",
            show_default="no limit",
        ),
    ] = None


@dataclass(frozen=True)
class ServerOptions:
    """How the ensemble is served: options of `deepen_integrations.serve.ServeOptions`, and where."""

    port: Annotated[int, _server("--port", "-p", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000
    host: Annotated[str, _server(help="Address to listen at; 0.0.0.0 for all of this machine's.")] = "127.0.0.1"
    name: Annotated[
        str | None,
        _server(
            metavar="MODEL",
            help="Name by which clients ask for it.",
            show_default="that of --ensemble, or the members', joined by +",
        ),
    ] = None
    api_key: Annotated[
        list[str] | None,
        _server(
            metavar="KEY",
            help=f"Key that clients must send; repeat the option for several. Better set {KEY_VARIABLE} (several with "
            "commas): other users of this machine can read arguments.",
            show_default="none",
        ),
    ] = None
    max_answers: Annotated[
        int, _server(min=1, help="Maximum number of answers that are decoded or wait; beyond it, clients get 429.")
    ] = 256
    max_body: Annotated[
        int, _server(min=1024, metavar="BYTES", help="Maximum size of a request; beyond it, clients get 413.")
    ] = 4 * 2**20
    shutdown: Annotated[
        int, _server(min=0, metavar="SECONDS", help="Time for running requests once the server is asked to stop.")
    ] = 30
    log_format: Annotated[LogFormat, _server(help="Format of log lines, on the error stream.")] = LogFormat.TEXT


@commands.command(
    epilog=examples_of(
        "deepen serve -m ./general -m ./specialist --port 8000",
        "deepen serve -e NAME",
        "DEEPEN_API_KEY=... deepen serve --demo",
    )
)
@opt.spread()
def serve(
    *,
    load: ServedEnsembleOptions,
    sampling: opt.SamplingOptions,
    server: ServerOptions,
    debug: opt.Debug = False,
) -> None:
    """Serve the ensemble to clients of OpenAI's API, such as `openai`, LangChain, LlamaIndex and Open WebUI.

    They use `http://HOST:PORT/v1` as the base URL. Options of choosing tokens count where a request does not give its
    own. Needs the extra `serve`.
    """
    with clear_errors(debug):
        try:
            from deepen_integrations import serve as serving  # noqa: PLC0415 (needs an extra)
        except ImportError as missing:
            notice(f"Error: {missing}", style="bold red")
            raise typer.Exit(1) from missing
        named = or_demo(load)
        defaults = checked_sampling(sampling)
        keys = server.api_key or [key for key in os.environ.get(KEY_VARIABLE, "").split(",") if key]
        own = PurePath(named.ensemble).stem if named.ensemble else ""
        name = server.name or own or "+".join(PurePath(member).name for member in named.member or ()) or DEMO
        given = {
            "api_keys": keys,
            "max_body_bytes": server.max_body,
            "max_answers": server.max_answers,
            "shutdown_s": server.shutdown,
        }
        serving.serve(
            {name: lambda: open_ensemble(named)},
            serving.ServeOptions.checked(given),
            sampling={name: defaults},
            host=server.host,
            port=server.port,
            log_format=server.log_format.value,
        )
