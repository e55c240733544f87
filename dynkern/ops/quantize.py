"""Activations of 8 bits: how they are scaled, in plain PyTorch."""

from __future__ import annotations

import math
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

# Of smaller magnitudes the inverse is not finite in float32: such rows count as zeros.
LEAST = 1e-30
MOST = 127
# Longer rows do not fit sums of 32 bits or the layouts of the kernels.
LONGEST = 1 << 22


class Activation(NamedTuple):
    """How an operator reads its activations.

    Attributes:
        int8: quantised to 8 bits; everything else is for those.
        scale: what an integer stands for, calibrated; None for the greatest magnitude over 127.
        per_row: one dynamic scale for each row of the batch (of a convolution: each image), not for all of them.
    """

    int8: bool
    scale: float | None = None
    per_row: bool = True


FLOATS = Activation(False)


def read(activation: str, scale: str | float) -> Activation:
    """The arguments ``activation`` and ``activation_scale`` of the ternary operators, checked."""
    if activation not in ("float32", "int8"):
        raise ValueError(f"activation: expected 'float32' or 'int8', got {activation!r}")
    if isinstance(scale, str):
        if scale not in ("row", "tensor"):
            raise ValueError(f"activation_scale: expected 'row', 'tensor' or a number, got {scale!r}")
        return Activation(activation == "int8", None, scale == "row")
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"activation_scale: expected 'row', 'tensor' or a number, got {type(scale).__name__}")
    if not (math.isfinite(scale) and LEAST <= float(scale) <= 1 / LEAST):
        raise ValueError(f"activation_scale: expected a number from {LEAST:g} to {1 / LEAST:g}, got {scale}")
    return Activation(activation == "int8", float(scale), True)


def quantize(x: Tensor, scale: float | None, per_row: bool) -> tuple[Tensor, Tensor]:
    """Whole numbers q within +-127 (in float64) and the float32 scale s of each row, so that x is about s q.

    A row of the batch is ``x[i]``. s = max|x| / 127, and q is the nearest integer of x times the float32 number
    127 / max|x|, ties to even; with a given ``scale`` s is that, and q the nearest of x times 1 / s. A row whose
    dynamic scale would not be finite, and one with NaN, has a scale of NaN.
    """
    x = x.float().flatten(1)
    greatest = x.abs().amax(1) if x.shape[1] else x.new_zeros(x.shape[0])
    if not per_row and len(x):
        greatest = greatest.amax().expand(len(x))
    # torch's own number / tensor multiplies by a rounded reciprocal.
    if scale is None:
        zero = greatest < LEAST
        inverse = torch.where(zero, 0.0, torch.full_like(greatest, MOST).div(greatest))
        scales = torch.where(zero, 0.0, greatest.div(torch.full_like(greatest, MOST)))
        scales = torch.where(greatest.isfinite(), scales, torch.nan)
    else:
        given = torch.full_like(greatest, scale)
        inverse = torch.ones_like(given).div(given)
        scales = torch.where(greatest.isnan(), torch.nan, given)
    q = (x * inverse[:, None]).round().clamp(-MOST, MOST).nan_to_num(nan=-MOST)
    return q.double(), scales


def check_length(size: int) -> None:
    """Refuse weights whose rows are too long for exact sums."""
    if size > LONGEST:
        raise ValueError(f"weight: expected rows of at most {LONGEST} entries with int8 activations, got {size}")
