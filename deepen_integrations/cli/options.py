"""The options that several commands share. An option is declared here once, for all of them.

A command takes a whole group as one parameter, `EnsembleOptions` or `SamplingOptions`; `spread` gives the command line
an option for each field of the group.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from deepen_core.config import PRESETS
from deepen_core.config.weights import POLICIES

_ensemble = functools.partial(typer.Option, rich_help_panel="Ensemble")
_voting = functools.partial(typer.Option, rich_help_panel="Voting")
_sampling = functools.partial(typer.Option, rich_help_panel="Choosing tokens")
_harness = functools.partial(typer.Option, rich_help_panel="lm-evaluation-harness (extra `eval`)")

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_FUSED = f"How distributions are fused: {', '.join(PRESETS)}."
Fusion = Annotated[str, _ensemble(metavar="NAME", help=_FUSED)]
Stats = Annotated[bool, typer.Option("--stats", help="Say after an answer how fast it was.")]

By = Annotated[str, typer.Option("--by", metavar="score|likelihood", help="What fitted weights are best at.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many items of each file.")]


@dataclass(frozen=True)
class VoteOptions:
    """How a command chooses one of several answers: options of `Ensemble.vote`."""

    votes: Annotated[
        int | None,
        _voting(min=1, metavar="N", help="Sample N answers, by default at temperature 0.7, and choose one."),
    ] = None
    vote_by: Annotated[
        str,
        _voting(
            metavar="majority|mbr|likelihood",
            help="Choose the answer that most come to, the one that has most in common with the others (chrF), or the "
            "likeliest a byte.",
        ),
    ] = "majority"
    vote_among: Annotated[
        str,
        _voting(
            metavar="ensemble|members|all", help="What answers: the ensemble, each member alone, or all; N times each."
        ),
    ] = "ensemble"
    extract: Annotated[
        str,
        _voting(
            metavar="WHAT",
            help="What an answer comes to: short (but for case and punctuation), number (the last one), answer (after "
            "'the answer is'), or a regular expression with a group.",
        ),
    ] = "short"


@dataclass(frozen=True)
class EnsembleOptions:
    """Which ensemble a command loads. Fields other than the first three are options of `Ensemble.load`."""

    member: Annotated[
        list[str] | None,
        _ensemble(
            "--member",
            "-m",
            metavar="MODEL",
            help="A member: a folder in transformers format, or a hub id. Repeat the option for each model.",
            show_default="the toy demo",
        ),
    ] = None
    ensemble: Annotated[
        str | None,
        _ensemble(
            "--ensemble",
            "-e",
            metavar="NAME",
            help="An ensemble in ~/.config/deepen/ensembles.yaml, or the path of a YAML file with one. Other options "
            "replace what it says.",
        ),
    ] = None
    demo: Annotated[bool, _ensemble("--demo", help="Use the toy demo, and do not say so.")] = False
    main: Annotated[
        str | None,
        _ensemble(
            metavar="MEMBER",
            help="The model whose tokens are generated: index or name of a member.",
            show_default="0, or that of the named ensemble",
        ),
    ] = None
    weights: Annotated[
        str | None,
        _ensemble(
            metavar="W,W...|POLICY[:W,W...]",
            help="Each member's share in the fusion: one number per member, such as 0.7,0.3; or a policy, which shares "
            f"may follow, as in perplexity:0.7,0.3: {', '.join(POLICIES)}.",
            show_default="context where the strategy compares tokens (adaptive with a llama.cpp server), else static",
        ),
    ] = None
    fusion: Annotated[
        str | None, _ensemble(metavar="NAME", help=_FUSED, show_default="deepen, or that of the named ensemble")
    ] = None
    gate: Annotated[
        float | None,
        _ensemble(
            metavar="P",
            help="Ask the other members only where the main model gives its best token less than this probability.",
            show_default="always ask",
        ),
    ] = None
    prompt: Annotated[
        list[str] | None,
        _ensemble(
            "--prompt",
            metavar="MEMBER=TEMPLATE",
            help="What a member is shown in place of a prompt: a text with {prompt} in it, or chat for a message by "
            "its chat template. Repeat the option for each member.",
        ),
    ] = None
    languages: Annotated[
        list[str] | None,
        _ensemble(
            "--languages",
            metavar="MEMBER=FROM:TO",
            help="The languages of a translation model that is told them by tokens, such as nllb=eng_Latn:fra_Latn; "
            "one of the two may be left out. Repeat the option for each member.",
        ),
    ] = None
    server: Annotated[
        list[str] | None,
        _ensemble(
            "--server",
            metavar="MEMBER=URL",
            help="The llama.cpp or vLLM server that computes a member, whose folder is read for its tokenizer alone, "
            "such as smollm2=http://localhost:8080. Its key, if it needs one, is the environment variable "
            "DEEPEN_SERVER_KEY. Repeat the option for each member.",
        ),
    ] = None
    device: Annotated[
        str | None,
        _ensemble(
            metavar="DEVICE",
            help="Torch device of all members, such as cpu or cuda:0.",
            show_default="chosen by the engine",
        ),
    ] = None
    dtype: Annotated[
        str | None,
        _ensemble(
            metavar="DTYPE", help="Torch dtype of all members, such as float32 or bfloat16.", show_default="auto"
        ),
    ] = None
    max_context_window: Annotated[
        int | None,
        _ensemble(
            metavar="TOKENS",
            help="Cap the context window of every member, in its own tokens.",
            show_default="what each declares",
        ),
    ] = None


@dataclass(frozen=True)
class SamplingOptions:
    """How a command generates: options of `SamplingParams`. None leaves the default to the engine."""

    max_new_tokens: Annotated[
        int | None,
        _sampling(
            "--max-tokens",
            "--max-new-tokens",
            help="Maximum number of tokens to generate.",
            show_default="256; 4096 if it may think",
        ),
    ] = None
    temperature: Annotated[
        float | None,
        _sampling(help="0 takes the most probable token; above 0 samples, higher is more varied.", show_default="0.0"),
    ] = None
    top_k: Annotated[int | None, _sampling(help="Sample from the K most probable tokens.")] = None
    top_p: Annotated[float | None, _sampling(help="Sample from the smallest set of tokens with this probability.")] = (
        None
    )
    min_p: Annotated[
        float | None, _sampling(help="Sample from tokens at least this probable, relative to the best one.")
    ] = None
    repetition_penalty: Annotated[
        float | None,
        _sampling(help="Above 1, tokens that occurred before become less likely.", show_default="1.0"),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        _sampling(help="Above 0, tokens become less likely with each time they occurred.", show_default="0.0"),
    ] = None
    presence_penalty: Annotated[
        float | None,
        _sampling(help="Above 0, tokens that occurred in the answer become less likely.", show_default="0.0"),
    ] = None
    penalty_window: Annotated[
        int | None, _sampling(help="Apply penalties to this many of the last tokens.", show_default="all")
    ] = None
    seed: Annotated[int | None, _sampling(help="The same seed gives the same text.")] = None
    stop: Annotated[
        list[str] | None,
        _sampling(
            metavar="TEXT", help=r"End before this text; may be given several times. \n and \t are newline and tab."
        ),
    ] = None
    control_tokens: Annotated[
        bool | None,
        _sampling(help="Read control tokens in the text, such as <|im_start|>, as such.", show_default="False"),
    ] = None
    reasoning: Annotated[
        str | None,
        _sampling(
            metavar="on|off|EFFORT",
            help="Whether the main model thinks first, or how hard, such as low.",
            show_default="the template's",
        ),
    ] = None
    enable_thinking: Annotated[
        bool | None,
        _sampling(help="Whether chat templates let the models think first.", show_default="the template's"),
    ] = None
    template_option: Annotated[
        list[str] | None,
        _sampling(metavar="NAME=VALUE", help="Set a variable of chat templates; VALUE is JSON or text."),
    ] = None
    timeout: Annotated[float | None, _sampling(help="Return the partial answer after this many seconds.")] = None
    logprobs: Annotated[
        int | None, _sampling(help="Show each token's log-probability, and this many alternatives, after the text.")
    ] = None
    trace: Annotated[
        bool | None,
        typer.Option("--trace", help="Colour each token by the member that decided it, and say after the text who."),
    ] = None


@dataclass(frozen=True)
class HarnessOptions:
    """Which tasks of lm-evaluation-harness a command runs."""

    harness: Annotated[
        str | None,
        _harness(
            metavar="TASK[,TASK]",
            help="Run these tasks in place of files: names of tasks or groups, or paths of YAML files. Goes with "
            "`--weights`, `--fusion`, `--main`, `--chat`, `--limit` and `--output`.",
        ),
    ] = None
    harness_tasks: Annotated[
        str | None, _harness(metavar="DIR", help="A folder of more tasks, as YAML. Looked at first.")
    ] = None
    few_shot: Annotated[
        int | None,
        _harness(min=0, metavar="N", help="Show N examples before each question.", show_default="what the task says"),
    ] = None


def spread(*, without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator for commands whose parameters include groups of options, which are dataclasses.

    Args:
        without: Fields of the groups that the command does not offer; they keep their defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        groups: dict[str, Any] = {}
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if is_dataclass(parameter.annotation):
                groups[parameter.name] = parameter.annotation
                parameters += (p for p in _field_parameters(parameter.annotation) if p.name not in without)
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

        @functools.wraps(command)
        def run(**given: Any) -> None:
            collected = {}
            for name, group in groups.items():
                offered = [f.name for f in fields(group) if f.name not in without]
                collected[name] = group(**{field: given.pop(field) for field in offered})
            command(**given, **collected)

        # Typer reads a command's options from these.
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def _field_parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(f.name, kind, default=f.default, annotation=hints[f.name]) for f in fields(group)]
