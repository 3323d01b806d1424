"""How one member's tokens spell another's: where main's tokens stand among those of a member, by their bytes."""

from __future__ import annotations

from bisect import bisect_right

import torch

from deepen_core.fusion.bytes.byte_order import ByteOrder

_NONE = -1


class Spelling:
    """Main's tokens among those of a member. Made once; all of it is indices into the two byte orders.

    Args:
        member: The member's tokens.
        main: Main's tokens.
        device: Where the member's mass is summed.

    Attributes:
        low: For each of main's tokens, the first of the member's that begin with its bytes, int64 [main's tokens].
        high: The first after them.
        levels: Main's tokens that the member may say in pieces, since it has no such token and has tokens that are its
            beginning. Each level is three int64 tensors: places of such tokens, of the longest other token of main's
            that they begin with (-1 for none), and of the longest of the member's. It follows the levels before it.
    """

    def __init__(self, member: ByteOrder, main: ByteOrder, device: torch.device) -> None:
        spans = [member.beginning_with(value) for value in main.values]
        self.low = torch.tensor([low for low, _ in spans], device=device)
        self.high = torch.tensor([high for _, high in spans], device=device)
        known, own = set(member.values), set(main.values)
        level_of: dict[int, int] = {}
        levels: list[list[tuple[int, int, int]]] = []
        for place, value in enumerate(main.values):
            if value in known:
                continue
            begun = _beginning(value, known)
            if begun is None:
                continue
            parent = _place(main, _beginning(value, own))
            level = level_of.get(parent, _NONE) + 1
            level_of[place] = level
            if level == len(levels):
                levels.append([])
            levels[level].append((place, parent, _place(member, begun)))
        self.levels = [torch.tensor(level, device=device).T.contiguous() for level in levels]

    @property
    def bytes_held(self) -> int:
        """Memory that it takes."""
        return sum(t.numel() * t.element_size() for t in (self.low, self.high, *self.levels))


def _beginning(value: bytes, tokens: set[bytes]) -> bytes | None:
    """Returns the longest token that is a beginning of some bytes and not all of them."""
    return next((value[:n] for n in range(len(value) - 1, 0, -1) if value[:n] in tokens), None)


def _place(order: ByteOrder, value: bytes | None) -> int:
    """Returns the last place of a token; -1 for none."""
    return _NONE if value is None else bisect_right(order.values, value) - 1
