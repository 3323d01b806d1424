"""`deepen cache`: list, locate and clear the store of relative rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepen_integrations.cli import options as opt
from deepen_integrations.cli.session import clear_errors, notice
from deepen_integrations.cli.tables import size

if TYPE_CHECKING:
    from deepen_core.fusion.deepen.store import RowStore, StoreEntry

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@commands.callback()
def cache() -> None:
    """List, locate and clear what is kept on disk between runs.

    The rows of a model's relative space take long to build, so they are kept. Rows that were cleared are rebuilt when
    needed. The environment variable `DEEPEN_CACHE_DIR` sets the folder.
    """


@commands.command("list", epilog="Examples:\n\n`deepen cache list`")
def list_(debug: opt.Debug = False) -> None:
    """List the kept files with their sizes, oldest first."""
    with _open_store(debug) as store:
        _print_entries(Console(highlight=False), store)


@commands.command(epilog="Examples:\n\n`deepen cache where`")
def where(debug: opt.Debug = False) -> None:
    """Print the folder."""
    with _open_store(debug) as store:
        typer.echo(store.folder)


@commands.command(epilog="Examples:\n\n`deepen cache clear`\n\n`deepen cache clear --older-than 30 --yes`")
def clear(
    older_than: Annotated[
        float | None, typer.Option(help="Clear only files older than this many days.", min=0, metavar="DAYS")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    debug: opt.Debug = False,
) -> None:
    """Remove the kept files, and unfinished files of killed processes."""
    with _open_store(debug) as store:
        chosen = [entry for entry in store.entries() if older_than is None or entry.age_days > older_than]
        if chosen and not yes:
            typer.confirm(f"Remove {_amount(chosen)} from {store.folder}?", abort=True, err=True)
        typer.echo(f"{size(store.clear(older_than))} freed.")


@contextmanager
def _open_store(debug: bool) -> Iterator[RowStore]:
    """Opens the store; shows its warnings as notices and its errors as one line."""
    from deepen_core.fusion.deepen.store import RowStore, StoreWarning  # noqa: PLC0415 (slow)

    with clear_errors(debug), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StoreWarning)
        yield RowStore()
    for warning in caught:
        notice(f"Warning: {warning.message}")


def _amount(entries: Sequence[StoreEntry]) -> str:
    return f"{len(entries)} {'file' if len(entries) == 1 else 'files'} ({size(sum(e.bytes for e in entries))})"


def _print_entries(console: Console, store: RowStore) -> None:
    """Prints a line for each file, then the total and the folder."""
    entries = store.entries()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("Model", overflow="fold", min_width=18)
    for heading in ("Rows", "Entries", "Anchors", "Temperature", "Size"):
        table.add_column(heading, justify="right")
    table.add_column("Created")
    for entry in entries:
        facts = [entry.facts.get(name, "?") for name in ("entries", "anchors", "temperature")]
        created = entry.created.astimezone().strftime("%Y-%m-%d")
        model = Text(entry.model or "unreadable", style="" if entry.model else "red")
        table.add_row(model, f"{entry.rows:,}", *map(Text, facts), size(entry.bytes), created)
    if entries:
        console.print(table)
    console.print(Text(f"{_amount(entries)} in {store.folder}"), soft_wrap=True)
