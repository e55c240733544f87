"""Ternary training, as in Dordoni et al., MLSP 2024: what makes the weights ternary, and what happens each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dynkern.data.images import Images
from dynkern.nn.dynamic import device_of
from dynkern.nn.ternary import TernaryModule
from dynkern.ternary import SCHEMES, Growth, clamp_, report, set_epoch, ternarize
from dynkern.train.evaluate import accuracy, evaluating
from dynkern.train.loop import Hooks

FLOAT = "float"
GROWTHS = ("fixed", "linear", "square", "exp", "log")
OTHERS = tuple(name for name in SCHEMES if name != "delta")
# Those whose latent weights are kept within [-1, 1].
CLIPPED = (*GROWTHS, *(name for name in OTHERS if SCHEMES[name].clips))
# What a run can be asked for: full precision, the threshold's growth, or another ternariser.
REGIMES = (FLOAT, *GROWTHS, *OTHERS)

# The paper's learning rates by epoch, as shares of the first one; the epoch in which its threshold reaches the cap.
_SHARES = {0: 1.0, 101: 0.2, 142: 0.1, 184: 0.02, 220: 0.002}
_CAP_EPOCH = 68
PAPER_EPOCHS = 500
# The last rate is so low that nothing changes any more: a shorter run leaves out what comes after this epoch.
_LAST_EPOCH = 240


def learning_rates(lr: float, epochs: int) -> dict[int, float]:
    """The paper's regime for a run of ``epochs``: rates by the number of epochs passed, as a recipe takes them.

    With 500 epochs or more it is that of section 4.1 (``lr`` being 5e-3 there); a shorter run goes through its first
    240 epochs faster, since those after them have a rate of 1e-5.
    """
    pace = epochs / _LAST_EPOCH if epochs < PAPER_EPOCHS else 1.0
    # Where two steps fall into one epoch the later one holds.
    return {round(epoch * pace): lr * share for epoch, share in _SHARES.items() if round(epoch * pace) < epochs}


def cap_epoch(epochs: int) -> int:
    """The epoch in which the threshold reaches its cap by default: as the paper's log regime, epoch 68 of 500."""
    pace = epochs / _LAST_EPOCH if epochs < PAPER_EPOCHS else 1.0
    return max(2, round(_CAP_EPOCH * pace))


@dataclass(frozen=True)
class Regime:
    """How the weights of one run become ternary.

    Attributes:
        name: one of :data:`REGIMES`.
        growth: the threshold, for those that grow; None for the others.
        spread: the latent weights start evenly spread over +-this; None leaves the network's own start.
    """

    name: str
    growth: Growth | None = None
    spread: float | None = None

    def __post_init__(self) -> None:
        if self.name not in REGIMES:
            raise ValueError(f"regime: expected one of {list(REGIMES)}, got {self.name!r}")
        if (self.growth is not None) != (self.name in GROWTHS):
            raise ValueError(f"growth: expected one for {list(GROWTHS)} alone, got {self.growth} for {self.name!r}")
        if self.spread is not None and not 0 < self.spread <= 1:
            raise ValueError(f"spread: expected above 0 and at most 1, got {self.spread}")

    @property
    def ternary(self) -> bool:
        """False for full precision."""
        return self.name != FLOAT

    def prepare(self, net: nn.Module) -> nn.Module:
        """Make ``net`` ternary (or not), in place; before it is trained."""
        if not self.ternary:
            return net
        if self.spread is not None:
            with torch.no_grad():
                for layer in net.modules():
                    if isinstance(layer, (nn.Conv2d, nn.Linear)):
                        layer.weight.uniform_(-self.spread, self.spread)
        if self.growth is None:
            return ternarize(net, scheme=self.name)
        return ternarize(net, self.growth)


def ternary_hooks(net: nn.Module, test: Images | None = None) -> Hooks:
    """The threshold of each epoch, the clipping after each step, and the figures of section 4.2 after each epoch.

    Args:
        net: ternary, or not: then only the accuracy is taken.
        test: what the accuracy is taken on; None leaves it out.

    Returns:
        Hooks for :func:`dynkern.train.fit`. The records get ``test_accuracy``, ``delta``, ``sparsity``, ``entropy``
        (bits per weight), ``packed_bytes`` and ``coded_bytes``.
    """
    layers = [module for module in net.modules() if isinstance(module, TernaryModule)]

    def before_epoch(epoch: int) -> None:
        if layers:
            set_epoch(net, epoch)

    def after_step() -> None:
        if layers:
            clamp_(net)

    def after_epoch(epoch: int) -> Mapping[str, Any]:
        found: dict[str, Any] = {}
        if test is not None:
            with evaluating(net):
                found["test_accuracy"] = accuracy(net, test, device=device_of(net))
        if layers:
            total = report(net).total
            found |= {"sparsity": total.counts.sparsity, "entropy": total.counts.entropy}
            found |= {"packed_bytes": total.packed_bytes, "coded_bytes": total.coded_bytes}
            if any(layer.growth is not None for layer in layers):
                found["delta"] = max(layer.delta for layer in layers)
        return found

    return Hooks(before_epoch, after_step, after_epoch)


def best_epoch(history: list[dict[str, Any]]) -> int:
    """The epoch of the best test accuracy, the first of several: the paper's "training speed"."""
    accuracies = [record["test_accuracy"] for record in history]
    return accuracies.index(max(accuracies)) + 1
