"""A trained network on real images: the plain PyTorch network beside the one that runs dynkern's kernels."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynkern import models
from dynkern.bench import peers
from dynkern.bench.cases import Point, TrainedCase
from dynkern.bench.peers import Subject
from dynkern.bench.results import OURS, Row
from dynkern.bench.run import Budget, run
from dynkern.bench.stages import Task, double, network_error, network_tolerance
from dynkern.bench.timer import threads as using_threads
from dynkern.checkpoint import load_checkpoint
from dynkern.count import Count
from dynkern.count import count as count_macs
from dynkern.data import load_cifar10, normalize
from dynkern.subnets import slim

# The networks that CIFAR-10 can be run through, the default first.
NAMES = tuple(name for name, model in models.MODELS.items() if model.input_shape == (3, 32, 32))
BATCHES = (1, 32)
BUDGET = 10.0
# Images per call while the accuracy is taken.
CHUNK = 250


@dataclass(frozen=True)
class Trained:
    """One network twice, with the same weights and statistics: plain PyTorch, and with dynkern's kernels."""

    plain: nn.Module
    ours: nn.Module


def load(name: str, checkpoint: str | os.PathLike[str]) -> Trained:
    """The network ``name`` with the weights of a file that ``torch.save`` wrote; see :func:`dynkern.checkpoint`."""
    plain = load_checkpoint(models.build(name), checkpoint).eval()
    return Trained(plain, slim(copy.deepcopy(plain), subnets=(1.0,)).eval())


def images(folder: str | os.PathLike[str], limit: int | None = None) -> tuple[Tensor, Tensor]:
    """CIFAR-10's test images, normalised, (N, 3, 32, 32) float32, and their labels (N,) int64."""
    coded, labels = load_cifar10(folder, "test", limit)
    return normalize(coded), labels


def chunks(images: int) -> int:
    """How many calls :func:`accuracy` makes of each network."""
    return -(-images // CHUNK)


@torch.inference_mode()
def accuracy(
    trained: Trained,
    images: Tensor,
    labels: Tensor,
    *,
    threads: int,
    started: Callable[[str], object] = lambda step: None,
) -> dict[str, float]:
    """Run every image through both networks.

    Returns:
        ``images``; ``plain`` and ``dynkern``, the shares of right answers; ``agree``, the share of images on which both
        answer the same; ``difference``, the largest between two logits; ``largest``, the largest magnitude of a logit.
    """
    outputs: dict[str, list[Tensor]] = {"plain": [], "ours": []}
    with using_threads(threads):
        for i, chunk in enumerate(images.split(CHUNK)):
            started(f"images {i * CHUNK} to {i * CHUNK + len(chunk)}")
            outputs["plain"].append(trained.plain(chunk))
            outputs["ours"].append(trained.ours(chunk))
    plain, ours = (torch.cat(parts) for parts in outputs.values())
    return {
        "images": len(images),
        "plain": float((plain.argmax(1) == labels).double().mean()),
        "dynkern": float((ours.argmax(1) == labels).double().mean()),
        "agree": float((plain.argmax(1) == ours.argmax(1)).double().mean()),
        "difference": float((plain - ours).abs().max()),
        "largest": float(plain.abs().max()),
    }


def plan(name: str, batches: Sequence[int], threads: Sequence[int]) -> list[Point]:
    """The points at which the network is timed."""
    case = TrainedCase(f"{name}, trained, on real images")
    return [Point(case, 1.0, batch, count) for batch in batches for count in threads]


def measure(
    trained: Trained,
    images: Tensor,
    points: Sequence[Point],
    *,
    budget_s: float = BUDGET,
    started: Callable[[Point], object] = lambda point: None,
) -> list[Row]:
    """Check and time both networks on the first images, in turn."""
    budget = Budget(budget_s, len(points))
    rows: list[Row] = []
    for point in points:
        started(point)
        with using_threads(point.threads), torch.no_grad():
            rows += run(point, _task(trained, images[: point.batch]), budget.share)
    return rows


def _task(trained: Trained, x: Tensor) -> Task:
    found = count_macs(trained.plain, x)
    macs = found.macs if isinstance(found, Count) else 0
    variants = {
        OURS: lambda: peers.eager(Subject(trained.ours, x), 0),
        "eager": lambda: peers.eager(Subject(trained.plain, x), 0),
    }
    return Task(variants, network_error(double(trained.plain, x)), network_tolerance(trained.plain), macs, macs)
