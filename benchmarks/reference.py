"""The plain way to fuse, with the cost profile of the published code: whole matrices and a search by autograd."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from deepen_core.fusion.anchors.shared_tokens import Anchors
from deepen_core.fusion.deepen.relative_space import relative_matrix
from deepen_core.members.transformers.kv_cache import cache_option
from deepen_core.tokenization.vocabulary import Vocabulary


class DenseReference:
    """Holds a matrix [vocabulary, anchors] per member and reads main's about a dozen times for each token.

    Args:
        embeddings: One tensor [vocabulary, width] per member, main's first.
        anchor_ids: One tensor [anchors] per member.
        temperature: 100 as published.
    """

    def __init__(
        self, embeddings: list[torch.Tensor], anchor_ids: list[torch.Tensor], temperature: float = 100.0
    ) -> None:
        pairs = zip(embeddings, anchor_ids, strict=True)
        self.matrices = [relative_matrix(e, ids, temperature) for e, ids in pairs]

    @property
    def bytes_held(self) -> int:
        """Memory of the matrices."""
        return sum(m.numel() * m.element_size() for m in self.matrices)

    def fuse(self, logits: list[torch.Tensor], learning_rate: float = 0.15, steps: int = 5) -> torch.Tensor:
        """Fuses one row at equal weights, [vocabulary] per member, and returns main's moved logits [vocabulary]."""
        parts = [torch.softmax(x, -1) @ m for x, m in zip(logits, self.matrices, strict=True)]
        target = torch.stack(parts).mean(0)
        moved = logits[0].clone().requires_grad_()
        optimizer = torch.optim.AdamW([moved], lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=learning_rate / 4)
        for _ in range(steps):
            optimizer.zero_grad()
            projected = torch.softmax(moved, -1) @ self.matrices[0]
            torch.nn.functional.kl_div(projected.log(), target, reduction="mean").backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        return moved.detach()


class ReferenceLoop:
    """Decodes as the published code does: main with a cache, the other member over the whole text for each token.

    Args:
        paths: Folders of main and of one other member.
        device: Where everything is.
    """

    def __init__(self, paths: list[Path], device: str) -> None:
        self._models = [AutoModelForCausalLM.from_pretrained(path).to(device).eval() for path in paths]
        self._tokenizers = [AutoTokenizer.from_pretrained(path) for path in paths]
        vocabularies = [Vocabulary.from_tokenizer(tokenizer) for tokenizer in self._tokenizers]
        anchors = Anchors.shared_by(vocabularies, [path.name for path in paths])
        embeddings = [model.get_input_embeddings().weight.detach() for model in self._models]
        self._fusion = DenseReference(embeddings, [ids.to(device) for ids in anchors.ids])
        self._device = device

    @property
    def bytes_held(self) -> int:
        """Memory of the matrices."""
        return self._fusion.bytes_held

    def generate(self, text: str, tokens: int) -> list[int]:
        """Main's ids of an answer of so many tokens."""
        (main, other), (spoken, heard) = self._models, self._tokenizers
        ids, made, cache, given = spoken.encode(text), list[int](), DynamicCache(), cache_option(main)
        for _ in range(tokens):
            pending = ids if not made else made[-1:]
            with torch.no_grad():
                mine = main(torch.tensor([pending], device=self._device), **{given: cache}).logits[0, -1]
                whole = heard.encode(text + spoken.decode(made))
                theirs = other(torch.tensor([whole], device=self._device), use_cache=False).logits[0, -1]
            made.append(int(self._fusion.fuse([mine, theirs]).argmax()))
        return made
