"""Which of main's tokens may come next in an answer that has to follow a grammar."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from deepen_core.config.constraints import CONSTRAINTS, ConstraintOptions
from deepen_core.constraints.grammar import grammar_of
from deepen_core.errors import DecodingError, SamplingError
from deepen_core.tokenization.vocabulary import Vocabulary

_KEPT = 64  # compiled constraints
_END = b"<|end of answer|>"


@dataclass(frozen=True)
class Allowed:
    """What may come next.

    Attributes:
        tokens: Which of main's tokens, stop tokens left out: bool [vocabulary]. An array of numpy's: on tensors of this
            size several threads work, and where cores are busy they wait for each other longer than the work takes.
        any: Whether there is any.
        end: Whether the answer may end.
    """

    tokens: np.ndarray
    any: bool
    end: bool


class _Tokens:
    """What llguidance asks of a tokenizer; it keeps hold of this."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], end: int) -> None:
        self.tokens = tokens
        self.eos_token_id = end
        self.special_token_ids = [end]

    def __call__(self, _text: bytes) -> list[int]:
        """Asked only where llguidance puts tokens in by itself, which it is never told to do."""
        return []


class Lexicon:
    """Main's tokens as llguidance knows them.

    Tokens without bytes, among them all control tokens, have none here either, so that no grammar can ask for them.
    Behind the vocabulary stands an end token of our own: it is allowed exactly where an answer is complete, and then
    stands for all of main's stop tokens.

    Args:
        vocabulary: Main's.
        starts_text: Whether the answer starts a text, whose dummy space is no part of it. Then every token that begins
            with a space has a twin without, in whose place it may come first.

    Attributes:
        tokenizer: For llguidance.
        twins: Id of the twin of each token that has one.
        stop_ids: Main's: int64 [stop tokens].
    """

    def __init__(self, vocabulary: Vocabulary, *, starts_text: bool) -> None:
        values = [vocabulary.token_bytes(i) or b"" for i in range(vocabulary.size)]
        spaced = [i for i, value in enumerate(values) if value.startswith(b" ")] if starts_text else []
        tokens = _Tokens([*values, _END, *(values[i][1:] for i in spaced)], vocabulary.size)
        self.tokenizer = LLTokenizer(TokenizerWrapper(tokens))
        self.twins = {i: vocabulary.size + 1 + place for place, i in enumerate(spaced)}
        self.stop_ids = np.array(sorted(vocabulary.stop_ids), dtype=np.int64)
        self._lone = [i for i in spaced if values[i] == b" "]
        self._spaced = np.array(spaced, dtype=np.int64)
        self._size = vocabulary.size
        self._speakable = np.array([bool(value) for value in values])

    def is_lost(self, token_id: int) -> bool:
        """Whether a token adds nothing to the answer if it comes first."""
        return token_id in self._lone

    def allowed(self, bits: bytes, *, first: bool) -> Allowed:
        """Reads a mask of llguidance.

        Args:
            bits: One bit a token.
            first: Whether the next token is the first one of the answer.
        """
        packed = np.frombuffer(bits, dtype=np.uint8)
        flat = np.unpackbits(packed, bitorder="little").view(np.bool_)  # [tokens, and what fills up the last byte]
        tokens, behind = flat[: self._size], flat[self._size + 1 :]
        if first and self.twins:
            another = tokens[self._spaced].any()  # a space that is wanted, behind one that gets lost
            tokens[self._spaced] = behind[: len(self._spaced)]
            tokens[self._lone] = another
        tokens &= self._speakable  # a grammar may name ids
        return Allowed(tokens, bool(tokens.any()), bool(flat[self._size]))


class Constraint:
    """What one answer has to follow. One thread at a time may touch it.

    Args:
        lexicon: Main's tokens.
        matcher: At the start of the grammar.
        name: The option that it came from, for messages.
    """

    def __init__(self, lexicon: Lexicon, matcher: LLMatcher, name: str) -> None:
        self._lexicon = lexicon
        self._matcher = matcher
        self._name = name
        self._first = True
        self._allowed = self._look()

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return self._allowed.end and not self._allowed.any

    def allowed(self, width: int, device: torch.device) -> torch.Tensor:
        """Which ids may come next, stop tokens where the answer may end: bool [width].

        Args:
            width: Of main's logits, which may be wider or narrower than its vocabulary.
            device: Where the logits are.
        """
        tokens = self._allowed.tokens[:width]
        mask = np.zeros(width, dtype=np.bool_)
        mask[: len(tokens)] = tokens
        if self._allowed.end:
            stops = self._lexicon.stop_ids
            mask[stops[stops < width]] = True
        return torch.from_numpy(mask).to(device)

    def advance(self, token_id: int) -> None:
        """Takes the next token of the answer, which must be one that is allowed and no stop token.

        Raises:
            DecodingError: If main has no token with which the answer could go on, or the grammar is too complex.
        """
        lexicon, first, self._first = self._lexicon, self._first, False
        if not (first and lexicon.is_lost(token_id)):
            self._matcher.consume_token(lexicon.twins.get(token_id, token_id) if first else token_id)
        self._allowed = self._look()

    def _look(self) -> Allowed:
        bits = self._matcher.compute_bitmask()
        said = _said(self._matcher)
        stuck = said.startswith("NoExtension")
        if said and not stuck:
            raise DecodingError(f"The {self._name} cannot be followed further: {said}")
        allowed = self._lexicon.allowed(bits, first=self._first)
        if stuck or not (allowed.any or allowed.end):
            raise DecodingError(
                f"The {self._name} cannot be followed further: the main member has no token that may come next. Take "
                "another member as main, or allow other characters."
            )
        return allowed


class Constraints:
    """Compiles constraints over main's vocabulary, each once. Any thread may use it.

    Args:
        vocabulary: Main's.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._lexicons: dict[bool, Lexicon] = {}
        self._compiled: OrderedDict[tuple[str, bool], LLMatcher] = OrderedDict()

    def start(self, params: ConstraintOptions, *, starts_text: bool) -> Constraint | None:
        """The constraint of a new answer, None if it has none.

        Args:
            params: The options of the request.
            starts_text: Whether the answer is the very start of a text.

        Raises:
            SamplingError: If it cannot be followed.
        """
        name = params.constraint
        if name is None:
            return None
        lexicon = self._lexicon(starts_text and self._vocabulary.starts_with_space)
        try:
            started = Constraint(lexicon, self._matcher(params, lexicon), name)
        except DecodingError as problem:
            raise SamplingError(f"No answer can follow this constraint. {problem}") from problem
        if started.complete:
            raise SamplingError(f"{name} allows the empty answer only; leave it out.")
        return started

    def _lexicon(self, starts_text: bool) -> Lexicon:
        with self._lock:
            if starts_text not in self._lexicons:
                self._lexicons[starts_text] = Lexicon(self._vocabulary, starts_text=starts_text)
            return self._lexicons[starts_text]

    def _matcher(self, params: ConstraintOptions, lexicon: Lexicon) -> LLMatcher:
        """A fresh matcher, of which the grammar was compiled when it was first asked for."""
        key = json.dumps([getattr(params, name) for name in CONSTRAINTS]), bool(lexicon.twins)
        with self._lock:
            compiled = self._compiled.get(key)
            if compiled is not None:
                self._compiled.move_to_end(key)
        if compiled is None:  # not under the lock: large grammars take a while
            limits = LLParserLimits(verbose_errors=False)
            compiled = LLMatcher(lexicon.tokenizer, grammar_of(params), log_level=0, limits=limits)
            if said := _said(compiled):
                raise SamplingError(f"{params.constraint} cannot be followed: {said}")
            with self._lock:
                self._compiled[key] = compiled
                while len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
        return compiled.deep_copy()


def _said(matcher: LLMatcher) -> str:
    """What is wrong with a matcher, on one line; nothing if it is fine."""
    return " ".join(matcher.get_error().replace("<non-verbose/>", "").split())
