"""`deepen serve`: an ensemble behind an endpoint that speaks OpenAI's protocol."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import PurePath
from typing import Annotated

import typer

from deepen_core.config.named_ensembles import ensemble_names, ensembles_file
from deepen_core.config.serving import ServingConfig
from deepen_core.errors import ConfigurationError
from deepen_integrations.cli import options as opt
from deepen_integrations.cli.application import commands, examples_of
from deepen_integrations.cli.console import notice
from deepen_integrations.cli.opening import named_options, open_ensemble, or_demo
from deepen_integrations.cli.session import checked_sampling, clear_errors
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
    """What is served, how, and where: options of `deepen_integrations.serve.ServeOptions` among them."""

    named: Annotated[
        list[str] | None,
        typer.Option(
            "--ensemble",
            "-e",
            metavar="NAME",
            rich_help_panel="Ensemble",
            help="An ensemble in ~/.config/deepen/ensembles.yaml, or the path of a YAML file with one. Repeat the "
            "option for several; each is served under its name. Other options replace what they say.",
        ),
    ] = None
    every: Annotated[
        bool,
        typer.Option(
            "--all", rich_help_panel="Ensemble", help="Serve all ensembles in ~/.config/deepen/ensembles.yaml."
        ),
    ] = False
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
    stream_interval: Annotated[
        float,
        _server(
            min=0.0,
            metavar="SECONDS",
            help="Least time between two events of a stream: where steps are shorter, an event has several tokens. "
            "While more than 20 answers are under way, it grows in proportion to their number. 0 for an event with "
            "every step.",
        ),
    ] = 0.05
    shutdown: Annotated[
        int, _server(min=0, metavar="SECONDS", help="Time for running requests once the server is asked to stop.")
    ] = 30
    log_format: Annotated[LogFormat, _server(help="Format of log lines, on the error stream.")] = LogFormat.TEXT


@commands.command(
    epilog=examples_of(
        "deepen serve -m ./general -m ./specialist --port 8000",
        "deepen serve -e fast -e careful",
        "DEEPEN_API_KEY=... deepen serve --demo",
    )
)
@opt.spread(without=["ensemble", "logprobs", "trace"])
def serve(
    *,
    load: ServedEnsembleOptions,
    sampling: opt.SamplingOptions,
    server: ServerOptions,
    debug: opt.Debug = False,
) -> None:
    """Serve ensembles to clients of OpenAI's API, such as `openai`, LangChain, LlamaIndex and Open WebUI.

    They use `http://HOST:PORT/v1` as the base URL; a page to chat with is at `http://HOST:PORT/`. Options of choosing
    tokens count where a request does not give its own. Needs the extra `serve`.
    """
    with clear_errors(debug):
        try:
            from deepen_integrations import serve as serving  # noqa: PLC0415 (needs an extra)
        except ImportError as missing:
            notice(f"Error: {missing}", style="bold red")
            raise typer.Exit(1) from missing
        models = _served(load, server)
        defaults = checked_sampling(sampling)
        keys = server.api_key or [key for key in os.environ.get(KEY_VARIABLE, "").split(",") if key]
        given = {
            "api_keys": keys,
            "max_body_bytes": server.max_body,
            "max_answers": server.max_answers,
            "stream_interval_s": server.stream_interval,
            "shutdown_s": server.shutdown,
        }
        serving.serve(
            {name: functools.partial(open_ensemble, options) for name, options in models.items()},
            serving.ServeOptions.checked(given),
            sampling=dict.fromkeys(models, defaults),
            host=server.host,
            port=server.port,
            log_format=server.log_format.value,
        )


def _served(load: ServedEnsembleOptions, server: ServerOptions) -> dict[str, opt.EnsembleOptions]:
    """Returns the options of each ensemble to serve, by the names by which clients ask for them.

    Raises:
        typer.BadParameter: If options contradict each other, or two ensembles have one name.
        ConfigurationError: If there is no such ensemble.
    """
    wanted = [*(server.named or ())]
    if server.every:
        wanted += [name for name in ensemble_names() if name not in wanted]
        if not wanted:
            raise ConfigurationError(f"There are no ensembles in {ensembles_file()}: write it, or name the members.")
    each = [or_demo(replace(load, ensemble=name)) for name in wanted or [None]]
    for options in each:
        named_options(options)
    names = [_name_of(options) for options in each]
    if len(set(names)) < len(names):
        raise typer.BadParameter(f"Two of {', '.join(names)} have one name.", param_hint="--ensemble")
    if server.name and len(names) > 1:
        raise typer.BadParameter("It names one ensemble; several have their own names.", param_hint="--name")
    return dict(zip([server.name] if server.name else names, each, strict=True))


def _name_of(options: opt.EnsembleOptions) -> str:
    if options.ensemble:
        return PurePath(options.ensemble).stem
    return "+".join(PurePath(member).name for member in options.member or ()) or DEMO
