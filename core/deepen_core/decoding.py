"""The step that turns rows into longer rows: run what is pending, fuse, choose, tell the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deepen_core.config import SamplingParams
from deepen_core.errors import ContextWindowError, NonFiniteLogitsError
from deepen_core.fusion import Fusion
from deepen_core.healing import Healer, Healing
from deepen_core.members import Member, MemberRow
from deepen_core.prompt import MemberPrompt, Message
from deepen_core.results import TokenLogprob
from deepen_core.row import Row


class Decoder:
    """Steps rows through all members.

    Args:
        members: The models.
        main: Whose vocabulary is spoken.
        weights: How much each counts, summing to one; a member of weight zero is never run, unless it is main.
        fusion: Makes one distribution of several.
        healers: One per member that listens to shorter tokens than its own, None for the others.
    """

    def __init__(
        self,
        members: Sequence[Member],
        main: int,
        weights: Sequence[float],
        fusion: Fusion,
        healers: Sequence[Healer | None],
    ) -> None:
        self._healers = list(healers)
        self._members = list(members)
        self._main = main
        self._weights = list(weights)
        self._fusion = fusion
        self._vocabulary = members[main].tokenizer.vocabulary

    def start(self, prompt: str | Sequence[Message], params: SamplingParams) -> Row:
        """Makes a row of a prompt; nothing is run yet.

        Raises:
            PromptError: If the prompt is empty where a member cannot start from nothing.
            ChatTemplateError: If a conversation is given and a member cannot read it.
            ContextWindowError: If the prompt leaves no room in a member's context window.
        """
        prompts = [self._read(i, prompt) if self._takes_part(i) else None for i in range(len(self._members))]
        sides = [
            None if p is None else MemberRow(p, m.tokenizer, speaks=i == self._main)
            for i, (m, p) in enumerate(zip(self._members, prompts, strict=True))
        ]
        room = self._room(sides)
        clamped = params.model_copy(update={"max_new_tokens": min(params.max_new_tokens, room)})
        spoken = prompts[self._main]
        assert spoken is not None
        names = [m.name for m in self._members]
        row = Row(sides, names, self._main, self._vocabulary, clamped, starts_text=not spoken.text)
        if "max_new_tokens" in params.model_fields_set and room < params.max_new_tokens:
            row.warnings.append(
                f"max_new_tokens was lowered from {params.max_new_tokens} to {room}, the room in the context window."
            )
        return row

    def _takes_part(self, member: int) -> bool:
        return member == self._main or self._weights[member] > 0

    def _read(self, member: int, prompt: str | Sequence[Message]) -> MemberPrompt:
        reader = self._members[member].tokenizer.reader
        return reader.read_text(prompt) if isinstance(prompt, str) else reader.read_messages(prompt)

    def _room(self, sides: Sequence[MemberRow | None]) -> int:
        """How many tokens fit behind the prompt in main's window; every member must have room for at least one."""
        for member, side in zip(self._members, sides, strict=True):
            if side is not None and side.prompt_tokens >= member.context_window:
                raise ContextWindowError(
                    f"The prompt has {side.prompt_tokens} tokens for member {member.name!r}, whose context window is "
                    f"{member.context_window}: shorten it by at least {side.prompt_tokens - member.context_window + 1} "
                    "tokens, or use members with larger windows."
                )
        main = sides[self._main]
        assert main is not None
        return self._members[self._main].context_window - main.prompt_tokens

    @torch.inference_mode()
    def step(self, rows: Sequence[Row]) -> None:
        """Gives each of these unfinished rows its next token, or ends it."""
        going = [row for row in rows if not self._ends_early(row)]
        if not going:
            return
        scores, fused = self._distributions(going)
        for row, row_scores, row_fused in zip(going, scores, fused, strict=True):
            history = row.main_side.ids if row.sampler.needs_history else ()
            token_id = row.sampler.choose(row_scores, history)
            self._note_logprobs(row, token_id, row_fused)
            row.accept(token_id)

    @torch.inference_mode()
    def force(self, row: Row, token_ids: Sequence[int]) -> list[float]:
        """Speaks given tokens and returns the fused log-probability (nats) of each."""
        found = []
        for token_id in token_ids:
            _, fused = self._distributions([row])
            found.append(float(fused[0, token_id]))
            row.speak(token_id)
        return found

    def _ends_early(self, row: Row) -> bool:
        if row.out_of_time:
            row.finish("timeout")
            return True
        for member, side in zip(self._members, row.sides, strict=True):
            if side is not None and len(side.ids) > member.context_window:
                row.warnings.append(
                    f"Ended where the text fills the context window of member {member.name!r}, "
                    f"{member.context_window} tokens."
                )
                row.finish("length")
                return True
        return False

    def _distributions(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores to choose by and the fused log-probabilities, both [rows, main's vocabulary].

        Scores are the log-probabilities shifted to the scale of main's logits, and main's logits themselves where main
        alone counts: rounding must not decide there what it would not decide in `transformers`.

        A member that is behind in a row (bytes of an unfinished character wait) abstains there: it is not run, and the
        others' weights are scaled up.
        """
        weights = torch.tensor([self._weights for _ in rows], dtype=torch.float32)  # [rows, members]
        main_logits: torch.Tensor | None = None
        logprobs: list[torch.Tensor | None] = []
        for number, member in enumerate(self._members):
            speaks = number == self._main
            takes_part = [speaks or (self._takes_part(number) and not row.others_behind) for row in rows]
            weights[[i for i, yes in enumerate(takes_part) if not yes], number] = 0.0
            if not any(takes_part):
                logprobs.append(None)
                continue
            sides = [row.sides[number] for row, yes in zip(rows, takes_part, strict=True) if yes]
            logits = member.next_logits([s for s in sides if s is not None])
            self._check_finite(member, logits)
            values = torch.log_softmax(logits, dim=-1)
            if speaks:
                main_logits = logits
            elif not all(takes_part):
                at = torch.tensor([i for i, yes in enumerate(takes_part) if yes], device=values.device)
                values = values.new_zeros(len(rows), values.shape[-1]).index_copy(0, at, values)
            logprobs.append(values)
        assert main_logits is not None
        weights[weights.sum(-1) == 0, self._main] = 1.0  # main has weight zero and all others abstain
        fused = self._fusion.fuse(logprobs, weights, [self._heal(i, rows, p) for i, p in enumerate(logprobs)])
        alone = (weights[:, self._main] == weights.sum(-1)).to(fused.device)
        shifted = fused + torch.logsumexp(main_logits, dim=-1, keepdim=True)
        return torch.where(alone[:, None], main_logits, shifted), fused

    def _heal(self, number: int, rows: Sequence[Row], logprobs: torch.Tensor | None) -> Healing | None:
        """What a listening member may still have meant in each row."""
        healer = self._healers[number]
        if healer is None or logprobs is None:
            return None
        sides = [row.sides[number] for row in rows]
        return healer.heal([(s.ids[-1], s.logits_before) for s in sides if s is not None])

    @staticmethod
    def _check_finite(member: Member, logits: torch.Tensor) -> None:
        best = logits.amax(-1)  # NaN if any entry is
        if not bool(torch.isfinite(best).all()):
            raise NonFiniteLogitsError(
                f"Member {member.name!r} returned logits whose largest is {[float(b) for b in best]}: its weights are "
                "damaged, or its dtype overflows (try dtype='float32' or 'bfloat16' for this member)."
            )

    def _note_logprobs(self, row: Row, token_id: int, fused: torch.Tensor) -> None:
        wanted = row.params.logprobs
        if wanted is None or token_id in self._vocabulary.stop_ids:
            return
        best = fused.topk(min(wanted, len(fused)))
        top = [(int(i), self._spelled(int(i)), float(p)) for p, i in zip(best.values, best.indices, strict=True)]
        row.logprobs.append(TokenLogprob(token_id, self._spelled(token_id), float(fused[token_id]), tuple(top)))

    def _spelled(self, token_id: int) -> bytes:
        return self._vocabulary.token_bytes(token_id) or b""
