"""Sliced linear layer in plain PyTorch: the specification that every kernel is tested against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sliced_linear(
    x: Tensor,  # (..., active inputs)
    weight: Tensor,  # (O, I), the full one
    bias: Tensor | None,  # (O,)
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
) -> Tensor:
    """``y = x @ weight[out][:, in].T + bias[out]``: the sub-net's slice of one full layer."""
    rows = slice(0, out_features) if out_index is None else out_index
    columns = slice(0, x.shape[-1]) if in_index is None else in_index
    return F.linear(x, weight[rows][:, columns], None if bias is None else bias[rows])
