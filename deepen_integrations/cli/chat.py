"""A conversation in the terminal."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from deepen_core.errors import DeepenError
from deepen_integrations.cli.session import notice
from deepen_integrations.cli.tables import print_info

if TYPE_CHECKING:
    from deepen_core import Ensemble

HELP = "/reset starts over, /info describes the ensemble, /quit or Ctrl-D ends, Ctrl-C interrupts an answer."


class Chat:
    """Reads lines, streams answers and keeps the conversation.

    Args:
        ensemble: The ensemble that answers.
        sampling: Options of every answer.
        system: An instruction that precedes the conversation.
    """

    def __init__(self, ensemble: Ensemble, sampling: dict[str, Any], system: str | None = None) -> None:
        self._ensemble = ensemble
        self._sampling = sampling
        self._opening = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._opening)

    def run(self) -> None:
        """Runs until the user ends the conversation."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, PLC0415 (adds line editing and a history to the prompt)
        names = " and ".join(member.name for member in self._ensemble.info.members)
        notice(f"You are talking to {names}. {HELP}", style="dim")
        for warning in self._ensemble.info.warnings:
            notice(f"Warning: {warning}")
        while (line := self._read()) is not None:
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._answer(line)

    def _read(self) -> str | None:
        """Reads a line; None at the end of the input."""
        while True:
            try:
                return input("> ").strip()
            except EOFError:
                typer.echo()
                return None
            except KeyboardInterrupt:
                typer.echo()
                notice("/quit or Ctrl-D ends the conversation.", style="dim")

    def _command(self, line: str) -> None:
        if line == "/reset":
            self._messages = list(self._opening)
            notice("The conversation starts over.", style="dim")
        elif line == "/info":
            print_info(Console(highlight=False), self._ensemble.info)
        else:
            notice(f"{line} is not a command. {HELP}" if line != "/help" else HELP, style="dim")

    def _answer(self, question: str) -> None:
        """Streams the answer. The conversation keeps the text of an interrupted answer, and nothing of a failed one."""
        asked = [*self._messages, {"role": "user", "content": question}]
        said = ""
        notes: list[str] = []
        try:
            for chunk in self._ensemble.stream(asked, **self._sampling):
                typer.echo(chunk.text if said else chunk.text.lstrip(), nl=False)
                said += chunk.text
                if chunk.generation is not None:
                    notes = chunk.generation.warnings
            typer.echo()
            for note in notes:
                notice(f"Note: {note}")
        except KeyboardInterrupt:
            notice("[interrupted]", style="dim")
            if not said:
                return
        except DeepenError as error:
            typer.echo()
            notice(f"Error: {error}", style="bold red")
            return
        self._messages = [*asked, {"role": "assistant", "content": said.strip()}]
