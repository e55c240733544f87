"""A trained network on real images: the plain PyTorch network beside dynkern's drop-in modules and engine."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dynkern import models
from dynkern.bench import peers
from dynkern.bench.cases import Point, TrainedCase
from dynkern.bench.peers import Subject
from dynkern.bench.results import ENGINE, ENGINE_INT8, MODULES, Row
from dynkern.bench.run import Budget, run
from dynkern.bench.stages import Task, double, engine_call, network_error, network_tolerance, once
from dynkern.bench.timer import threads as using_threads
from dynkern.checkpoint import load_checkpoint
from dynkern.count import Count
from dynkern.count import count as count_macs
from dynkern.data import load_cifar10, normalize
from dynkern.engine import Compiled, compile
from dynkern.engine.ranges import calibrate
from dynkern.subnets import slim

# The networks that CIFAR-10 can be run through, the default first.
SHAPE = (3, 32, 32)
NAMES = tuple(name for name, model in models.MODELS.items() if model.input_shape == SHAPE)
FULL = 1.0
BATCHES = (1, 32)
BUDGET = 10.0
# Images per call while the accuracy is taken.
CHUNK = 250
# Training images that integers are calibrated on.
CALIBRATION = 512


@dataclass(frozen=True)
class Trained:
    """One network, with the same weights and statistics three times.

    Attributes:
        plain: PyTorch's modules.
        modules: dynkern's drop-in modules.
        engine: gives the network compiled, or raises the error of compiling it.
        seen: images (N, 3, 32, 32) to calibrate integers on; None to leave them out.
    """

    plain: nn.Module
    modules: nn.Module
    engine: Callable[[], Compiled]
    seen: Tensor | None = None

    def int8(self) -> Compiled:
        """The network compiled to integers of 8 bits."""
        if self.seen is None:
            raise ValueError("seen: expected images to calibrate on")
        return compile(self.plain, torch.zeros(1, *SHAPE), int8=calibrate(self.plain, self.seen.split(CHUNK)))


def load(name: str, checkpoint: str | os.PathLike[str]) -> Trained:
    """The network ``name`` with the weights of a file that ``torch.save`` wrote; see :func:`dynkern.checkpoint`."""
    plain = load_checkpoint(models.build(name), checkpoint).eval()
    return trained(plain)


def trained(plain: nn.Module) -> Trained:
    """``plain``, a network for CIFAR-10, with dynkern's modules and compiled; itself as it was."""
    modules = slim(copy.deepcopy(plain), subnets=(FULL,)).eval()
    return Trained(plain, modules, once(lambda: compile(modules, torch.zeros(1, *SHAPE))))


def with_training_images(trained: Trained, folder: str | os.PathLike[str]) -> Trained:
    """``trained`` with training images to calibrate integers on; as it is if the folder has none."""
    try:
        coded, _ = load_cifar10(folder, "train", CALIBRATION)
    except FileNotFoundError:
        return trained
    return replace(trained, seen=normalize(coded))


def images(folder: str | os.PathLike[str], limit: int | None = None) -> tuple[Tensor, Tensor]:
    """CIFAR-10's test images, normalised, (N, 3, 32, 32) float32, and their labels (N,) int64."""
    coded, labels = load_cifar10(folder, "test", limit)
    return normalize(coded), labels


def chunks(images: int) -> int:
    """How many calls :func:`accuracy` makes of each variant."""
    return -(-images // CHUNK)


def accuracy(
    trained: Trained,
    images: Tensor,
    labels: Tensor,
    *,
    threads: int,
    started: Callable[[str], object] = lambda step: None,
) -> dict[str, float]:
    """Run every image through each variant.

    Returns:
        ``images``; ``largest``, the largest magnitude of a logit; ``plain``, PyTorch's share of right answers. Of the
        modules ``dynkern``, the same, ``agree``, the share of images on which they answer as PyTorch does, and
        ``difference``, the largest between two logits. Of the engine ``engine``, ``engine_agree`` and
        ``engine_difference``, unless compiling fails: :func:`measure` tells that. Of the engine in integers the same
        with ``engine_int8``, if there are images to calibrate on.
    """
    calls: dict[str, Callable[[Tensor], Tensor]] = {"plain": trained.plain, MODULES: trained.modules}
    with suppress(Exception):
        calls[ENGINE] = trained.engine()
        if trained.seen is not None:
            calls[ENGINE_INT8] = trained.int8()
    outputs: dict[str, list[Tensor]] = {name: [] for name in calls}
    with using_threads(threads), torch.inference_mode():
        for i, chunk in enumerate(images.split(CHUNK)):
            started(f"images {i * CHUNK} to {i * CHUNK + len(chunk)}")
            for name, call in calls.items():
                outputs[name].append(call(chunk))
    logits = {name: torch.cat(parts) for name, parts in outputs.items()}
    plain = logits["plain"]
    found: dict[str, float] = {"images": len(images), "largest": float(plain.abs().max())}
    for name, own in logits.items():
        found[name] = float((own.argmax(1) == labels).double().mean())
    for name, prefix in ((MODULES, ""), (ENGINE, "engine_"), (ENGINE_INT8, "engine_int8_")):
        if name in logits:
            found[f"{prefix}agree"] = float((plain.argmax(1) == logits[name].argmax(1)).double().mean())
            found[f"{prefix}difference"] = float((plain - logits[name]).abs().max())
    return found


def plan(name: str, batches: Sequence[int], threads: Sequence[int]) -> list[Point]:
    """The points at which the network is timed."""
    case = TrainedCase(f"{name}, trained, on real images")
    return [Point(case, FULL, batch, count) for batch in batches for count in threads]


def measure(
    trained: Trained,
    images: Tensor,
    points: Sequence[Point],
    *,
    budget_s: float = BUDGET,
    started: Callable[[Point], object] = lambda point: None,
) -> list[Row]:
    """Check and time every variant on the first images, in turn."""
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
        "eager": lambda: peers.eager(Subject(trained.plain, x), 0),
        MODULES: lambda: peers.eager(Subject(trained.modules, x), 0),
        ENGINE: lambda: engine_call(trained.engine(), x, FULL),
    }
    return Task(variants, network_error(double(trained.plain, x)), network_tolerance(trained.plain), macs, macs)
