"""Rows of the relative spaces that outlive the process: loaded where stored, and saved when new ones were built."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from deepen_core.fusion.anchors.shared_tokens import Anchors
from deepen_core.fusion.deepen.relative_space import RelativeSpace
from deepen_core.fusion.deepen.store import Fingerprint, RowStore, fingerprint
from deepen_core.members.base import Embedded
from deepen_core.progress import Steps
from deepen_core.tokenization.vocabulary import Vocabulary

_WORTH_KEEPING = 4096  # with fewer anchors, building a row is faster than finding its file
_SAVE_EVERY_S = 60.0  # a long build that is killed loses no more work than this


class RowKeeper:
    """Stores the rows of an ensemble's members in a `RowStore`.

    Small vocabularies are left out. What is on disk is never trusted: see `deepen_core.fusion.deepen.store`.

    Args:
        folder: The store's folder; the default one (`DEEPEN_CACHE_DIR`) if None.
        spaces: The members' relative spaces.
    """

    def __init__(self, folder: Path | None, spaces: Sequence[RelativeSpace]) -> None:
        self._store = RowStore(folder)
        self._spaces = list(spaces)
        self._kept: list[tuple[RelativeSpace, Fingerprint]] = []
        self._saved: dict[str, int] = {}

    def load(self, members: Sequence[Embedded], anchors: Anchors, steps: Steps) -> None:
        """Loads the rows that other processes have stored. Without this call, none are saved either.

        Args:
            members: The members.
            anchors: The shared tokens.
            steps: Reports progress, one step per member.
        """
        for member, space in zip(members, self._spaces, strict=True):
            with steps.doing(f"{member.name}: looking up kept rows"):
                if len(anchors) >= _WORTH_KEEPING:
                    key = _fingerprint(member, anchors, space)
                    self._kept.append((space, key))
                    self._adopt(space, key)

    def stretches(self, progress: bool = False) -> Iterator[Callable[[], None]]:
        """Yields everything needed to build and save all rows, in pieces of at most a second.

        Args:
            progress: Show a progress bar.
        """
        saved = time.monotonic()
        missing = [(space, ids) for space in self._spaces for ids in space.missing()]
        total = sum(len(ids) for _, ids in missing)
        with tqdm(total=total, desc="Building rows", unit="row", disable=not progress, leave=False) as bar:
            for space, ids in missing:
                yield partial(space.build, ids)
                bar.update(len(ids))
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    yield self.save
                    saved = time.monotonic()
        yield self.save

    def save(self) -> None:
        """Saves the rows if there are new ones, merged with those that other processes have saved meanwhile."""
        for space, key in self._kept:
            if space.rows_built > self._saved.get(key.key, 0):
                self._adopt(space, key)
                if self._store.save(key, space.export()):
                    self._saved[key.key] = space.rows_built

    def _adopt(self, space: RelativeSpace, key: Fingerprint) -> None:
        tensors = self._store.load(key)
        if tensors is not None:
            space.adopt(tensors)
            self._saved[key.key] = len(tensors["spread"]) - 1


def _fingerprint(member: Embedded, anchors: Anchors, space: RelativeSpace) -> Fingerprint:
    return fingerprint(
        model=member.name,
        embeddings=member.embeddings.detach(),
        vocabulary_digest=_digest(member.tokenizer.vocabulary),
        anchors=anchors.tokens,
        temperature=space.temperature,
        entries=space.entries,
        dtype="float32",
        fixed=space.fixed,
    )


def _digest(vocabulary: Vocabulary) -> str:
    """Returns a hash of the bytes of every token id."""
    whole = hashlib.sha256()
    for token_id in range(vocabulary.size):
        value = vocabulary.token_bytes(token_id)
        whole.update(b"-" if value is None else len(value).to_bytes(4, "little") + value)
    return whole.hexdigest()
