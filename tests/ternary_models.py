"""A small network to make ternary, and the ternary values to expect."""

from __future__ import annotations

from torch import Tensor, nn


def equation_5(weight: Tensor, delta: float) -> Tensor:
    """Ternary values as the paper writes them (Dordoni et al., MLSP 2024)."""
    clipped = weight.detach().clip(-1, 1)
    return (clipped > delta).to(weight.dtype) - (clipped < -delta).to(weight.dtype)


def network() -> nn.Sequential:
    """A convolution, a depthwise one inside another module, and a linear layer, for 8x8 images."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(8 * 36, 10),
    )
