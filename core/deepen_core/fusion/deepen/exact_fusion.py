"""DeePEn with whole matrices: every token is searched and nothing approximated. For small models and for checks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

import torch

from deepen_core.errors import ConfigurationError
from deepen_core.fusion.anchors.columns import Columns
from deepen_core.fusion.anchors.token_healing import Healing
from deepen_core.fusion.deepen.averaging import AveragingFusion, normalised
from deepen_core.fusion.deepen.search import SEARCHES, DenseRows

_MATRIX_COPIES = 2  # while a matrix is assembled from its parts


class ExactFusion(AveragingFusion):
    """`FusionConfig(exact=True)`: keeps a matrix [vocabulary, columns] per member. See `AveragingFusion` for arguments.

    Raises:
        ConfigurationError: If the matrices do not fit into the memory of their device.
    """

    def _prepare(self) -> None:
        spaces = self._spaces
        check_room([len(s.fixed) for s in spaces], [s.device for s in spaces], spaces[self._main].anchors)
        self._without_spaces = [DenseRows(s.dense()) for s in spaces]

    def _combine(
        self, logprobs: Sequence[torch.Tensor | None], shares: torch.Tensor, healing: Sequence[Healing | None]
    ) -> torch.Tensor:
        main, config, rows = self._of_main(logprobs), self._config, self._without_spaces[self._main]
        projected = [None if p is None else self._without_spaces[i].project(p.exp()) for i, p in enumerate(logprobs)]
        target = self._target(projected, shares, healing)
        found, _ = SEARCHES[config.search](main, main.exp(), rows, target, config)
        return normalised(found, main)


def check_room(vocabularies: Sequence[int], devices: Sequence[torch.device], anchors: int) -> None:
    """Rejects whole matrices that cannot fit, before anything is allocated.

    Args:
        vocabularies: Size of each member's vocabulary.
        devices: The device of each member's matrix.
        anchors: Number of shared tokens.

    Raises:
        ConfigurationError: If they do not fit, with the sizes and the way out.
    """
    needed: Counter[torch.device] = Counter()
    width = Columns(anchors).width
    for size, device in zip(vocabularies, devices, strict=True):
        needed[device] += 4 * size * width
    largest = 4 * max(vocabularies) * width
    for device, wanted in needed.items():
        there = _memory(device)
        peak = wanted + (_MATRIX_COPIES - 1) * largest
        if there is not None and peak > there:
            sizes = " and ".join(f"{size:,} x {anchors:,}" for size in vocabularies)
            gib = [f"{count / 2**30:.1f} GiB" for count in (wanted, peak, there)]
            raise ConfigurationError(
                f"exact=True keeps whole matrices of {sizes} numbers: {gib[0]} on {device}, {gib[1]} while they are "
                f"built, but only {gib[2]} are available. Leave exact out; the default needs a thousandth of that."
            )


def _memory(device: torch.device) -> int | None:
    """Returns the bytes of memory of a device, or None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
