"""The end of a request whose timeout passes before there is anything to decode."""

from __future__ import annotations

import time

from deepen_core.config import SamplingParams
from deepen_core.errors import TimedOutError
from deepen_core.results import Generation, Timings, Usage


def seconds_left(params: SamplingParams, asked: float | None = None) -> float | None:
    """Returns how many seconds a request has left; 0 if none, and None if it has no timeout.

    Args:
        params: Its options. When it was made is taken from them, if they say.
        asked: When it was made (`time.perf_counter`), if they do not; now by default.
    """
    if params.timeout is None:
        return None
    since = params.asked or asked or time.perf_counter()
    return max(0.0, since + params.timeout - time.perf_counter())


def timed_out_early(params: SamplingParams, asked: float) -> Generation:
    """Returns the empty answer of a request whose timeout has passed while it was prepared.

    Args:
        params: Its options.
        asked: When it was made, as for `seconds_left`.

    Raises:
        TimedOutError: If it asks for an error then.
    """
    if params.on_timeout == "raise":
        raise TimedOutError(
            f"The request was not prepared after {params.timeout:g} s: others were before it, or its text or grammar "
            "is large. Allow more time, or take an empty answer with on_timeout='return'."
        )
    waited = time.perf_counter() - (params.asked or asked)
    return Generation(
        text="",
        token_ids=[],
        finish_reason="timeout",
        usage=Usage(0, 0),
        logprobs=None if params.logprobs is None else [],
        timings=Timings(0.0, 0.0, waited),
        member_work=[],
        warnings=["The timeout passed while the prompt was prepared, so that its tokens were not counted."],
    )
