"""How much of a chosen token's probability the members account for, by brute force over their whole vocabularies.

A member accounts for a token with all tokens of its own that begin with its bytes or that its bytes begin with; and,
where its last token lies inside the answer, with those that it might have said in the place of that one.
"""

import torch

from deepen_core.config import resolve_sampling


class Account:
    """One step of an answer.

    Attributes:
        token: Bytes of the token that was chosen.
        fused: Its fused probability.
        members: What each member accounts for; main first. None where a member had no say.
    """

    def __init__(self, token, fused, members):
        self.token, self.fused, self.members = token, fused, members

    @property
    def covered(self):
        """The most that a single member accounts for."""
        return max(mass for mass in self.members if mass is not None)


def accounts(ensemble, prompt, **options):
    """Decodes an answer step by step, and yields an `Account` of each token but the end."""
    decoder, members = ensemble._engine.decoder, ensemble._engine.members
    sequence = decoder.start(prompt, resolve_sampling(None, {**options, "logprobs": 1}))
    answer, reach = b"", len(prompt.encode()) if isinstance(prompt, str) else 0
    while not sequence.ended:
        places = [list(side.ids) for side in sequence.member_sequences]
        behind, said = sequence.others_behind, len(sequence.token_ids)
        decoder.step([sequence])
        if sequence.error is not None:
            raise sequence.error
        if len(sequence.token_ids) == said:
            return
        token = sequence._vocabulary.token_bytes(sequence.token_ids[-1]) or b""
        found = [
            None if behind and number else _accounted(member, ids, token, reach + len(answer) if number else 0)
            for number, (member, ids) in enumerate(zip(members, places, strict=True))
        ]
        yield Account(token, float(torch.tensor(sequence.logprobs[-1].logprob).exp()), found)
        answer += token


@torch.inference_mode()
def _accounted(member, ids, token, reach):
    logits = member.model(torch.tensor([ids], device=member.device)).logits[0, -2:].float().cpu()
    vocabulary = member.tokenizer.vocabulary
    now = torch.softmax(logits[-1], -1)
    direct = sum(float(now[i]) for v, i in vocabulary.tokens.items() if _alike(v, token) and i < len(now))
    last = vocabulary.token_bytes(ids[-1]) or b""
    if not last or len(last) > reach or len(ids) < 2:
        return direct
    before = torch.softmax(logits[0], -1)
    longer = sum(
        float(before[i])
        for v, i in vocabulary.tokens.items()
        if len(v) > len(last) and v.startswith(last) and _alike(v[len(last) :], token) and i < len(before)
    )
    return direct + longer / (float(before[ids[-1]]) + longer)


def _alike(one, other):
    return one.startswith(other) or other.startswith(one)
