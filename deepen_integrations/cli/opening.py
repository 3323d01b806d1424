"""Opens the ensemble that the options of a command name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import typer

from deepen_core.config.named_ensembles import ensemble_options
from deepen_core.config.weights import POLICIES
from deepen_core.demo import MEMBERS as DEMO_MEMBERS
from deepen_core.errors import ConfigurationError
from deepen_core.fusion.weights import policy_and_shares
from deepen_integrations.cli.console import notice
from deepen_integrations.cli.status import Status

if TYPE_CHECKING:
    from deepen_core import Ensemble, MemberConfig
    from deepen_integrations.cli.options import EnsembleOptions

TOY = "No --member and no --ensemble: this is the toy demo, two tiny models of an invented world."


def or_demo(options: EnsembleOptions) -> EnsembleOptions:
    """Returns options that name an ensemble: the demo's, which is said, if they name none.

    Raises:
        typer.BadParameter: If they name two.
    """
    named = {"--member": options.member, "--ensemble": options.ensemble, "--demo": options.demo}
    given = [name for name, value in named.items() if value]
    if len(given) > 1:
        raise typer.BadParameter(f"{' and '.join(given)} each bring members: leave out {' or '.join(given)}.")
    if given:
        return options
    notice(TOY, style="dim")
    return replace(options, demo=True)


def member_count(options: EnsembleOptions) -> int:
    """Returns the number of members that options name.

    Raises:
        ConfigurationError: If there is no ensemble of that name.
    """
    return len(named_options(options).get("models", DEMO_MEMBERS))


def named_options(options: EnsembleOptions) -> dict[str, Any]:
    """Returns the arguments of `Ensemble.load` that options stand for; no `models` for the demo.

    Raises:
        typer.BadParameter: If an option cannot be read.
        ConfigurationError: If there is no ensemble of that name.
    """
    given = {name: value for name, value in asdict(options).items() if value is not None}
    del given["demo"]
    named = ensemble_options(given.pop("ensemble")) if "ensemble" in given else {}
    if "member" in given:
        named["models"] = given.pop("member")
    if "server" in given:
        named["models"] = _served(named.get("models", []), given.pop("server"))
    if "languages" in given:
        named["models"] = _translating(named.get("models", []), given.pop("languages"))
    if "prompt" in given:
        given["prompts"] = dict(map(_form, given.pop("prompt")))
    given |= {name: read(given[name]) for name, read in _READERS.items() if name in given}
    return {**named, **given}


def open_ensemble(options: EnsembleOptions, *, chat: bool = False, demo: Sequence[str] = DEMO_MEMBERS) -> Ensemble:
    """Loads the members, or the embedded demo ensemble if there are none.

    Args:
        options: The options that were given.
        chat: Whether every prompt will be a conversation.
        demo: The members of the embedded demo ensemble.

    Raises:
        typer.BadParameter: If options contradict each other.
        ChatTemplateError: With `chat`, if a member that takes part has no chat template.
        DeepenError: If the ensemble cannot be loaded.
    """
    given = named_options(or_demo(options))
    with Status("importing torch"):
        from deepen_core import Ensemble  # noqa: PLC0415 (slow)
        from deepen_core.errors import ChatTemplateError  # noqa: PLC0415
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the commands show `ensemble.info.warnings` themselves
        if "models" not in given:
            return Ensemble.demo(demo, progress=True, **given)
        try:
            return Ensemble.load(**given, chat=chat)
        except ChatTemplateError as error:
            raise ChatTemplateError(f"{error} `deepen generate` continues plain text.") from error


def _form(text: str) -> tuple[str, str]:
    name, equals, template = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(
            f"{text!r} is not MEMBER=TEMPLATE, such as 'specialist=Question: {{prompt}}'.", param_hint="--prompt"
        )
    return name, template.replace("\\n", "\n")


def _translating(members: Sequence[str | Mapping[str, Any]], languages: list[str]) -> list[MemberConfig]:
    """Returns the members with their languages, given as MEMBER=FROM:TO.

    Raises:
        typer.BadParameter: For a text of another form, or a name that no member has.
        ConfigurationError: If there are no members.
    """
    from deepen_core.members.loading import member_configs  # noqa: PLC0415 (slow)

    configs = {str(config.name): config for config in member_configs(members)}
    for text in languages:
        name, _, pair = text.partition("=")
        source, colon, target = pair.partition(":")
        if not colon or name not in configs:
            raise typer.BadParameter(
                f"{text!r} is not MEMBER=FROM:TO, such as nllb=eng_Latn:fra_Latn, for one of the members "
                f"{', '.join(configs)}.",
                param_hint="--languages",
            )
        named = {"source_language": source or None, "target_language": target or None}
        configs[name] = configs[name].model_copy(update=named)
    return list(configs.values())


def _served(members: Sequence[str | Mapping[str, Any]], servers: list[str]) -> list[MemberConfig]:
    """Returns the members with their servers, given as MEMBER=URL.

    Raises:
        typer.BadParameter: For a text of another form, or a name that no member has.
        ConfigurationError: If there are no members, or a server cannot be one.
    """
    from deepen_core.config import member_config  # noqa: PLC0415 (slow)
    from deepen_core.members.loading import member_configs  # noqa: PLC0415

    configs = {str(config.name): config for config in member_configs(members)}
    for text in servers:
        name, equals, url = text.partition("=")
        if not equals or name not in configs:
            raise typer.BadParameter(
                f"{text!r} is not MEMBER=URL, such as smollm2=http://localhost:8080, for one of the members "
                f"{', '.join(configs)}.",
                param_hint="--server",
            )
        given = configs[name].model_dump(exclude_unset=True)
        configs[name] = member_config({**given, "server": url})
    return list(configs.values())


def _main(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text


def _weights(text: str) -> list[float] | str:
    try:
        if text.partition(":")[0] in POLICIES:
            policy_and_shares(text)
            return text
        return [float(part) for part in text.split(",")]
    except ConfigurationError as error:
        raise typer.BadParameter(str(error), param_hint="--weights") from None
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of numbers such as 0.7,0.3, nor one of {', '.join(POLICIES)}.",
            param_hint="--weights",
        ) from None


_READERS: dict[str, Callable[[str], Any]] = {"main": _main, "weights": _weights}
"""Options that the command line takes as text and the engine does not."""
