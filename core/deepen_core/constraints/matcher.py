"""Which of main's tokens may come next in an answer that is constrained by a grammar."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from deepen_core.config.constraints import CONSTRAINTS, ConstraintOptions
from deepen_core.constraints.big_stack import on_big_stack
from deepen_core.constraints.grammar import grammar_of
from deepen_core.errors import DecodingError, SamplingError
from deepen_core.tokenization.vocabulary import Vocabulary

_KEPT = 64  # compiled constraints
_END = b"<|end of answer|>"


@dataclass(frozen=True)
class Allowed:
    """What may come next.

    Attributes:
        tokens: Which of main's tokens are allowed, without stop tokens: bool [vocabulary]. A numpy array: torch would
            split tensors of this size over several threads, and on busy cores these wait for each other longer than
            the work takes.
        any: Whether any is allowed.
        end: Whether the answer may end.
    """

    tokens: np.ndarray
    any: bool
    end: bool


class _Tokens:
    """The tokenizer interface that llguidance asks for; it keeps a reference to this object."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], end: int, control: Iterable[int]) -> None:
        self.tokens = tokens
        self.eos_token_id = end
        self.special_token_ids = [end, *control]

    def __call__(self, _text: bytes) -> list[int]:
        """Called only where llguidance inserts tokens by itself, which is disabled."""
        return []


class Lexicon:
    """Main's tokens in the form that llguidance needs.

    Tokens without bytes are empty here too, so that no grammar can ask for them, other than the control tokens in the
    marks around thoughts, which a grammar names by their ids. An end token of our own follows the vocabulary: it is
    allowed exactly where an answer is complete, and then stands for all of main's stop tokens.

    Args:
        vocabulary: Main's vocabulary.
        marks: The control tokens in the marks of thoughts, with their ids.
        starts_text: Whether the answer starts a text, whose dummy space does not belong to the answer. Then every token
            that begins with a space has a twin without it, which replaces it as the first token.

    Attributes:
        tokenizer: For llguidance.
        twins: Maps a token to its twin, if it has one.
        stop_ids: Main's stop tokens, int64 [stop tokens].
    """

    def __init__(self, vocabulary: Vocabulary, marks: Mapping[str, int], *, starts_text: bool) -> None:
        values = [vocabulary.token_bytes(i) or b"" for i in range(vocabulary.size)]
        for mark, token_id in marks.items():
            values[token_id] = mark.encode()
        spaced = [i for i, value in enumerate(values) if value.startswith(b" ")] if starts_text else []
        tokens = _Tokens([*values, _END, *(values[i][1:] for i in spaced)], vocabulary.size, marks.values())
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
        """Decodes a mask of llguidance.

        Args:
            bits: One bit per token.
            first: Whether the next token is the first one of the answer.
        """
        packed = np.frombuffer(bits, dtype=np.uint8)
        flat = np.unpackbits(packed, bitorder="little").view(np.bool_)  # [tokens, then padding of the last byte]
        tokens, behind = flat[: self._size], flat[self._size + 1 :]
        if first and self.twins:
            another = tokens[self._spaced].any()  # a space is allowed, after a first one that is dropped
            tokens[self._spaced] = behind[: len(self._spaced)]
            tokens[self._lone] = another
        tokens &= self._speakable  # a grammar may name ids of tokens without bytes
        return Allowed(tokens, bool(tokens.any()), bool(flat[self._size]))


class Constraint:
    """The constraint of one answer. It may be used by one thread at a time.

    Args:
        lexicon: Main's tokens.
        matcher: A matcher at the start of the grammar.
        name: The option that it came from, for error messages.
    """

    def __init__(self, lexicon: Lexicon, matcher: LLMatcher, name: str) -> None:
        self._lexicon = lexicon
        self._matcher = matcher
        self._name = name
        self._first = True
        self._allowed = self._look()

    @property
    def complete(self) -> bool:
        """Whether the answer can only end."""
        return self._allowed.end and not self._allowed.any

    def allowed(self, width: int, device: torch.device) -> torch.Tensor:
        """Returns which ids may come next, including stop tokens if the answer may end: bool [width].

        Args:
            width: Width of main's logits, which may differ from the size of its vocabulary.
            device: The device of the logits.
        """
        tokens = self._allowed.tokens[:width]
        mask = np.zeros(width, dtype=np.bool_)
        mask[: len(tokens)] = tokens
        if self._allowed.end:
            stops = self._lexicon.stop_ids
            mask[stops[stops < width]] = True
        return torch.from_numpy(mask).to(device)

    def advance(self, token_id: int) -> None:
        """Advances by the next token of the answer, which must be an allowed token other than a stop token.

        Raises:
            DecodingError: If main has no token with which the answer could continue, or the grammar is too complex.
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
                f"The {self._name} cannot be followed further: the main member has no token that may come next. Choose "
                "another main member, or allow other characters."
            )
        return allowed


class Constraints:
    """Compiles constraints over main's vocabulary, each once. Any thread may use it.

    Args:
        vocabulary: Main's vocabulary.
        marks: As for `Lexicon`.
    """

    def __init__(self, vocabulary: Vocabulary, marks: Mapping[str, int] | None = None) -> None:
        self._vocabulary = vocabulary
        self._marks = marks or {}
        self._lock = threading.Lock()
        self._lexicons: dict[bool, Lexicon] = {}
        self._compiled: OrderedDict[tuple[str, bool], LLMatcher] = OrderedDict()

    def start(self, params: ConstraintOptions, *, starts_text: bool) -> Constraint | None:
        """Returns the constraint of a new answer, or None if it has none.

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
            raise SamplingError(f"{name} allows only the empty answer; leave it out.")
        return started

    def _lexicon(self, starts_text: bool) -> Lexicon:
        with self._lock:
            if starts_text not in self._lexicons:
                self._lexicons[starts_text] = Lexicon(self._vocabulary, self._marks, starts_text=starts_text)
            return self._lexicons[starts_text]

    def _matcher(self, params: ConstraintOptions, lexicon: Lexicon) -> LLMatcher:
        """Returns a fresh matcher; its grammar is compiled at the first request for it."""
        key = json.dumps([getattr(params, name) for name in CONSTRAINTS]), bool(lexicon.twins)
        with self._lock:
            compiled = self._compiled.get(key)
            if compiled is not None:
                self._compiled.move_to_end(key)
        if compiled is None:  # not under the lock: large grammars take a while
            compiled = on_big_stack(partial(_compiled, params, lexicon))
            if said := _said(compiled):
                raise SamplingError(f"{params.constraint} cannot be followed: {said}")
            with self._lock:
                self._compiled[key] = compiled
                while len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
        return compiled.deep_copy()


def _compiled(params: ConstraintOptions, lexicon: Lexicon) -> LLMatcher:
    limits = LLParserLimits(verbose_errors=False)
    return LLMatcher(lexicon.tokenizer, grammar_of(params), log_level=0, limits=limits)


def _said(matcher: LLMatcher) -> str:
    """Returns the error of a matcher on one line, or an empty string."""
    return " ".join(matcher.get_error().replace("<non-verbose/>", "").split())
