"""The models of an ensemble."""

from deepen_core.members.base import KEPT_TAIL, WORTH_SHARING, Member, MemberRow, RowCache, Work

__all__ = ["KEPT_TAIL", "WORTH_SHARING", "Member", "MemberRow", "RowCache", "Work"]
