"""The training loop: epochs, steps, checkpoints. What is trained for comes in from outside."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynkern.data.stream import Stream, mixed
from dynkern.nn.dynamic import device_of
from dynkern.train import distributed, state
from dynkern.train.progress import Progress, Silent
from dynkern.train.recipe import Recipe
from dynkern.train.state import Stateful
from dynkern.train.steps import LossStep, classify

History = list[dict[str, Any]]


def _nothing(*_: object) -> None:
    return None


@dataclass(frozen=True)
class Hooks:
    """What else happens during a run; epochs are counted from 1.

    Attributes:
        before_epoch: called with the epoch before its first step, also of the first epoch after a run is continued.
        after_step: called after each step of the optimiser.
        after_epoch: called with the epoch after its last step; what it returns goes into the epoch's record. The
            network is in training mode before and after.
    """

    before_epoch: Callable[[int], object] = _nothing
    after_step: Callable[[], object] = _nothing
    after_epoch: Callable[[int], Mapping[str, Any] | None] = _nothing


def fit(
    net: nn.Module,
    data: Stream,
    recipe: Recipe,
    *,
    step: LossStep = classify,
    hooks: Hooks | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    parts: Mapping[str, Stateful] | None = None,
    progress: Progress | None = None,
) -> History:
    """Train ``net``.

    The result follows from the arguments alone: the same seed gives the same weights on the same machine and number of
    threads, also when the run is broken off after an epoch and called again with the same ``checkpoint``.

    Args:
        net: trained in place, on its device; in training mode afterwards.
        data: gives the batches of each epoch. If it is one of several processes', a process group must be there;
            gradients and batch norms are then those of the joint batch, and process 0 writes the checkpoint.
        recipe: optimiser, learning rates, precision and seed.
        step: computes the loss of a batch and adds its gradients; it runs under the recipe's autocast.
        hooks: what else happens.
        checkpoint: the file to which the run is saved after each epoch, and from which it continues if it is there.
        parts: what else the checkpoint holds, by name.
        progress: is told how it goes; nobody by default.

    Returns:
        A record per epoch: ``epoch``, ``seconds``, ``lr`` (at its end), ``loss`` and ``train_accuracy`` (means over the
        epoch), and what ``hooks.after_epoch`` adds.

    Raises:
        ValueError: there is nothing to train, or ``checkpoint`` is damaged or of another run.
        RuntimeError: the loss is not finite.
    """
    hooks = Hooks() if hooks is None else hooks
    told = Silent() if progress is None else progress
    optimizer = recipe.optimiser(net)
    everything: dict[str, state.Part] = {"net": net, "optimizer": optimizer, **(parts or {})}
    identity = {**recipe.to_dict(), "batch": data.batch, "data_seed": data.seed, "images": len(data.data)}
    history: History = []
    if checkpoint is not None and Path(checkpoint).is_file():
        history = state.load(checkpoint, everything, identity).history
    told.begin(recipe.epochs, data.steps, len(history))
    try:
        # Random numbers of the caller are left alone.
        with torch.random.fork_rng(), distributed.parallel(net, data.processes) as called:
            for epoch in range(len(history) + 1, recipe.epochs + 1):
                torch.manual_seed(mixed(recipe.seed, epoch))
                hooks.before_epoch(epoch)
                record = _epoch(epoch, called, data, recipe, optimizer, step, hooks, told)
                record.update(hooks.after_epoch(epoch) or {})
                history.append(record)
                told.epoch(record)
                if checkpoint is not None and data.rank == 0:
                    state.save(checkpoint, everything, identity, history)
                distributed.wait(data.processes)
    finally:
        told.end()
    net.train()
    return history


def _epoch(
    epoch: int,
    net: nn.Module,
    data: Stream,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    step: LossStep,
    hooks: Hooks,
    told: Progress,
) -> dict[str, Any]:
    net.train()
    device = device_of(net) or torch.device("cpu")
    rates = recipe.rates()
    began = time.perf_counter()
    loss, correct, seen = 0.0, 0.0, 0.0
    for i, (x, y) in enumerate(data.epoch(epoch)):
        for group in optimizer.param_groups:
            group["lr"] = rates(epoch - 1 + i / data.steps)
        x, y = recipe.placed(x, device), y.to(device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        with recipe.autocast(device):
            outcome = step(net, x, y)
        optimizer.step()
        hooks.after_step()
        seen += len(y)
        loss += float(outcome.loss) * len(y)
        correct += float(outcome.correct)
        if not loss < float("inf"):
            raise RuntimeError(f"loss: not finite in epoch {epoch}, step {i + 1}; a lower learning rate may help")
        told.step(epoch, i + 1, loss / seen, correct / seen)
    loss, correct, seen = distributed.summed((loss, correct, seen), data.processes, device)
    return {
        "epoch": epoch,
        "seconds": time.perf_counter() - began,
        "lr": rates(epoch - 1 / data.steps),
        "loss": loss / seen,
        "train_accuracy": correct / seen,
    }
