"""Sliced convolution in plain PyTorch: the specification that every kernel is tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from dynkern.ops import slices


def sliced_conv2d(
    x: Tensor,  # (N, active inputs, H, W)
    weight: Tensor,  # (O, I / groups, kh, kw), the full one
    bias: Tensor | None,  # (O,)
    geometry: Sequence[int],  # stride (2), padding (top, bottom, left, right), dilation (2)
    groups: int,
    out_channels: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
) -> Tensor:
    """``y = conv2d(pad(x), weight[out][:, in], bias[out])``: the sub-net's slice of one full convolution."""
    channels = x.shape[1]
    rows = slices.conv_rows(weight.shape, channels, groups, out_channels, in_index, out_index)
    active = weight[rows][:, slices.conv_columns(channels, groups, in_index)]
    bias = None if bias is None else bias[rows]
    stride, (top, bottom, left, right), dilation = tuple(geometry[:2]), geometry[2:6], tuple(geometry[6:])
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, active, bias, stride, 0, dilation, channels // weight.shape[1] if groups > 1 else 1)
