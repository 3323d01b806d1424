"""A member that llama.cpp runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deepen_core.members.base import MemberDescription, Work
from deepen_core.members.llama_cpp.embeddings import read_embeddings
from deepen_core.members.llama_cpp.header import GgufHeader
from deepen_core.members.llama_cpp.model import LlamaModel
from deepen_core.members.llama_cpp.runner import LlamaRunner
from deepen_core.members.llama_cpp.tree import LlamaTree
from deepen_core.members.sequence import MemberSequence
from deepen_core.members.tokenizer import MemberTokenizer


class LlamaCppMember:
    """A loaded GGUF file with its tokenizer.

    Args:
        name: Its name in reports.
        model: The model.
        header: The header of its file.
        tokenizer: Its tokenizer.
        context_window: In its own tokens.
        most: Most ids whose keys and values are held for all requests together.

    Attributes:
        work: Counts of the work done.
        vocabulary_size: See `Member.vocabulary_size`.
        device: See `Member.device`.
        dtype: See `Member.dtype`; that of its logits.
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(
        self,
        name: str,
        model: LlamaModel,
        header: GgufHeader,
        tokenizer: MemberTokenizer,
        context_window: int,
        most: int,
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.context_window = context_window
        self.vocabulary_size = model.vocabulary_size
        self.work = Work()
        self._model = model
        self._header = header
        self._exact = is_exact(header)
        self._runner = LlamaRunner(model, name, most, self.work, exact=self._exact)
        self._tried = False

    def describe(self) -> MemberDescription:
        """See `Member.describe`."""
        return MemberDescription(architecture(self._header), self._model.parameters)

    def warm_up(self) -> None:
        """Reads the weights once, as the first request would."""
        if not self._tried:
            self._runner.logprobs([0, 0], 1)
            self._tried = True

    @property
    def batching(self) -> str:
        """See `Member.batching`."""
        if self._exact:
            return "ragged"
        return "ragged (its logits vary with the other requests of a batch; deterministic=True runs a request alone)"

    @property
    def embeddings(self) -> torch.Tensor:
        """Input embeddings [vocabulary, width], which are read from the file anew."""
        return read_embeddings(self._header)

    def next_logits(self, sequences: Sequence[MemberSequence]) -> torch.Tensor:
        """See `Member.next_logits`."""
        return self._runner.next_logits(sequences)

    def prefill(self, sequence: MemberSequence, limit: int) -> int:
        """See `Member.prefill`."""
        return self._runner.prefill(sequence, limit)

    def token_logprobs(self, ids: Sequence[int], start: int, source: Sequence[int] | None = None) -> list[float]:  # noqa: ARG002
        """See `Member.token_logprobs`."""
        return self._runner.logprobs(ids, start)

    def tree_run(self, longest: int) -> LlamaTree:
        """See `RunsTrees.tree_run`."""
        return LlamaTree(self._runner, longest)

    def forget(self) -> None:
        """See `Forgets.forget`."""
        self._runner.forget()


def architecture(header: GgufHeader) -> str:
    """Returns the kind of model and how most of its weights are stored, such as "llama (GGUF Q4_1)"."""
    return f"{header.architecture} (GGUF {storage(header)})"


def storage(header: GgufHeader) -> str:
    """Returns ggml's name of the type that most weights are stored in."""
    from gguf import GGMLQuantizationType  # noqa: PLC0415 (an extra)

    sizes: dict[int, int] = {}
    for tensor in header.tensors.values():
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.size
    return GGMLQuantizationType(max(sizes, key=lambda kind: sizes[kind])).name


def is_exact(header: GgufHeader) -> bool:
    """Whether all weights are float32, so that everything else is computed in it too."""
    return header.matrix_types <= {0}
