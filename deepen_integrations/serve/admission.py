"""How many answers a server takes on."""

from __future__ import annotations

from deepen_integrations.serve.errors import ApiError

_RETRY_S = 1


class Admission:
    """Counts the answers that are decoded or wait. It may be used from one event loop only.

    Args:
        most: Maximum number of answers.

    Attributes:
        running: Number of answers now.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.running = 0

    def enter(self, answers: int) -> None:
        """Takes answers on; `leave` must follow.

        Raises:
            ApiError: With 400 if there is never room for so many, and with 429 if there is none now.
        """
        if answers > self._most:
            raise ApiError(
                400, f"The request asks for {answers} answers; at most {self._most} are possible.", param="n"
            )
        if self.running + answers > self._most:
            raise ApiError(
                429,
                f"{self.running} answers are running or wait, and at most {self._most} may: ask again later.",
                code="rate_limit_exceeded",
                retry_after_s=_RETRY_S,
            )
        self.running += answers

    def leave(self, answers: int) -> None:
        """Says that answers have ended."""
        self.running -= answers
