"""Batches of a data set in memory, in an order that follows from the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dynkern.data.augment import CROP_AND_FLIP, Augment
from dynkern.data.cifar import normalize
from dynkern.data.images import Images


@dataclass(frozen=True)
class Stream:
    """Shuffled, augmented and normalised batches to train on.

    Attributes:
        data: the images.
        batch: images per step, of all processes together.
        augment: how images are changed; None leaves them alone.
        seed: what order, crops and mirror images follow from, together with the epoch.
        rank, processes: this is process ``rank`` of ``processes``, each of which gets an equal part of every batch.

    Raises:
        ValueError: ``batch`` is below 1, not a multiple of ``processes``, or larger than the data set; or ``rank`` is
            not below ``processes``.
    """

    data: Images
    batch: int = 128
    augment: Augment | None = CROP_AND_FLIP
    seed: int = 0
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.batch <= len(self.data):
            raise ValueError(f"batch: expected 1 to {len(self.data)}, the number of images, got {self.batch}")
        if self.processes < 1 or self.batch % self.processes:
            raise ValueError(f"batch: expected a multiple of {self.processes}, the processes, got {self.batch}")
        if not 0 <= self.rank < self.processes:
            raise ValueError(f"rank: expected 0 to {self.processes - 1}, got {self.rank}")

    @property
    def steps(self) -> int:
        """Batches per epoch; images that fill no batch sit the epoch out."""
        return len(self.data) // self.batch

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch: (N, 3, H, W) float32, normalised, and labels (N,) int64."""
        generator = torch.Generator().manual_seed(mixed(self.seed, number))
        order = torch.randperm(len(self.data), generator=generator)
        own = self.batch // self.processes
        for chosen in order.split(self.batch)[: self.steps]:
            changes = None if self.augment is None else self.augment.draw(self.batch, generator)
            part = slice(self.rank * own, (self.rank + 1) * own)
            images, labels = self.data.images[chosen[part]], self.data.labels[chosen[part]]
            if self.augment is not None and changes is not None:
                images = self.augment.apply(images, changes[0][part], changes[1][part])
            yield normalize(images), labels


def mixed(seed: int, epoch: int) -> int:
    """One seed for each seed and epoch."""
    return (seed * 1_000_003 + epoch) % 2**63
