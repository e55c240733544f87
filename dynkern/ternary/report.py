"""What a ternary network costs in bits, layer by layer, and how its latent weights are spread."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynkern.nn.packed import PackedTernary
from dynkern.nn.ternary import TernaryModule
from dynkern.ops.ternary_weight import TernaryWeight
from dynkern.ternary.training import Counts

FLOAT_BYTES = 4


@dataclass(frozen=True)
class LayerReport:
    """One ternary layer, or all together.

    Attributes:
        name: its qualified name; ``"total"`` for all.
        counts: how many weights are -1, 0 and +1.
        packed_bytes: of the codes of 2 bits and the scales.
        coded_bytes: the least that a code for single weights can do, their entropy, and the scales.
    """

    name: str
    counts: Counts
    packed_bytes: int
    coded_bytes: int

    @property
    def float_bytes(self) -> int:
        """Of the weights in float32."""
        return FLOAT_BYTES * self.counts.weights

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        found = {"sparsity": self.counts.sparsity, "entropy": self.counts.entropy, "float_bytes": self.float_bytes}
        return {**asdict(self), **found}


@dataclass(frozen=True)
class Report:
    """The ternary layers of a network, and all of them together."""

    layers: tuple[LayerReport, ...]
    total: LayerReport

    def __str__(self) -> str:
        """A table."""
        head = ("layer", "weights", "zeros", "bits/weight", "float32", "packed", "entropy bound")
        rows = [head, *map(_cells, (*self.layers, self.total))]
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(_aligned(row, wide)).rstrip() for row in rows)


@torch.no_grad()
def report(net: nn.Module) -> Report:
    """Zeros, entropy and bytes of each ternary (or packed) layer and in total; see :func:`dynkern.ternary.stats`.

    Raises:
        ValueError: ``net`` has no ternary layer, or a latent weight is NaN.
    """
    layers = []
    for name, layer in net.named_modules():
        if isinstance(layer, (PackedTernary, TernaryModule)):
            weight = layer.weight if isinstance(layer, PackedTernary) else layer.packed_weight()
            layers.append(_layer(name, weight))
    if not layers:
        raise ValueError("net: expected ternary layers (see dynkern.ternarize), found none")
    counts = Counts(*(sum(getattr(layer.counts, part) for layer in layers) for part in ("minus", "zero", "plus")))
    sizes = (sum(getattr(layer, part) for layer in layers) for part in ("packed_bytes", "coded_bytes"))
    return Report(tuple(layers), LayerReport("total", counts, *sizes))


@dataclass(frozen=True)
class Histogram:
    """How many latent weights lie in each of equal bins (figure 1 of Dordoni et al., MLSP 2024).

    Attributes:
        edges: of the bins, one more than there are bins.
        weights: in each bin. What lies outside is in the first and last one.
        counts: how many weights are -1, 0 and +1.
    """

    edges: tuple[float, ...]
    weights: tuple[int, ...]
    counts: Counts

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@torch.no_grad()
def histogram(net: nn.Module, bins: int = 80, low: float = -1.0, high: float = 1.0) -> Histogram:
    """The latent weights of all ternary layers, in ``bins`` bins from ``low`` to ``high``.

    Raises:
        ValueError: ``net`` has no layer with latent weights, one of them is NaN, or there is no such range.
    """
    if bins < 1 or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"bins: expected 1 or more between low < high, got {bins} from {low} to {high}")
    layers = [module for module in net.modules() if isinstance(module, TernaryModule)]
    if not layers:
        raise ValueError("net: expected ternary layers with latent weights, found none")
    found = torch.zeros(bins, dtype=torch.int64)
    for layer in layers:
        place = ((layer.weight.detach().double().cpu() - low) * (bins / (high - low))).floor()
        found += torch.bincount(place.clamp(0, bins - 1).long().flatten(), minlength=bins)
    edges = tuple(low + (high - low) * i / bins for i in range(bins + 1))
    return Histogram(edges, tuple(found.tolist()), report(net).total.counts)


def _layer(name: str, weight: TernaryWeight) -> LayerReport:
    counts = Counts(*weight.counts)
    scales: list[Tensor] = [s for s in (weight.scale, weight.scale_minus) if s is not None]
    coded = math.ceil(counts.weights * counts.entropy / 8) + sum(s.nbytes for s in scales)
    return LayerReport(name, counts, weight.nbytes, coded)


def _cells(layer: LayerReport) -> tuple[str, ...]:
    sizes = (f"{n:,}" for n in (layer.float_bytes, layer.packed_bytes, layer.coded_bytes))
    return (
        layer.name,
        f"{layer.counts.weights:,}",
        f"{layer.counts.sparsity:.2%}",
        f"{layer.counts.entropy:.4f}",
        *sizes,
    )


def _aligned(row: tuple[str, ...], wide: list[int]) -> list[str]:
    return [text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(row, wide, strict=True))]
