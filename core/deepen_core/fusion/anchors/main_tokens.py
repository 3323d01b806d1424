"""Main's tokens: which of them it says first for some bytes, by themselves and before a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deepen_core.fusion.anchors.segmentation import WORD, Segmentation


class MainTokens:
    """Main's tokens, asked which of them some bytes begin with.

    Args:
        cuts: How main cuts a text.
        size: Number of main's logits.
    """

    def __init__(self, cuts: Segmentation, size: int) -> None:
        self.vocabulary = cuts.vocabulary
        self.size = size
        self._cuts = cuts

    def first_of(self, values: Sequence[bytes]) -> list[int]:
        """Returns the token that each of some values is, or else begins with.

        Args:
            values: Each at least one byte.

        Returns:
            Their ids; -1 if main has no such token.
        """
        tokens = self.vocabulary.tokens
        others = [value for value in values if value not in tokens]
        begun = dict(zip(others, self._begun(others), strict=True))
        return [begun[value] if value in begun else self._known(tokens[value]) for value in values]

    def first_before(self, values: Sequence[bytes], following: bytes) -> list[int]:
        """Returns the first token of values that end in blanks, before a word.

        Args:
            values: Each at least one byte.
            following: What stands between each of them and the word.

        Returns:
            Their ids; -1 where main has no such token, or one that reaches into the word.
        """
        whole = [value + following for value in values]
        found = zip(whole, self._begun([value + WORD for value in whole]), strict=True)
        return [i if len(self.vocabulary.token_bytes(i) or b"") <= len(value) else -1 for value, i in found]

    def before_words(self, cuts: Segmentation, values: Mapping[int, bytes]) -> dict[int, list[int]]:
        """Returns the tokens that main says before a word in place of those of a member that end in blanks.

        Before a word directly, and before a blank and a word, if the member itself would say its token there: one that
        leaves the last blank to the word says three blanks and " return", where main says four blanks and "return".

        Args:
            cuts: How the member cuts a text.
            values: The bytes of its tokens, by their ids.

        Returns:
            Ids of main, by those of the member; none that are the token by itself.
        """
        found: dict[int, list[int]] = {}
        blanks = [i for i, value in values.items() if value[-1:].isspace()]
        for following in (b"", b" "):
            firsts = self.first_before([values[i] for i in blanks], following)
            for i, first in zip(blanks, firsts, strict=True):
                known = (-1, self.vocabulary.tokens.get(values[i]), *found.get(i, ()))
                if first not in known and cuts.after((i,), following + WORD) is not None:
                    found.setdefault(i, []).append(first)
        return found

    def _begun(self, values: Sequence[bytes]) -> list[int]:
        found = []
        for value, first in zip(values, self._cuts.firsts(values), strict=True):
            begun = self.vocabulary.longest_beginning(value) if first is None else first
            found.append(-1 if begun is None else self._known(begun))
        return found

    def _known(self, token_id: int) -> int:
        return token_id if token_id < self.size else -1
