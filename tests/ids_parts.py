"""Sequences of plain ids, and what a model says of them alone under plain `transformers`."""

import torch
from architectures import VOCABULARY, WINDOW

from deepen_core.members.base import read_ahead
from deepen_core.members.sequence import KEPT_TAIL, MemberSequence
from deepen_core.members.transformers.causal import CausalMember


class IdsSequence(MemberSequence):
    """A sequence of plain ids, without a tokenizer, whose last id could always have been another.

    Attributes:
        settled: Number of ids that `rewrite` no longer changes.
    """

    settled = 0
    kept_tail = KEPT_TAIL

    def __init__(self, ids):
        self.ids = list(ids)
        self.cached = 0
        self.cache = None
        self.tokens_run = 0
        self.started = False
        self._recent = {}
        self._sure = set()

    def rewrite(self, back, tail):
        """Replaces the last ids, but none that have settled."""
        place = max(self.settled, len(self.ids) - back)
        if place + len(tail) == 0:
            return
        self.cached = min(self.cached, place)
        self.ids[place:] = tail


def member_of(model, window=WINDOW):
    return CausalMember("member", model, None, window)


def plain(model, ids):
    """Logits at every place of one text, without any cache."""
    with torch.inference_mode():
        model(torch.tensor([[1]]), use_cache=False)  # dynamic positions remember the longest text they saw
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def check(model, sequences, logits, atol=2e-5):
    assert logits.dtype == torch.float32
    for sequence, found in zip(sequences, logits, strict=True):
        expected = plain(model, sequence.ids)
        torch.testing.assert_close(found, expected[-1], atol=atol, rtol=0)
        assert int(found.argmax()) == int(expected[-1].argmax())
        if sequence.logits_before is not None:
            torch.testing.assert_close(sequence.logits_before, expected[-2], atol=atol, rtol=0)


def check_read_ahead(model, member, sequence, start=1, **exactness):
    """Reads a new sequence ahead, and compares what is found; one that cannot be read must not be touched."""
    ids = sequence.ids
    found = read_ahead(member, sequence, start)
    if found is None:
        assert (sequence.cached, sequence.cache) == (0, None)
        can = isinstance(member, CausalMember) and member.batching == "ragged"
        assert not can or len(ids) <= KEPT_TAIL
        return None
    logprobs = torch.log_softmax(plain(model, ids)[start - 1 : -1], -1)
    expected = logprobs.gather(-1, torch.tensor(ids[start:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found), expected, **{"atol": 2e-5, "rtol": 0, **exactness})
    assert sequence.pending == KEPT_TAIL < len(ids)
    assert sequence.tokens_run == 0
    return found


def made_up(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
