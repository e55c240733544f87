"""What a training loop calls: the threshold of an epoch, the clipping of the latent weights, the sparsity reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from dynkern.nn.packed import PackedTernary
from dynkern.nn.ternary import TernaryModule
from dynkern.ops.ternary_weight import entropy


def set_epoch(net: nn.Module, epoch: int) -> float:
    """Move the threshold of every ternary layer to that of ``epoch`` (equation 7 of Dordoni et al., MLSP 2024).

    Call it at the start of each epoch, the first being 1. A layer whose threshold is fixed keeps it. The cost is that
    of writing one number per layer; compiled code is not compiled again.

    Returns:
        The threshold; the largest where the layers differ.

    Raises:
        ValueError: ``net`` has no ternary layer, or ``epoch`` is out of range.
        TypeError: ``epoch`` is not an integer.
    """
    layers = _ternary(net)
    deltas = {growth: growth(epoch) for growth in {layer.growth for layer in layers} if growth is not None}
    for layer in layers:
        if layer.growth is not None:
            layer.delta = deltas[layer.growth]
    return max(layer.delta for layer in layers)


@torch.no_grad()
def clamp_(net: nn.Module) -> None:
    """Clip the latent weights of every ternary layer to [-1, 1], in place; call it after each optimiser step.

    Section 3.1 of Dordoni et al., as in BinaryNet. With it no weight is ever in the saturated range of equation 2, and
    the gradient is that of the identity. Layers whose scheme does not clip (TWN, TTQ, EC2T) are left as they are.

    Raises:
        ValueError: ``net`` has no ternary layer.
    """
    for layer in _ternary(net):
        if layer.scheme.clips:
            layer.weight.clamp_(-1, 1)


@dataclass(frozen=True)
class Counts:
    """How many weights are -1, 0 and +1."""

    minus: int
    zero: int
    plus: int

    @property
    def weights(self) -> int:
        """How many weights there are."""
        return self.minus + self.zero + self.plus

    @property
    def sparsity(self) -> float:
        """The share of zeros, 0 to 1."""
        return self.zero / self.weights

    @property
    def entropy(self) -> float:
        """Bits per weight of the empirical distribution, 0 to log2(3)."""
        return entropy((self.minus, self.zero, self.plus))


@dataclass(frozen=True)
class Stats:
    """The counts of each ternary layer under its qualified name, and those of the whole network."""

    layers: Mapping[str, Counts]
    total: Counts


@torch.no_grad()
def stats(net: nn.Module) -> Stats:
    """Sparsity and entropy per layer and in total, of the full network; the layers may be ternary or packed.

    Biases, batch norms and layers that are not ternary do not count (as in Dordoni et al., table 2).

    Raises:
        ValueError: ``net`` has no ternary layer, or a latent weight is NaN.
    """
    layers = {}
    for name, layer in net.named_modules():
        if isinstance(layer, PackedTernary):
            layers[name] = Counts(*layer.weight.counts)
        elif isinstance(layer, TernaryModule):
            layers[name] = Counts(*layer.packed_weight().counts)
    if not layers:
        raise ValueError("net: expected ternary layers (see dynkern.ternarize), found none")
    total = Counts(*(sum(getattr(c, part) for c in layers.values()) for part in ("minus", "zero", "plus")))
    return Stats(layers, total)


def _ternary(net: nn.Module) -> list[TernaryModule]:
    layers = [module for module in net.modules() if isinstance(module, TernaryModule)]
    if not layers:
        raise ValueError("net: expected ternary layers (see dynkern.ternarize), found none")
    return layers
