"""Trials of a model: made-up sequences are run in some way, and compared with the same run whole by themselves."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache

from deepen_core.errors import brief
from deepen_core.members.base import Work
from deepen_core.members.sequence import KEPT_TAIL
from deepen_core.members.text_tree import TextPath, TextTree
from deepen_core.members.transformers.kv_cache import RaggedCache, cache_option
from deepen_core.members.transformers.made_up_past import MadeUpPast
from deepen_core.members.transformers.masks import Masks
from deepen_core.members.transformers.ragged import RaggedForward
from deepen_core.members.transformers.recurrent_state import State, StateCopy, attributes_with_states
from deepen_core.members.transformers.rounding import Layers, Rounding, States
from deepen_core.members.transformers.sequential import shortened
from deepen_core.members.transformers.tree import TreeForward

PIECE = 16
"""Ids of one trial of positions."""

# Windows up to this length are tried with real text, longer ones with a made-up past of at most 16384 positions.
_SHORT_WINDOW = 64
_LONGEST_PAST = 16384
# A past of this many positions reveals windows that the configuration does not declare.
_UNDECLARED = 300

# A model for which several ids at once take longer than this many steps runs up to so many ids one by one.
_SLOW = 6.0
_ONE_BY_ONE = 8

# Models refuse unknown input in different ways. An out-of-memory error is a RuntimeError too, but proves nothing.
_REFUSALS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# Made-up texts to try: a text on which rounding decides between two experts of a model, say, proves nothing.
_SEEDS = (1, 2)


class DisagreementError(Exception):
    """Two runs that should agree do not."""


def fault_of(trial: Callable[[int], None]) -> str:
    """Returns why a trial fails with every seed, or an empty string if it succeeds with one.

    Args:
        trial: Takes the seed of its made-up texts, and raises `DisagreementError` if runs that should agree do not.
    """
    found = ""
    for seed in _SEEDS:
        try:
            trial(seed)
        except DisagreementError as problem:
            found = found or str(problem)
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS as problem:
            if _is_ours(problem):
                raise
            return f"it refuses: {brief(problem)}"
        else:
            return ""
    return found


class Trial:
    """Runs made-up sequences through a model.

    Args:
        model: In evaluation mode.
        context_window: The longest text, in ids.
    """

    def __init__(self, model: Any, context_window: int) -> None:
        self._model = model
        self._window = context_window
        self._size = len(model.get_input_embeddings().weight)
        self._cache_option = cache_option(model)
        self._layers = Layers(model)
        self._known: dict[tuple[int, ...], States] = {}
        self.attributes: frozenset[str] = frozenset()
        self._rounding = Rounding(model.dtype)
        self._learn_rounding()

    def _learn_rounding(self) -> None:
        """Runs the beginnings of a text, and several copies of it at once: a causal model gives the same result."""
        text = self._text(17, _SEEDS[0], other_from=4)  # the first trial compares with its beginning
        if any(state.shape[:2] != (1, len(text)) for state in self._whole(text)):
            self._layers.ignore()  # its layers have another shape of output (XLNet: positions before sequences)
            self._known.clear()
        if not self._rounding.learns:
            return
        for beginning, sequences in ((text[:3], 1), (text[:5], 1), (text[:9], 1), (text[:9], 3)):
            states = self._run(torch.tensor([beginning] * sequences, device=self._model.device))
            whole = [state[:1, len(beginning) - KEPT_TAIL : len(beginning)] for state in self._whole(text)]
            self._rounding.learn([state[:1, -KEPT_TAIL:] for state in states], whole)

    def own_cache(self, seed: int) -> None:
        """Checks that a sequence run by itself can be continued and shortened."""
        first, second = self._text(9, seed), self._text(9, seed, other_from=4)
        cache = DynamicCache()
        self._run(self._batch(first[:7]), cache)
        states = self._run(self._batch(second[4:]), shortened(cache, 4))
        self._compare(states, 0, second, KEPT_TAIL)

    def find_states(self, _seed: int) -> None:
        """Finds the attributes in which the model's modules keep states."""
        self.attributes = attributes_with_states(self._model)

    def recurrent(self, windows: Sequence[int], several: bool, seed: int) -> None:
        """Checks that a text can be continued from its state, and from copies of it after the state has gone on.

        Args:
            windows: Lengths of text beyond which some layer does not attend to all of it.
            several: Whether several ids are continued with at once.
            seed: Of the texts.
        """
        length = min(max((n for n in windows if n <= _SHORT_WINDOW), default=0) + 12, self._window - 1)
        one, other = self._text(length, seed), self._text(length, seed, other_from=5)
        for text in (one, other):
            self._whole(text)
        first, second = State(self._model, self.attributes), State(self._model, self.attributes)
        self._continue(first, one[:4], several)
        copy = first.copy()
        self._continue(second, other[:1], several)  # another text in between, from its first id on
        self._continue(first, one[:7], several)
        self._continue(second, other, several)
        self._continue(first, one, several)
        for text in (other, one[:5]):
            first.restore(copy)
            self._continue(first, text, several)
        self._check_use(first, copy, one[4:7] if several else one[4:5])

    def _continue(self, state: State, text: Sequence[int], several: bool) -> None:
        """Runs a text from a state of its beginning, and compares its last places."""
        width = len(text) - state.length if several or not state.length else 1
        while state.length < len(text):
            with self._layers.listening() as heard:
                logits = state.run(text[state.length : state.length + width])
            self._compare([*heard, logits[None]], 0, text[: state.length], min(width, KEPT_TAIL))

    def singly(self) -> int:
        """Returns up to how many ids a model continues with faster one by one.

        Some fill up several ids to a chunk of 256 (Mamba 2 without kernels), which takes as long as ten steps; others
        run four ids in the time of one to four steps. Only two results are possible, and the limit lies between these
        times: the two ways round differently, so a busy machine must not change the choice.
        """
        state, ids = State(self._model, self.attributes), self._text(4, seed=9)

        def seconds(pieces: Sequence[Sequence[int]]) -> float:
            began = time.perf_counter()
            for piece in pieces:
                state.run(piece).sum().item()  # waits for the device
            return time.perf_counter() - began

        state.run(ids)
        at_once = min(seconds([ids]) for _ in range(3))
        one = min(seconds([[token] for token in ids]) for _ in range(3)) / len(ids)
        return _ONE_BY_ONE if at_once > _SLOW * one else 1

    def _check_use(self, state: State, copy: StateCopy, ids: Sequence[int]) -> None:
        """Checks that the model uses all that is in a copy.

        After a few ids, what a state changes may be less than rounding, so that a model could ignore it unnoticed. What
        is not a number changes everything.
        """
        for kind in copy.kinds:
            state.restore(copy.spoilt(kind))
            if not bool(state.run(ids).isnan().any()):
                raise DisagreementError(f"it does not use its {kind} with {len(ids)} new ids")

    def ragged(self, masks: Masks, seed: int) -> None:
        """Checks that sequences of different lengths can share forwards, advance unequally and be shortened."""
        limits = [n for n in masks.limits if n <= _SHORT_WINDOW]
        length = min(max(limits, default=0) + 12, self._window - 1)
        if length < 10:
            raise DisagreementError(f"a window of {self._window} ids is too short to try it")
        self._short(masks, length, seed)
        self._long(masks, seed)

    def tree(self, masks: Masks, seed: int) -> None:
        """Checks that the ids of a tree can be run: each branch as if it were the only text."""
        length = min(max((n for n in masks.limits if n <= _SHORT_WINDOW), default=0) + 12, self._window - 1)
        texts = [self._text(length, seed), *(self._text(length - 1, seed, other_from=length - n) for n in (6, 3))]
        tree = TextTree()
        forward = TreeForward(self._model, masks, None, Work())
        for text in texts:
            self._whole(text)
        done = 0
        for size in (length - 4, length):
            paths = [TextPath(tree) for _ in texts]
            for path, text in zip(paths, texts, strict=True):
                path.move(text[:size])
            with self._layers.listening() as heard:
                logits = forward.run(tree, len(tree), range(done, len(tree)))
            for path, text in zip(paths, texts, strict=True):
                new = [node - done for node in path.nodes if node >= done]
                if new:
                    self._compare([state[:, new] for state in (*heard, logits[None])], 0, text[:size], len(new))
            done = len(tree)

    def _short(self, masks: Masks, length: int, seed: int) -> None:
        cache = RaggedCache()
        forward = RaggedForward(self._model, cache, masks)
        one, two, three = (self._text(n, seed + k) for n, k in ((length - 1, 0), (length - 3, 1), (5, 2)))
        with cache.busy():
            a, b, c = cache.take(), cache.take(), cache.take()
            for slot, text in ((a, one[:-1]), (b, two[:-3]), (c, three[:-2])):
                forward.run({slot: text}, len(text), 1)
            other, last = self._text(length - 1, seed, other_from=length - 5), self._text(4, seed + 2, other_from=2)
            end = self._text(1, seed + 3)
            # Run first: the whole texts, whose beginnings give the expected results of the others.
            for text in (other + end, two + end, last + end):
                self._whole(text)
            for texts, count in (
                ({a: one, b: two, c: three}, 3),
                ({a: other, c: last}, 4),
                ({a: other + end, b: two + end, c: last + end}, 1),
            ):
                with self._layers.listening() as heard:
                    slots, logits = forward.run(texts, count, min(count, KEPT_TAIL))
                for slot, text in texts.items():
                    self._compare([*heard, logits], slots.index(slot), text, min(count, KEPT_TAIL))

    def _long(self, masks: Masks, seed: int) -> None:
        """Checks that the masks are those that the model itself uses after a long past."""
        edges = [n for n in masks.limits if n <= _LONGEST_PAST]
        past = min(max([*edges, _UNDECLARED]) + 8, self._window - 1)
        pasts, ids = [past, past - 3], self._text(2, seed + 4)
        places = [torch.tensor([[n]], device=self._model.device) for n in pasts]
        alone = [
            self._run(self._batch([token]), MadeUpPast([n], edges), position_ids=place)
            for n, token, place in zip(pasts, ids, places, strict=True)
        ]
        together = self._run(
            self._batch(ids).T,
            MadeUpPast(pasts, edges),
            position_ids=torch.cat(places),
            attention_mask=masks.make(torch.cat(places), past + 1),
        )
        for sequence, states in enumerate(alone):
            self._judge([state[sequence : sequence + 1] for state in together], states)

    def length_matters(self, own: int, far: int) -> bool:
        """Whether a sequence of `own` ids gets other logits when batched with one of `far` ids."""
        if far <= own or own < PIECE:
            return False
        ids = self._batch(self._text(PIECE, seed=6)).expand(2, -1)
        said = []
        try:
            for other in (own, far):
                ends = torch.tensor([[own], [other]], device=self._model.device)
                places = ends - PIECE + torch.arange(PIECE, device=self._model.device)
                said.append(self._model(ids, position_ids=places, use_cache=False).logits[0])
            matters = not torch.equal(*said)
            if matters:
                self._model(ids[:1, :1], use_cache=False)  # models with such positions remember the longest text
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS as problem:
            if _is_ours(problem):
                raise
            return False  # a model without position ids has none that a length could change
        return matters

    def _text(self, length: int, seed: int, other_from: int | None = None) -> list[int]:
        """Returns made-up ids; from `other_from` on they differ from those without it."""
        cut = length if other_from is None else other_from
        return [(31 * (i + 1) * seed + (i >= cut) + 17) % self._size for i in range(length)]

    def _batch(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(ids)], device=self._model.device)

    def _run(self, ids: torch.Tensor, cache: Cache | None = None, **options: Any) -> States:
        if cache is not None:
            options[self._cache_option] = cache
        with self._layers.listening() as heard:
            output = self._model(ids, use_cache=cache is not None, **options)
        return [*heard, output.logits]

    def _whole(self, text: Sequence[int]) -> States:
        """Returns the states of a text run whole by itself, or as the beginning of a longer one."""
        length = len(text)
        for known, states in self._known.items():
            if known[:length] == tuple(text):
                return [state[:, :length] for state in states]
        self._known[tuple(text)] = self._run(self._batch(text))
        return self._known[tuple(text)]

    def _compare(self, states: States, sequence: int, text: Sequence[int], count: int) -> None:
        """Compares a sequence's last places with those of its text run whole."""
        whole = self._whole(text)
        self._judge(
            [state[sequence : sequence + 1, -count:] for state in states], [state[:, -count:] for state in whole]
        )

    def _judge(self, found: States, expected: States) -> None:
        if problem := self._rounding.problem(found, expected):
            raise DisagreementError(f"it changes {problem}")


def _is_ours(problem: BaseException) -> bool:
    """Whether an error is a bug of this package rather than a refusal by the model.

    A tensor operation in our code that fails on the model's shapes counts as a refusal.
    """
    if not isinstance(problem, (AssertionError, AttributeError, TypeError)) or problem.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(problem.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith(__name__.split(".", 1)[0] + ".")
