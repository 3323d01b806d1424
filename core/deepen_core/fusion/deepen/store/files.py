"""The folder of row files: loading, atomic saving, listing, clearing.

No file is trusted: one that is damaged, truncated or foreign is removed, with a `StoreWarning` once per file and
process. Trouble with the disk costs time, but never an answer.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch

from deepen_core.errors import DeepenError
from deepen_core.fusion.deepen.store.fingerprints import Fingerprint
from deepen_core.fusion.deepen.store.format import UnusableError, read_metadata, sealed, shape_problem, unsealed

_LARGEST_HEADER = 2**20
_ABANDONED_S = 3600.0  # a file that is still being written changes all the time
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.rows-[0-9a-f]{64}\.safetensors\.([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}\.tmp")

_said: set[tuple[str, str]] = set()
_saying = threading.Lock()


class StoreWarning(UserWarning):
    """Rows could not be read from the store, kept in it or removed from it."""


@dataclass(frozen=True)
class StoreEntry:
    """A file of the store according to its header; only loading checks the rest."""

    name: str
    model: str | None
    """None if the header cannot be read: loading would remove the file."""
    bytes: int
    created: datetime
    rows: int
    facts: dict[str, str]
    """`Fingerprint.facts` and the version of the format; empty if the header cannot be read."""

    @property
    def age_days(self) -> float:
        """Days since the file was written."""
        return (datetime.now(timezone.utc) - self.created).total_seconds() / 86400


def default_folder() -> Path:
    """Returns `$DEEPEN_CACHE_DIR`, else `deepen` in `$XDG_CACHE_HOME`, else `~/.cache/deepen`."""
    if own := os.environ.get("DEEPEN_CACHE_DIR"):
        return Path(own).expanduser().absolute()
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # as the XDG specification requires
        try:
            caches = Path.home() / ".cache"
        except RuntimeError:  # a user without a home
            caches = Path(tempfile.gettempdir())
    return caches / "deepen"


class RowStore:
    """Fingerprinted rows on disk; several processes may read, write and clear one folder at a time.

    Args:
        folder: The store's folder, created when first written to. None for `default_folder()`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = default_folder() if folder is None else Path(folder)

    def load(self, fingerprint: Fingerprint) -> dict[str, torch.Tensor] | None:
        """Returns the tensors that were saved under a fingerprint, on the CPU, bit for bit.

        Returns:
            None if there are none. An invalid file is removed, with a `StoreWarning`; so are files that a killed
            process left incomplete.
        """
        path = self.folder / fingerprint.file_name
        if half := self._sweep(fingerprint.file_name):
            _say_once(
                "sweep",
                path,
                f"{half / 2**20:.1f} MiB of rows of {fingerprint.model} were left incomplete in {self.folder} by a "
                "process that was killed. They are removed, and missing rows are built again.",
            )
        try:
            with path.open("rb") as file:
                data, identity = file.read(), os.fstat(file.fileno())
            return unsealed(data, fingerprint)
        except FileNotFoundError:
            return None
        except OSError as problem:
            _say_once("read", path, f"{path} cannot be read ({problem}): the rows of {fingerprint.model} are built.")
        except UnusableError as problem:
            with suppress(OSError):
                if os.path.samestat(path.stat(), identity):  # else another process has replaced it by now
                    path.unlink()
            _say_once("read", path, f"{path} {problem}: it is not used, and the rows of {fingerprint.model} are built.")
        return None

    def save(self, fingerprint: Fingerprint, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Saves tensors under a fingerprint; a reader sees all of them or none.

        Args:
            fingerprint: Of what they were computed from.
            tensors: Those of `LAYOUT`, on any device, and any others.

        Returns:
            Whether they were saved. If writing fails, a `StoreWarning` gives the reason.

        Raises:
            DeepenError: If the shapes are not those of `LAYOUT`.
        """
        if wrong := shape_problem(fingerprint, tensors):
            raise DeepenError(f"Rows of {fingerprint.model} cannot be saved: {wrong}.")
        path = self.folder / fingerprint.file_name
        temporary = self.folder / f".{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
        pieces = sealed(fingerprint, tensors)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            with temporary.open("xb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as problem:
            size = sum(len(piece) for piece in pieces) / 2**20
            _say_once(
                "write",
                path,
                f"The rows of {fingerprint.model} ({size:.1f} MiB) cannot be saved in {self.folder} ({problem}), so "
                "the next process builds them again. Make room there, or set DEEPEN_CACHE_DIR to another folder.",
            )
            return False
        finally:
            with suppress(OSError):
                temporary.unlink()
        return True

    def entries(self) -> list[StoreEntry]:
        """Returns what is in the store, oldest first."""
        found = []
        for path in self.folder.glob("rows-*.safetensors"):
            with suppress(OSError):  # another process may clear the store meanwhile
                found.append(_entry(path))
        return sorted(found, key=lambda entry: (entry.created, entry.name))

    def clear(self, older_than_days: float | None = None) -> int:
        """Removes rows, and files that killed processes left incomplete.

        Args:
            older_than_days: Keep younger rows; None removes all.

        Returns:
            The number of bytes freed. A `StoreWarning` reports files that cannot be removed.
        """
        freed = self._sweep()
        for entry in self.entries():
            if older_than_days is None or entry.age_days > older_than_days:
                path = self.folder / entry.name
                try:
                    path.unlink()
                    freed += entry.bytes
                except FileNotFoundError:
                    continue
                except OSError as problem:
                    _say_once("remove", path, f"{path} cannot be removed ({problem}).")
        return freed

    def _sweep(self, name: str = "rows-*") -> int:
        """Removes temporary files that are no longer being written; returns their bytes.

        Args:
            name: Name of the files that they were to become.
        """
        freed = 0
        for path in self.folder.glob(f".{name}.*.tmp"):
            with suppress(OSError):
                size = path.stat().st_size
                if _abandoned(path):
                    path.unlink()
                    freed += size
        return freed


def _entry(path: Path) -> StoreEntry:
    status = path.stat()
    metadata: dict[str, Any] = {}
    with suppress(UnusableError), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        metadata = read_metadata(file.read(min(length, _LARGEST_HEADER)))
    created = datetime.fromtimestamp(status.st_mtime, timezone.utc)
    match metadata:
        case {"model": str(model), "rows": str(rows)} if re.fullmatch("[0-9]{1,18}", rows):
            facts = {name: str(fact) for name, fact in metadata.items() if name not in ("checksum", "rows")}
            return StoreEntry(path.name, model, status.st_size, created, int(rows), facts)
    return StoreEntry(path.name, None, status.st_size, created, 0, {})


def _abandoned(temporary: Path) -> bool:
    """Whether a temporary file's writer is gone: its process has ended, or nothing was written for an hour."""
    match = _TEMPORARY.fullmatch(temporary.name)
    if match is None:
        return False
    if time.time() - temporary.stat().st_mtime > _ABANDONED_S:
        return True
    host, process = match.groups()
    return os.name == "posix" and host == _HOST and not _is_running(int(process))


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _say_once(action: Literal["sweep", "read", "write", "remove"], path: Path, message: str) -> None:
    """Warns the caller of a public method, once per action, file and process."""
    with _saying:
        if (action, str(path)) in _said:
            return
        _said.add((action, str(path)))
    warnings.warn(message, StoreWarning, stacklevel=3)
