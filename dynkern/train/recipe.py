"""What a run trains with: all that its result follows from, besides network, data and loss."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynkern.train.schedule import Schedule, constant, one_cycle, steps

OPTIMIZERS = ("sgd", "adam")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """Optimiser, learning rates, precision and seed of one run.

    Attributes:
        epochs: passes over the images.
        lr: the (largest) learning rate.
        schedule: ``"one_cycle"``, ``"constant"``, or rates by the number of epochs passed, ``{0: 0.1, 80: 0.01}``.
        warmup: the share of a one-cycle run in which the rate goes up.
        optimizer: ``"sgd"`` (with Nesterov's momentum) or ``"adam"``.
        momentum: of SGD.
        weight_decay: of weights; biases and batch norms (all vectors) have none.
        precision: ``"float32"``, or ``"bfloat16"`` for autocast of what gains by it.
        channels_last: keep images as NHWC in memory, which convolutions of few channels gain by.
        seed: of order and augmentation, dropout and whatever else draws random numbers.

    Raises:
        ValueError: an attribute is out of range; the message names it.
    """

    epochs: int = 12
    lr: float = 0.1
    schedule: str | Mapping[int, float] = "one_cycle"
    warmup: float = 0.25
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    precision: str = "bfloat16"
    channels_last: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 1:
            raise ValueError(f"epochs: expected an integer of 1 or more, got {self.epochs!r}")
        for name, known in (("optimizer", OPTIMIZERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {list(known)}, got {getattr(self, name)!r}")
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 or more and below 1, got {getattr(self, name)}")
        if not isinstance(self.schedule, Mapping) and self.schedule not in ("one_cycle", "constant"):
            raise ValueError(f"schedule: expected 'one_cycle', 'constant' or rates by epoch, got {self.schedule!r}")
        self.rates()

    def rates(self) -> Schedule:
        """The learning rate as a function of the epochs passed."""
        if isinstance(self.schedule, Mapping):
            return steps(self.schedule)
        if self.schedule == "constant":
            return constant(self.lr)
        return one_cycle(self.lr, self.epochs, self.warmup)

    def optimiser(self, net: nn.Module) -> torch.optim.Optimizer:
        """An optimiser of what can be trained in ``net``; ``ValueError`` if there is nothing."""
        trained = [p for p in net.parameters() if p.requires_grad]
        if not trained:
            raise ValueError("net: expected parameters that require a gradient, found none")
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        if self.optimizer == "adam":
            return torch.optim.Adam(groups, self.lr)
        return torch.optim.SGD(groups, self.lr, self.momentum, nesterov=self.momentum > 0)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context that a training step runs in."""
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()

    def placed(self, images: Tensor, device: torch.device) -> Tensor:
        """``images`` (N, C, H, W) on ``device``, in the memory format of this recipe."""
        form = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.to(device, non_blocking=True, memory_format=form)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for checkpoints and reports."""
        return {**asdict(self), "schedule": self.schedule if isinstance(self.schedule, str) else dict(self.schedule)}
