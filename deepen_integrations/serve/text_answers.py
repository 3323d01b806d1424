"""The engine's answers to plain texts as OpenAI's completions, whole and in pieces."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deepen_integrations.adapter import trace_part
from deepen_integrations.serve.wire import Wire, ended, traced

if TYPE_CHECKING:
    from deepen_core.results import Chunk, Generation, TokenLogprob


class TextWire(Wire):
    """Writes the answers to one or several texts.

    Args:
        model: The name by which the client asked.
        prompts: Number of texts.
        each: Number of answers to each.
    """

    whole_kind = "text_completion"
    piece_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str, prompts: int, each: int) -> None:
        super().__init__(model, prompts)
        self._logprobs = [TextLogprobs() for _ in range(prompts * each)]

    def opening(self) -> list[dict[str, Any]]:
        """Returns the choices before the first pieces: none."""
        return []

    def choices(self, number: int, chunk: Chunk) -> list[dict[str, Any]]:
        """Returns the choice of a piece of one answer."""
        logprobs = None if chunk.logprobs is None else self._logprobs[number].told(chunk.logprobs)
        choice = {"index": number, "text": chunk.text, "logprobs": logprobs, "finish_reason": None}
        if chunk.trace is not None:
            choice["trace"] = trace_part(chunk.trace, last=chunk.generation is not None)
        return [choice if chunk.generation is None else {**choice, **ended(chunk.generation)}]

    def whole(self, answers: Sequence[Generation]) -> dict[str, Any]:
        """Returns the response with all answers."""
        choices = [
            {
                "index": number,
                "text": answer.text,
                "logprobs": None if answer.logprobs is None else self._logprobs[number].told(answer.logprobs),
                **traced(answer),
                **ended(answer),
            }
            for number, answer in enumerate(answers)
        ]
        return self.response(choices, answers)


class TextLogprobs:
    """The logprobs of one answer in the form of completions, in which each token has its place in the text."""

    def __init__(self) -> None:
        self._place = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def told(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Returns the logprobs of the next tokens."""
        places = []
        for chosen in tokens:
            places.append(self._place)
            self._place += len(self._decoder.decode(chosen.token))
        return {
            "tokens": [_shown(chosen.token) for chosen in tokens],
            "token_logprobs": [chosen.logprob for chosen in tokens],
            "top_logprobs": [{_shown(token): logprob for _, token, logprob in chosen.top} for chosen in tokens],
            "text_offset": places,
        }


def _shown(token: bytes) -> str:
    r"""Returns a token as text; one that is not UTF-8 as OpenAI writes it, such as `bytes:\xe2`."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
