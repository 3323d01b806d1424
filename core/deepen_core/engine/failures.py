"""Errors of a step outside of any member: they name what failed and advise what may help."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from deepen_core.config import SamplingParams
from deepen_core.errors import DecodingError, DeepenError, brief
from deepen_core.members.memory import MORE_ROOM, is_memory

OUR_FAULT = "This is a bug in deepen: please report it with this text."


@contextmanager
def told_as(error: Callable[[Exception], DecodingError]) -> Iterator[None]:
    """Turns exceptions inside into errors of the engine; those that already are stay unchanged.

    Args:
        error: Creates the error.
    """
    try:
        yield
    except DeepenError:
        raise
    except Exception as problem:
        raise error(problem) from problem


def forget_frames(error: BaseException) -> None:
    """Clears the variables of all finished frames that an error and its cause keep alive: they hold tensors.

    A traceback keeps the frames between where the exception was raised and where it was caught, and each frame keeps
    its caller's.
    """
    for one in (error, error.__cause__):
        if one is None:
            continue
        for frame, _ in traceback.walk_tb(one.__traceback__):
            _clear(frame)


def _clear(frame: FrameType | None) -> None:
    """Clears the variables of a frame and of all that called it, up to one that still runs."""
    while frame is not None:
        try:
            frame.clear()
        except RuntimeError:  # it still runs, and so do those that called it
            return
        frame = frame.f_back


def fusion_failed(
    problem: Exception, *, where: str, members: Sequence[str], strategy: str, main_alone: Sequence[float]
) -> DecodingError:
    """Returns the error of a sequence in which the members' distributions could not be fused.

    Args:
        problem: The exception.
        where: Where it happened, such as "at token 3 of the answer".
        members: Names of the members that took part.
        strategy: Name of the fusion.
        main_alone: Weights with which there is nothing to fuse.
    """
    other = "deepen" if strategy == "product" else "product"
    weights = ", ".join(f"{weight:.0f}" for weight in main_alone)
    around = (
        f"Members loaded with fusion={other!r} may avoid it; with weights=[{weights}] main answers alone, and nothing "
        "is fused."
    )
    return _failed(
        f"Fusing {' and '.join(members)} ({strategy}) failed {where}",
        problem,
        around if len(members) > 1 else "",
    )


def choice_failed(problem: Exception, *, token: int, params: SamplingParams) -> DecodingError:
    """Returns the error of a sequence in which no token could be chosen.

    Args:
        problem: The exception.
        token: Number of the answer's token, counted from 1.
        params: The options of the request.
    """
    options = _choosing(params)
    around = f"The same request without {' and '.join(options)} may avoid it." if options else ""
    return _failed(f"Choosing token {token} of the answer failed", problem, around)


def constraint_failed(problem: Exception, *, token: int, constraint: str | None) -> DecodingError:
    """Returns the error of a sequence whose constraint could not be queried, or not advanced by a token.

    Args:
        problem: The exception.
        token: Number of the answer's token, counted from 1.
        constraint: The option that it came from.
    """
    around = f"The same request without {constraint} avoids it."
    return _failed(f"Following the {constraint} at token {token} of the answer failed", problem, around)


def report_failed(problem: Exception, *, token: int) -> DecodingError:
    """Returns the error of a sequence whose log-probabilities could not be reported.

    Args:
        problem: The exception.
        token: Number of the answer's token, counted from 1.
    """
    around = "The same request without logprobs avoids it."
    return _failed(f"Reporting the log-probabilities of token {token} of the answer failed", problem, around)


def telling_failed(problem: Exception, *, token: int, member: str, text: str) -> DecodingError:
    """Returns the error of a sequence in which a member could not be updated with main's text.

    Args:
        problem: The exception.
        token: Number of the answer's token, counted from 1.
        member: The member's name.
        text: The text to append.
    """
    around = f"With weight 0, {member!r} is not updated."
    return _failed(f"Updating member {member!r} with {text!r} (token {token} of the answer) failed", problem, around)


def step_failed(problem: Exception, *, token: int) -> DecodingError:
    """Returns the error of a sequence whose step failed in none of the ways above.

    Args:
        problem: The exception.
        token: Number of the answer's token, counted from 1.
    """
    return _failed(f"The step for token {token} of the answer failed", problem, "")


def _failed(what: str, problem: Exception, around: str) -> DecodingError:
    advice = MORE_ROOM if is_memory(problem) else f"{OUR_FAULT} {around}".rstrip()
    error = DecodingError(f"{what}: {brief(problem)}. {advice}")
    error.__cause__ = problem
    return error


def _choosing(params: SamplingParams) -> list[str]:
    """Returns the options that affect the choice, as far as the request has set them."""
    sampled = ("temperature", "top_k", "top_p", "min_p") if params.temperature > 0 else ()
    penalties = ("repetition_penalty", "frequency_penalty", "presence_penalty")
    fields = SamplingParams.model_fields
    values = {name: getattr(params, name) for name in (*sampled, *penalties, "ignore_eos")}
    found = [f"{name}={value}" for name, value in values.items() if value != fields[name].default]
    return [*found, params.constraint] if params.constraint else found
