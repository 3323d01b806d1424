"""The models of an ensemble."""

from deepen_core.members.base import Member, MemberRow, RowCache, Work

__all__ = ["Member", "MemberRow", "RowCache", "Work"]
