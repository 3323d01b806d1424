"""The loop of a conversation in the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import typer

from deepen_core.errors import DeepenError
from deepen_integrations.cli.console import notice
from deepen_integrations.cli.conversation import Conversation
from deepen_integrations.cli.slash_commands import QUIT, run_command
from deepen_integrations.cli.terminal_input import read_message


class Chat:
    """Reads questions and commands until the user ends the conversation.

    Args:
        conversation: Answers them.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def run(self) -> None:
        """Runs until the user ends the conversation, or the input ends."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, PLC0415 (adds line editing and a history to the prompt)
        names = " and ".join(member.name for member in self._conversation.ensemble.info.members)
        notice(f"You are talking to {names}. /help lists commands, /quit or Ctrl-D ends.", style="dim")
        while True:
            try:
                line = read_message()
            except KeyboardInterrupt:
                typer.echo(err=True)
                notice("/quit or Ctrl-D ends the conversation.", style="dim")
                continue
            if line is None or line in QUIT:
                return
            if line.startswith("/"):
                self._try(run_command, line)
            elif line:
                self._try(lambda conversation, question: conversation.ask(question), line)

    def _try(self, work: Callable[[Conversation, str], None], line: str) -> None:
        """Does something with a line; an error or Ctrl-C ends that, and not the conversation."""
        try:
            work(self._conversation, line)
        except KeyboardInterrupt:
            notice("[interrupted]", style="dim")
        except DeepenError as error:
            notice(f"Error: {error}", style="bold red")
