"""The loop that trains a model of the demo: one course, its learning rate and its optimizers."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lessons import Kind
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm
from transformers import PreTrainedModel

log = logging.getLogger("training")

DECAY = 0.05
"""Weight decay of all matrices."""
WARMUP = 0.04
FINAL_RATE = 0.02


@dataclass(frozen=True)
class Course:
    """A part of the training, with a learning rate that rises and falls.

    Attributes:
        share: Its part of all steps.
        rate: Peak learning rate.
        kinds: How much of each kind of batch.
    """

    share: float
    rate: float
    kinds: dict[Kind, float]


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up, then a cosine down to a fiftieth. `progress` runs from 0 to 1."""
    if progress < WARMUP:
        return peak * (progress + 1e-3) / WARMUP
    fallen = 0.5 + 0.5 * math.cos(math.pi * min(1.0, (progress - WARMUP) / (1 - WARMUP)))
    return peak * (FINAL_RATE + (1 - FINAL_RATE) * fallen)


def build_optimizers(model: PreTrainedModel, rate: float) -> list[Optimizer]:
    """AdamW for embeddings, norms and biases; Muon, at the same learning rate, for all other matrices.

    Muon steps equally far in all directions of a matrix (Jordan et al., 2024). Its steps are scaled to the length of
    AdamW's (Liu et al., 2025, arXiv 2502.16982).

    Args:
        model: What learns.
        rate: Learning rate of both, until the loop sets another.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [p for p in model.parameters() if p.dim() > 1 and id(p) not in embeddings]
    embedded = [p for p in model.parameters() if id(p) in embeddings]
    others = [p for p in model.parameters() if p.dim() <= 1]
    adam = torch.optim.AdamW(
        [{"params": embedded, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.98),
    )
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    return [adam, muon]


def schedule(
    model: PreTrainedModel,
    next_loss: Callable[[], Tensor],
    course: Course,
    steps: int,
    name: str,
    *,
    minutes: float | None = None,
    position: int = 0,
) -> None:
    """The loop, until the steps are done or the minutes are over.

    Args:
        model: What learns.
        next_loss: Returns the loss of the next batch.
        course: Says at which rate.
        steps: So many.
        name: Its name in the log.
        minutes: At most so many.
        position: The line of its bar, from 0.
    """
    optimizers = build_optimizers(model, course.rate)
    model.train()
    started, average = time.monotonic(), 0.0
    bar = tqdm(total=steps, desc=name, unit="step", mininterval=5.0, position=position)
    for step in range(steps):
        progress = step / steps
        if minutes:
            progress = max(progress, (time.monotonic() - started) / 60 / minutes)
            if progress >= 1:
                break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress, course.rate)
        loss = next_loss()
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        bar.update()
        bar.set_postfix(loss=f"{average:.3f}", refresh=False)
    bar.close()
    log.info("%s: %d steps, %.1f minutes, loss %.3f", name, bar.n, (time.monotonic() - started) / 60, average)
