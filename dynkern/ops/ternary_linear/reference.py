"""Ternary linear layer in plain PyTorch: the specification that every kernel is tested against."""

from __future__ import annotations

from torch import Tensor

from dynkern.ops.quantize import quantize
from dynkern.ops.sliced_linear.reference import sliced_linear
from dynkern.ops.ternary_weight import unpack, unpack_signs


def ternary_linear(
    x: Tensor,  # (..., active inputs)
    packed: Tensor,  # (O, ceil(I / 4)) uint8
    scale: Tensor | None,  # (O,)
    bias: Tensor | None,  # (O,)
    in_features: int,
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
) -> Tensor:
    """``y = sliced_linear(x, scale * unpack(packed), bias)``."""
    weight = unpack(packed, (packed.shape[0], in_features), scale).to(x.dtype)
    return sliced_linear(x, weight, bias, out_features, in_index, out_index)


def ternary_linear_int8(
    x: Tensor,  # (..., active inputs)
    packed: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    activation_scale: float | None,
    per_row: bool,
) -> Tensor:
    """``y = (scale s) (q @ signs.T) + bias`` in float32, q and s from :func:`dynkern.ops.quantize.quantize`."""
    q, s = quantize(x.reshape(-1, x.shape[-1]), activation_scale, per_row)
    signs = unpack_signs(packed, (packed.shape[0], in_features)).double()
    sums = sliced_linear(q, signs, None, out_features, in_index, out_index)  # whole numbers below 2^53: exact
    rows = slice(0, sums.shape[1]) if out_index is None else out_index
    y = sums.float() * (s[:, None] if scale is None else s[:, None] * scale[rows])
    y = y if bias is None else y + bias[rows]
    return y.reshape(*x.shape[:-1], y.shape[1]).to(x.dtype)
