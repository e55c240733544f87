"""Activations as int8 on a GPU, as on the CPU (:mod:`dynkern.ops.quantize`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynkern.ops import quantize
from dynkern.ops.quantize import LEAST, MOST, Activation

# Numbers that one program reads at once. Always the same, so that no width needs a variant of its own.
PIECE, WARPS = 8192, 8

try:
    from dynkern.ops.gpu.triton_kernels import greatest_kernel, quantize_kernel
except ImportError:  # no Triton: PyTorch's operators do the same
    greatest_kernel = quantize_kernel = None


def quantize_rows(x: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """q (int8, of the shape of ``x`` and contiguous) and s (N,), so that x[i] is about s[i] q[i].

    ``x`` (N, ...) must be dense: its numbers lie in N whole pieces of memory. The result lies as ``x`` does, and is bit
    for bit that of :func:`dynkern.ops.quantize.quantize`.
    """
    values = torch.empty_like(x, dtype=torch.int8)
    scale = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    count, row = x.shape[0], math.prod(x.shape[1:])
    if quantize_kernel is None:
        q, scale = quantize.quantize(x, activation.scale, activation.per_row)
        return values.copy_(q.view(x.shape)), scale
    pieces = -(-row // PIECE)
    greatest = None
    size = {"num_warps": WARPS, "num_stages": 1}
    if pieces > 1 or not activation.per_row:
        greatest = torch.empty(count, pieces, dtype=torch.float32, device=x.device)
        greatest_kernel[(count, pieces)](x, greatest, row, PIECE=PIECE, **size)
    quantize_kernel[(count, pieces)](
        x, greatest, values, scale, row, pieces, count, activation.scale or 0.0,
        PIECE=PIECE, PER_ROW=activation.per_row, DYNAMIC=activation.scale is None, LEAST=LEAST, MOST=float(MOST),
        enable_fp_fusion=False, **size,
    )  # fmt: skip
    return values, scale
