"""Ternary convolution in plain PyTorch: the specification that every kernel is tested against."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dynkern.ops import slices
from dynkern.ops.quantize import quantize
from dynkern.ops.sliced_conv2d.reference import sliced_conv2d
from dynkern.ops.ternary_weight import unpack, unpack_signs


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


def ternary_conv2d_int8(
    x: Tensor,  # (N, active inputs, H, W)
    packed: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    shape: Sequence[int],
    geometry: Sequence[int],
    groups: int,
    out_channels: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    activation_scale: float | None,
    per_row: bool,
) -> Tensor:
    """``y = (scale s) conv2d(q, signs) + bias`` in float32, q and s from :func:`dynkern.ops.quantize.quantize`."""
    q, s = quantize(x, activation_scale, per_row)
    signs = unpack_signs(packed, shape).double()
    where = (groups, out_channels, in_index, out_index)
    sums = sliced_conv2d(q.view(x.shape), signs, None, geometry, *where)  # whole numbers below 2^53: exact
    rows = slices.conv_rows(tuple(shape), x.shape[1], *where)
    s = s[:, None, None, None]
    y = sums.float() * (s if scale is None else s * scale[rows][:, None, None])
    return (y if bias is None else y + bias[rows][:, None, None]).to(x.dtype)
