"""Tries whether an encoder-decoder model can run its sequences together: made-up ones are compared with whole runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepen_core.members.sequence import KEPT_TAIL
from deepen_core.members.transformers.encoder_decoder import EncoderDecoder
from deepen_core.members.transformers.rounding import Layers, Rounding, States
from deepen_core.members.transformers.seq2seq_forward import Seat, Seq2SeqForward
from deepen_core.members.transformers.trial import DisagreementError, fault_of

_LONGEST = 12  # ids of a text


class Seq2SeqTrial:
    """Runs made-up sequences through a model.

    Args:
        model: In evaluation mode.
        vocabulary_size: Of its decoder.
        context_window: The longest text of its decoder, in ids.
        source_window: The longest text of its encoder, in ids.
    """

    def __init__(self, model: Any, vocabulary_size: int, context_window: int, source_window: int) -> None:
        self._size = min(vocabulary_size, len(model.get_input_embeddings().weight))
        self._padding = getattr(model.config.get_text_config(decoder=True), "pad_token_id", None)
        self._halves = EncoderDecoder(model, vocabulary_size)
        self._layers = Layers(model.get_decoder())
        self._rounding = Rounding(model.dtype)
        self._shortest = min(context_window, source_window)

    def fault(self) -> str:
        """Returns why sequences cannot be run together, or an empty string if they can."""
        return fault_of(self._together)

    def _together(self, seed: int) -> None:
        if self._shortest < _LONGEST:
            raise DisagreementError(f"a window of {self._shortest} ids is too short to try it")
        first, second, third = (self._made_up(n, seed + n) for n in (5, 9, 7))
        text, other = self._made_up(_LONGEST, seed + 20), self._made_up(_LONGEST, seed + 30)
        self._learn(first, text)
        forward = Seq2SeqForward(self._halves)
        with forward.busy():
            a, b, c = forward.take(), forward.take(), forward.take()
            read: dict[Seat, list[int]] = {a: first, b: second, c: third}
            self._check({a: first, b: second}, {a: text[:3], b: other[:2]}, forward, 0, encode=True)
            self._check(read, {a: text[:6], b: other[:4]}, forward, 2)
            self._check({c: third}, {c: text[:8]}, forward, 0, encode=True)
            # One goes on, one changes its end, and one was further already.
            changed = [*other[:3], *text[3:9]]
            self._check(read, {a: text[:7], b: changed, c: text[:9]}, forward, 3)
            self._check(read, {c: text[:10], a: text[:8]}, forward, 7)  # not all, and in another order

    def _check(
        self,
        sources: Mapping[Seat, list[int]],
        texts: Mapping[Seat, list[int]],
        forward: Seq2SeqForward,
        start: int,
        *,
        encode: bool = False,
    ) -> None:
        with self._layers.listening() as heard:
            logits = forward.begin(sources, texts) if encode else forward.go_on(texts, start)
        for line, (seat, text) in enumerate(texts.items()):
            count = min(KEPT_TAIL, len(text) - start)
            ends = [state[line : line + 1, len(text) - start - count : len(text) - start] for state in heard]
            whole = [state[:, -count:] for state in self._whole(sources[seat], text)]
            if problem := self._rounding.problem([*ends, logits[line : line + 1, -count:]], whole):
                raise DisagreementError(f"it changes {problem}")

    def _learn(self, source: list[int], text: list[int]) -> None:
        """Runs the beginnings of a text: a causal decoder gives the same result."""
        if any(state.shape[:2] != (1, len(text)) for state in self._whole(source, text)):
            self._layers.ignore()  # its layers have another shape of output (FSMT: positions before sequences)
        whole = self._whole(source, text)
        for length in (3, 5, 9):
            found = self._whole(source, text[:length])
            self._rounding.learn(
                [state[:, -KEPT_TAIL:] for state in found], [state[:, length - KEPT_TAIL : length] for state in whole]
            )

    def _whole(self, source: Sequence[int], text: Sequence[int]) -> States:
        """Returns the states of a text run whole by itself."""
        states, _ = self._halves.encode([source])
        with self._layers.listening() as heard:
            logits = self._halves.decode(self._halves.batch([text]), states)
        return [*heard, logits]

    def _made_up(self, length: int, seed: int) -> list[int]:
        """Returns made-up ids without padding, which some models give no position."""
        ids = [(31 * (i + 1) * seed + 17) % self._size for i in range(length)]
        return [(i + 1) % self._size if i == self._padding else i for i in ids]
