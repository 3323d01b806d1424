"""An encoder-decoder model from `transformers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from deepen_core.members.base import MemberDescription
from deepen_core.members.sequence import MemberSequence
from deepen_core.members.tokenizer import MemberTokenizer
from deepen_core.members.transformers.encoder_decoder import EncoderDecoder
from deepen_core.members.transformers.given_tokens import logprobs_of
from deepen_core.members.transformers.model_member import ModelMember
from deepen_core.members.transformers.seq2seq_runners import TogetherRunner, WholeRunner
from deepen_core.members.transformers.seq2seq_trial import Seq2SeqTrial
from deepen_core.results import ONE_AT_A_TIME


class Seq2SeqMember(ModelMember):
    """A loaded `AutoModelForSeq2SeqLM` with its tokenizer.

    Its encoder reads the prompt of a sequence once, in the form of this member; its decoder holds the answer alone,
    after the ids that start it. If the model supports it, which `warm_up`, or else the first use, probes, sequences run
    together. Otherwise the decoder runs the whole answer of one sequence after the other for every token.

    Args:
        name: Its name in reports.
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        context_window: Maximum length of an answer, with the ids that start it.
        source_window: Maximum length of a prompt.
        ruled_out: Ids that no answer contains.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: MemberTokenizer,
        context_window: int,
        source_window: int,
        ruled_out: Sequence[int] = (),
    ) -> None:
        super().__init__(name, model, tokenizer, context_window)
        self.source_window = source_window
        self._halves = EncoderDecoder(model, self.vocabulary_size, ruled_out)
        self._found: tuple[TogetherRunner | WholeRunner, str] | None = None

    def _embedding_matrix(self) -> torch.Tensor:
        """Returns those of the decoder."""
        weight = self.model.get_decoder().get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def describe(self) -> MemberDescription:
        """See `Member.describe`."""
        described = super().describe()
        return MemberDescription(f"{described.architecture} (encoder-decoder)", described.parameters)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Probes how the model runs several sequences. It takes seconds; further calls do nothing."""
        if self._found is None:
            self._found = self._probe()

    def _probe(self) -> tuple[TogetherRunner | WholeRunner, str]:
        windows = self.context_window, self.source_window
        fault = Seq2SeqTrial(self.model, self.vocabulary_size, *windows).fault()
        if not fault:
            return TogetherRunner(self._halves, self.device, self.work), "ragged"
        why = f"sequences do not share a forward ({fault}), so its whole answer is run again for every token"
        return WholeRunner(self._halves, self.work), f"{ONE_AT_A_TIME}: {why}"

    @property
    def _way(self) -> tuple[TogetherRunner | WholeRunner, str]:
        self.warm_up()
        assert self._found is not None, "just found"
        return self._found

    @property
    def batching(self) -> str:
        """See `Member.batching`."""
        return self._way[1]

    def next_logits(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        """See `Member.next_logits`."""
        return self._way[0].next_logits(sequences)

    def prefill(self, sequence: MemberSequence, limit: int) -> int:  # noqa: ARG002
        """See `Member.prefill`: nothing is run ahead, since an encoder reads a prompt as a whole."""
        return 0

    def forget(self) -> None:
        """See `Forgets.forget`."""
        if self._found is not None and isinstance(self._found[0], TogetherRunner):
            self._found[0].forget()

    def token_logprobs(self, ids: Sequence[int], start: int, source: Sequence[int] | None = None) -> list[float]:
        """See `Member.token_logprobs`."""
        assert source is not None, "an encoder-decoder model has read something"
        states, _ = self._halves.encode([source])
        batch = self._halves.batch([ids])
        logits = self._halves.decode(batch, states)[0, start - 1 : -1]  # [tokens, vocabulary]
        return logprobs_of(logits, batch[0, start:])
