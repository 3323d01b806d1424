"""Measured reasons why members may not fuse well, and the limits of strategies over shared tokens."""

from __future__ import annotations

from collections.abc import Sequence

from deepen_core.members.base import Member

LENGTH_RATIO = 1.6
"""Above this ratio of the mean lengths of their tokens, members predict different things at one step."""


def length_warnings(members: Sequence[Member]) -> list[str]:
    """Returns a warning if tokens differ so much in length that members predict different things at one step.

    Args:
        members: The members with a weight.
    """
    if len(members) < 2:
        return []
    lengths = {m.name: m.tokenizer.bytes_per_token for m in members}
    short, long = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
    ratio = lengths[long] / lengths[short]
    if ratio <= LENGTH_RATIO:
        return []
    warning = (
        f"Tokens differ much in length ({long!r}: {lengths[long]:.1f} bytes, {short!r}: {lengths[short]:.1f}, a ratio "
        f"of {ratio:.1f}; above {LENGTH_RATIO} this warning appears), so the members predict different things at one "
        "step, and fusing them may be worse than the better one alone."
    )
    return [warning]


def shared_token_limits(members: Sequence[Member], main: Member, anchors: Sequence[bytes]) -> list[str]:
    """Returns, in numbers, what fusing over shared tokens cannot do with these members.

    Args:
        members: The members that take part.
        main: The main member.
        anchors: The tokens that all members share.
    """
    if len(members) < 2:
        return []
    shared = set(anchors)
    found = []
    for member in members:
        share = unshared_share(member, shared)
        found.append(
            f"{share:.0%} of the tokens of {member.name!r} on a sample of prose and code are not shared by all "
            "members: of such a token, only the beginning counts in the ensemble, up to the longest shared token."
        )
    return [*found, main_limit(members, main)]


def main_limit(members: Sequence[Member], main: Member) -> str:
    """Returns what main alone decides."""
    others = " and ".join(repr(m.name) for m in members if m is not main)
    return (
        f"The ensemble always generates tokens of {main.name!r}. Its control tokens, other than those that end a text, "
        f"are decided by it alone: {others} cannot raise or lower their probability."
    )


AVERAGE_LIMIT = (
    "The average favours what several members find probable at once. What only one member knows prevails only where it "
    "is more confident than the others together, by weight; where they are confident of something else, it is outvoted."
)
"""What no weighted average can do."""


def unshared_share(member: Member, shared: set[bytes]) -> float:
    """Returns the share of a member's tokens on a sample text that not all members have."""
    ids = member.tokenizer.sample_ids
    return sum(member.tokenizer.vocabulary.token_bytes(i) not in shared for i in ids) / max(1, len(ids))
