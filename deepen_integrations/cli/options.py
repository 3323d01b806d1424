"""The options that the commands share, as the annotations of their parameters."""

from __future__ import annotations

from typing import Annotated

import typer

_ENSEMBLE = "Ensemble"
_SAMPLING = "Choosing tokens"


Member = Annotated[
    list[str] | None,
    typer.Option(
        "--member",
        "-m",
        metavar="MODEL",
        help="A member: a folder in transformers format, or a hub id. Give it once for each model.",
        show_default="the embedded demo",
        rich_help_panel=_ENSEMBLE,
    ),
]
Demo = Annotated[
    bool,
    typer.Option("--demo", help="Use the embedded demo ensemble.", rich_help_panel=_ENSEMBLE),
]
Main = Annotated[
    str,
    typer.Option(
        help="Whose vocabulary is spoken: index or name of a member.",
        metavar="MEMBER",
        rich_help_panel=_ENSEMBLE,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="How much each member counts: a number for each, such as 0.7,0.3.",
        metavar="W,W...",
        show_default="equal",
        rich_help_panel=_ENSEMBLE,
    ),
]
Fusion = Annotated[
    str,
    typer.Option(
        help="How distributions are joined: deepen, or deepen-paper for the published search.",
        metavar="NAME",
        rich_help_panel=_ENSEMBLE,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Torch device of all members, such as cpu or cuda:0.",
        metavar="DEVICE",
        show_default="chosen by the engine",
        rich_help_panel=_ENSEMBLE,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Torch dtype of all members, such as float32 or bfloat16.",
        metavar="DTYPE",
        show_default="auto",
        rich_help_panel=_ENSEMBLE,
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(help="Tokens to generate at most.", show_default="256", rich_help_panel=_SAMPLING),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="0 takes the most probable token; above 0 samples, higher is more varied.",
        show_default="0.0",
        rich_help_panel=_SAMPLING,
    ),
]
TopK = Annotated[int | None, typer.Option(help="Sample from the K most probable tokens.", rich_help_panel=_SAMPLING)]
TopP = Annotated[
    float | None,
    typer.Option(help="Sample from the smallest set of tokens with this probability.", rich_help_panel=_SAMPLING),
]
MinP = Annotated[
    float | None,
    typer.Option(help="Sample from tokens at least so probable, relative to the best one.", rich_help_panel=_SAMPLING),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        help="Above 1 makes tokens that were there before less likely.",
        show_default="1.0",
        rich_help_panel=_SAMPLING,
    ),
]
Seed = Annotated[int | None, typer.Option(help="Equal seeds give equal text.", rich_help_panel=_SAMPLING)]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        help=r"End before this text; may be given several times. \n and \t are newline and tab.",
        metavar="TEXT",
        rich_help_panel=_SAMPLING,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(help="End after so many seconds with what is there.", rich_help_panel=_SAMPLING),
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        help="With --json: report log-probabilities, and so many alternatives to each token.",
        rich_help_panel=_SAMPLING,
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
