"""Ternary convolution in plain PyTorch: the specification that every kernel is tested against."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dynkern.ops.sliced_conv2d.reference import sliced_conv2d
from dynkern.ops.ternary_weight import unpack


def ternary_conv2d(
    x: Tensor,  # (N, active inputs, H, W)
    packed: Tensor,  # (O, ceil(K / 4)) uint8, K = I / groups * kh * kw
    scale: Tensor | None,  # (O,)
    bias: Tensor | None,  # (O,)
    shape: Sequence[int],  # O, I / groups, kh, kw
    geometry: Sequence[int],  # stride (2), padding (top, bottom, left, right), dilation (2)
    groups: int,
    out_channels: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
) -> Tensor:
    """``y = sliced_conv2d(x, scale * unpack(packed), bias)``."""
    weight = unpack(packed, shape, scale).to(x.dtype)
    return sliced_conv2d(x, weight, bias, geometry, groups, out_channels, in_index, out_index)
