"""What a conversation understands besides questions: lines that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deepen_integrations.cli.console import console, notice
from deepen_integrations.cli.conversation import Conversation
from deepen_integrations.cli.tables import print_info

QUIT = ("/quit", "/exit", "/bye")


@dataclass(frozen=True)
class SlashCommand:
    """A command of a conversation."""

    usage: str
    meaning: str
    run: Callable[[Conversation, str], None]
    """Called with what is typed after the name."""


def run_command(conversation: Conversation, line: str) -> None:
    """Runs the command that a line names.

    Raises:
        DeepenError: If it fails.
        KeyboardInterrupt: If the user interrupts an answer.
    """
    name, _, rest = line.partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        _tell(f"{name} is not a command. /help lists all.")
        return
    command.run(conversation, rest.strip())


def _tell(message: str) -> None:
    notice(message, style="dim")


def _help(_conversation: Conversation, _rest: str) -> None:
    known = {command.usage: command.meaning for command in COMMANDS.values()}
    known |= {"/quit": "end, as Ctrl-D does", '"""': "begin and end a question of several lines"}
    for usage, meaning in known.items():
        _tell(f"{usage}: {meaning}.")
    _tell("Ctrl-C interrupts an answer; its beginning is kept.")


def _set(conversation: Conversation, rest: str) -> None:
    name, _, value = rest.removeprefix("parameter ").strip().partition(" ")
    if not name:
        shown = (f"{option} {value!r}" for option, value in conversation.options.items())
        _tell(", ".join(shown) or "All options are at their defaults.")
        return
    known = conversation.set_option(name, value.strip())
    options = conversation.options
    _tell(f"{known} is {options[known]!r}." if known in options else f"{known} is at its default.")


def _system(conversation: Conversation, rest: str) -> None:
    conversation.system = rest or None
    _tell("The instruction holds from the next answer on." if rest else "There is no instruction any more.")


def _clear(conversation: Conversation, _rest: str) -> None:
    conversation.clear()
    _tell("The conversation starts over.")


def _regenerate(conversation: Conversation, _rest: str) -> None:
    if conversation.is_repeatable:
        _tell("Temperature 0, or a seed, gives the same answer again: /set temperature 0.7, and /set seed.")
    if not conversation.regenerate():
        _tell("There is no answer yet.")


def _stats(conversation: Conversation, _rest: str) -> None:
    conversation.stats = not conversation.stats
    _tell(f"The speed of answers is {'' if conversation.stats else 'not '}shown.")


def _info(conversation: Conversation, _rest: str) -> None:
    print_info(console(stderr=True), conversation.ensemble.info)


_CLEAR = SlashCommand("/clear", "start over, with the same instruction", _clear)
COMMANDS: dict[str, SlashCommand] = {
    "/help": SlashCommand("/help", "show this list", _help),
    "/set": SlashCommand(
        "/set NAME VALUE",
        "set an option of the next answers, such as /set temperature 0.7; without VALUE back to the default, without "
        "NAME show what is set",
        _set,
    ),
    "/system": SlashCommand("/system TEXT", "replace the instruction; without TEXT remove it", _system),
    "/clear": _CLEAR,
    "/reset": _CLEAR,
    "/regenerate": SlashCommand("/regenerate", "answer the last question again", _regenerate),
    "/stats": SlashCommand("/stats", "show, or no longer show, how fast answers are", _stats),
    "/info": SlashCommand("/info", "describe the ensemble", _info),
}
"""By name. `QUIT` is not among them: it ends the loop that runs them."""
