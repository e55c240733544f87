"""Ternary linear layer in plain PyTorch: the specification that every kernel is tested against."""

from __future__ import annotations

from torch import Tensor

from dynkern.ops.sliced_linear.reference import sliced_linear
from dynkern.ops.ternary_weight import unpack


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
