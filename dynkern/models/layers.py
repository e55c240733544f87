"""What the networks share: checked options, convolutions, initialisation."""

from __future__ import annotations

import math

from torch import nn


def check_width(width: float) -> float:
    """``width`` if it is a finite number above zero."""
    if isinstance(width, bool) or not isinstance(width, (int, float)):
        raise TypeError(f"width: expected a number, got {type(width).__name__}")
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width: expected a finite number above 0, got {width}")
    return width


def check_count(name: str, value: int) -> int:
    """``value`` if it is an integer above zero."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected 1 or more, got {value}")
    return value


def check_shortcut(shortcut: str, allowed: tuple[str, ...]) -> str:
    """``shortcut`` if it is one of ``allowed``."""
    if shortcut not in allowed:
        raise ValueError(f"shortcut: expected one of {list(allowed)}, got {shortcut!r}")
    return shortcut


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution that keeps the size at stride 1; no bias, since a batch norm follows."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """1x1 convolution and batch norm that bring a shortcut to the shape of its block."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
