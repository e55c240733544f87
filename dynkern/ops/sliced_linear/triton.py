"""Sliced linear layer by Triton: a 1x1 convolution on one image of one pixel per row of x."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from dynkern.ops.gpu import configs, layout
from dynkern.ops.gpu.epilogue import Epilogue
from dynkern.ops.sliced_conv2d.triton import DTYPES, NOTHING
from dynkern.ops.sliced_conv2d.triton import run as run_conv2d

POINT = (1, 1, 0, 0, 0, 0, 1, 1)


def why_not(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
) -> str | None:
    """Why PyTorch should run this call; None if the kernel should."""
    outputs = out_features or (weight.shape[0] if out_index is None else out_index.shape[0])
    if x.dtype not in DTYPES:
        return f"{x.dtype} has no kernel"
    if x.numel() == 0:
        return "nothing to compute"
    if in_index is None and out_index is None:
        return "cuBLAS reads a slice of the first features where it lies"
    if layout.too_large(x, (x.numel() // x.shape[-1], outputs)):
        return "more elements than 32 bits count"
    if x.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32:
        return "float32 without TF32 does not use tensor cores"
    return None


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    *,
    epilogue: Epilogue = NOTHING,
    config: tuple[configs.Config, int] | None = None,
) -> Tensor:
    """``epilogue(sliced_linear(...))``; the residual is (..., outputs). Otherwise as of the convolution."""
    rows = as_pixels(x)
    y = run_conv2d(
        rows, weight[:, :, None, None], bias, POINT, 1, out_features, in_index, out_index,
        epilogue=with_pixels(epilogue), config=config,
    )  # fmt: skip
    return from_pixels(y, x)


def as_pixels(x: Tensor) -> Tensor:
    """(..., C) as (rows, C, 1, 1), channels last."""
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    count, channels = rows.shape
    return rows.as_strided((count, channels, 1, 1), (rows.stride(0), 1, channels, channels))


def from_pixels(y: Tensor, x: Tensor) -> Tensor:
    """(rows, O, 1, 1) as (..., O), of the leading dimensions of ``x``."""
    return y[:, :, 0, 0].reshape(*x.shape[:-1], y.shape[1])


def with_pixels(epilogue: Epilogue) -> Epilogue:
    """``epilogue`` of a linear layer as that of the convolution on :func:`as_pixels`."""
    r = epilogue.residual
    return epilogue if r is None else dataclasses.replace(epilogue, residual=as_pixels(r))
