"""A member that is a table of probabilities by the last tokens: no torch model, no embeddings."""

from collections import Counter, defaultdict

import torch

from deepen_core.members.base import MemberDescription, Work
from deepen_core.members.sequence import KEPT_TAIL
from deepen_core.members.tokenizer import MemberTokenizer


class TableMember:
    """Knows which token follows which, from counting.

    Args:
        name: How it is called.
        tokenizer: A `transformers` tokenizer.
        texts: What it counts in; their ends count as the end of a text.
        start: The ids that start every text of a decoder, whose encoder is deaf; None for one that reads prompts.

    Attributes:
        batches: How many sequences each call of `next_logits` had.
    """

    dtype = torch.float32
    device = torch.device("cpu")
    batching = "ragged"
    context_window = 256
    longest = 5  # tokens that a prediction looks back

    def __init__(self, name, tokenizer, texts, start=None):
        self.name = name
        self.tokenizer = MemberTokenizer(tokenizer, name, decoder_start=start)
        self.source_window = None if start is None else self.context_window
        self.vocabulary_size = self.tokenizer.vocabulary.size
        self.work = Work()
        self.batches = []
        self._following = defaultdict(Counter)
        (stop, *_) = sorted(self.tokenizer.vocabulary.stop_ids)
        for text in texts:
            ids = [*(start or ()), *self.tokenizer.encode(text), stop]
            self.count(ids)

    def count(self, ids):
        """Counts in the ids of a text."""
        for place, token_id in enumerate(ids):
            for length in range(self.longest + 1):
                if length <= place:
                    self._following[tuple(ids[place - length : place])][token_id] += 1

    def describe(self):
        return MemberDescription("TableMember")

    def warm_up(self):
        """Nothing takes long the first time."""

    def logits(self, ids):
        """Counts behind the longest end of some ids that it has met, and a little for every token."""
        known = next(end for n in range(self.longest, -1, -1) if (end := tuple(ids[len(ids) - n :])) in self._following)
        counts = torch.full((self.vocabulary_size,), 1e-4)
        for token_id, count in self._following[known].items():
            counts[token_id] += count
        return counts.log()

    def next_logits(self, sequences):
        self.batches.append(len(sequences))
        self.work.forwards += 1
        found = []
        for sequence in sequences:
            self.work.ids_run += len(sequence.take_pending())
            ends = range(max(1, len(sequence.ids) - KEPT_TAIL + 1), len(sequence.ids) + 1)
            logits = torch.stack([self.logits(sequence.ids[:end]) for end in ends])
            sequence.keep_logits(logits)
            found.append(logits[-1])
        return torch.stack(found)

    def prefill(self, sequence, limit):
        return 0

    def token_logprobs(self, ids, start, source=None):
        self.work.ids_run += len(ids)
        return [float(torch.log_softmax(self.logits(ids[:place]), -1)[ids[place]]) for place in range(start, len(ids))]


def a_byte(member, text):
    """The log-likelihood of a byte of a text, the mean over all tokens but the first, and the number of these bytes."""
    bos, own = member.tokenizer.vocabulary.bos_id, member.tokenizer.encode(text)
    ids = own if bos is None else [bos, *own]
    at = range(len(ids) - len(own) + 1, len(ids))
    nats = [float(torch.log_softmax(member.logits(ids[:n]), -1)[ids[n]]) for n in at]
    size = len(text.encode().removeprefix(member.tokenizer.vocabulary.token_bytes(own[0]).lstrip()))
    return sum(nats) / size, size
