"""Probes how a model can run its sequences: together, one at a time, or only from their start.

A model's name says little: the options of its configuration and its own code decide. So a few made-up sequences are run
both in a ragged batch, in which they are shortened, and each whole by itself, and the logits are compared. A model that
keeps a state, or that cannot be shortened for another reason, is tried with copies of its state instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from deepen_core.members.transformers.excerpt import excerpt
from deepen_core.members.transformers.masks import Masks, likely_masks
from deepen_core.members.transformers.recurrent_state import Recurrence
from deepen_core.members.transformers.trial import PIECE, Trial, fault_of


@dataclass(frozen=True)
class Findings:
    """How a model's sequences can be run.

    Attributes:
        masks: For sequences in a ragged cache; None if the model cannot run them in one.
        why_not: The reason, if it cannot.
        keeps_cache: Whether a sequence run by itself can be continued and shortened.
        recurrence: How a sequence whose cache cannot be shortened is continued; None if its whole text must be run.
        max_stable_length: Up to this many ids, the position encoding of a text does not depend on its length; None if
            it never depends on it.
        positions_fixed: Whether one other encoding holds for all longer texts, so that it changes only once.
    """

    masks: Masks | None
    why_not: str
    keeps_cache: bool
    recurrence: Recurrence | None = None
    max_stable_length: int | None = None
    positions_fixed: bool = True


@torch.inference_mode()
def probe(model: Any, context_window: int) -> Findings:
    """Probes a model, changing neither it nor any random state.

    Args:
        model: In evaluation mode.
        context_window: The longest text, in ids.
    """
    if any("layers_are_rescaled" in vars(module) for module in model.modules()):
        # RWKV scales the weights of its layers in its first forward, which must have all of them.
        model(torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    with excerpt(model):
        return _try(model, context_window)


@torch.inference_mode()
def probe_trees(model: Any, context_window: int, masks: Masks) -> bool:
    """Returns whether a model can run the ids of a tree of texts, changing neither it nor any random state.

    One that goes by an id's place in the cache, where positions are given, can run ragged batches but no trees.

    Args:
        model: In evaluation mode.
        context_window: The longest text, in ids.
        masks: With which it can run a ragged batch.
    """
    with excerpt(model):
        trial = Trial(model, context_window)
        return not fault_of(partial(trial.tree, masks))


def is_stateful(model: Any) -> bool:
    """Whether `transformers` says that a model keeps a state beside or in place of keys and values."""
    return bool(getattr(model, "_is_stateful", False))


def _try(model: Any, context_window: int) -> Findings:
    trial = Trial(model, context_window)
    masks, recurrence = None, None
    why_not = "its state cannot be shortened"
    keeps_cache = False
    if not is_stateful(model):
        fault = fault_of(trial.own_cache)
        keeps_cache = not fault
        why_not = fault and f"it cannot continue from a shortened cache ({fault})"
    if keeps_cache:
        masks, why_not = _find_masks(model, trial)
    else:
        recurrence, why_not = _find_recurrence(model, trial, why_not)
    if not trial.length_matters(PIECE, context_window):
        return Findings(masks, why_not, keeps_cache, recurrence)
    max_stable_length = _declared_length(model)
    positions_fixed = not trial.length_matters(max_stable_length + PIECE, context_window)
    # A model whose positions keep changing notices a shorter text only if it is shorter by one.
    stable = max_stable_length if positions_fixed else max_stable_length - 1
    return Findings(masks, why_not, keeps_cache, recurrence, stable, positions_fixed)


def _find_masks(model: Any, trial: Trial) -> tuple[Masks | None, str]:
    """Returns the masks for sequences in a ragged cache, or None and why it cannot run them in one."""
    why_not = ""
    for masks in likely_masks(model):
        fault = fault_of(partial(trial.ragged, masks))
        if not fault:
            return masks, ""
        why_not = why_not or f"sequences of different lengths do not share a forward ({fault})"
    return None, why_not


def _find_recurrence(model: Any, trial: Trial, why_not: str) -> tuple[Recurrence | None, str]:
    """Returns how a model continues from its state, and why its sequences do not share a forward."""
    windows = [n for masks in likely_masks(model) for n in masks.limits]
    fault = fault_of(trial.find_states)
    for several in () if fault else (True, False):
        fault = fault_of(partial(trial.recurrent, windows, several))
        if not fault:
            recurrence = Recurrence(several, trial.singly() if several else 1, trial.attributes)
            return recurrence, "its state cannot be shortened"
    return None, why_not if not is_stateful(model) else f"{why_not}, nor continued from a copy ({fault})"


def _declared_length(model: Any) -> int:
    """Returns the text length up to which the configuration declares positions unscaled; 0 if it declares none."""
    config = model.config.get_text_config()
    given = getattr(config, "rope_parameters", None) or {}
    parts = [given, *(part for part in given.values() if isinstance(part, dict))]
    found = [part.get("original_max_position_embeddings") for part in parts]
    lengths = [n for n in found if isinstance(n, int)] or [getattr(config, "max_position_embeddings", 0)]
    return min(lengths)
