"""Ternary convolution by Triton: what it takes, and the launch of one kernel per call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynkern.ops import arguments, shapes
from dynkern.ops.gpu import configs, layout
from dynkern.ops.gpu.blocks import INTERPRETED
from dynkern.ops.gpu.epilogue import Epilogue
from dynkern.ops.gpu.quantized import quantize_rows
from dynkern.ops.gpu.ternary_codes import codes_for, dense_for
from dynkern.ops.quantize import FLOATS, Activation
from dynkern.ops.sliced_conv2d import triton as dense
from dynkern.ops.sliced_conv2d.triton import DTYPES, NOTHING, window
from dynkern.ops.ternary_conv2d.triton_kernels import ternary_kernel


def why_not(
    x: Tensor,
    packed: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    shape: Sequence[int],
    geometry: arguments.Geometry,
    groups: int,
    out_channels: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    activation: Activation = FLOATS,
) -> str | None:
    """Why PyTorch should run this call; None if the kernel should."""
    where = (groups, out_channels, in_index, out_index)
    if groups > 1 and activation.int8:
        return "groups with int8 activations have no kernel"
    if groups > 1:
        return dense.why_not(x, packed.new_empty(0, dtype=x.dtype).expand(tuple(shape)), bias, geometry, *where)
    found = shapes.conv2d(x, shape, bias, geometry, *where)
    if x.dtype not in DTYPES:
        return f"{x.dtype} has no kernel"
    if math.prod(found) == 0:
        return "nothing to compute"
    if layout.too_large(x, found):
        return "more elements than 32 bits count"
    dtype = torch.int8 if activation.int8 else x.dtype
    row = configs.row_for(configs.device_of(x), _layer(dtype, shape, found, layout.last(x)))
    return None if row.wide is not None else "PyTorch was measured to be faster"


def run(
    x: Tensor,
    packed: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    shape: Sequence[int],
    geometry: arguments.Geometry,
    groups: int,
    out_channels: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    activation: Activation = FLOATS,
    *,
    epilogue: Epilogue = NOTHING,
    config: tuple[configs.Config, int] | None = None,
    op: str = "ternary_conv2d",
) -> Tensor:
    """``epilogue(ternary_conv2d(...))``, the arguments being those of the operator.

    float32 is multiplied exactly, as three bfloat16 numbers. Where ``activation`` says so images are quantised first,
    by a kernel of its own (two where an image is large), and multiplied in whole numbers: the same bits as on the CPU.
    Groups run the dense kernels on the unpacked weight. Index sets run on a compacted copy of the weight, made once.
    ``config`` as in the dense convolution; ``op``: whose rows of the tables to take.
    """
    where = (groups, out_channels, in_index, out_index)
    if groups > 1:
        weight = dense_for(packed, shape, scale, x.dtype)
        return dense.run(x, weight, bias, geometry, *where, epilogue=epilogue, config=config)
    found = shapes.conv2d(x, shape, bias, geometry, *where)
    epilogue.check(found, x)
    x = x if layout.last(x) or x.stride(3) == 1 else x.contiguous()
    last = layout.last(x)
    form = torch.channels_last if last else torch.contiguous_format
    y = torch.empty(found, dtype=x.dtype, device=x.device, memory_format=form)
    if math.prod(found) == 0:
        return y
    residual = None if epilogue.residual is None else epilogue.residual.contiguous(memory_format=form)
    if out_index is not None:
        scale, bias = (None if v is None else v[out_index] for v in (scale, bias))
    scale, bias = (None if v is None else v.contiguous() for v in (scale, bias))
    values, x_scale = quantize_rows(x.contiguous(memory_format=form), activation) if activation.int8 else (x, None)
    outputs, pixels = found[1], found[0] * found[2] * found[3]
    strides = values.stride()
    must = (x.shape[1], outputs, *((strides[0], *strides[2:]) if last else ()))
    aligned = layout.multiples(8, must, (values,))
    if config is None:
        layer = _layer(values.dtype, shape, found, last, op)
        config = configs.pick(configs.row_for(configs.device_of(x), layer), outputs, aligned)
        if config is None:
            raise ValueError("config: expected one for a layer that the tables leave to PyTorch")
    tile, align = config
    quarter = tile.block_k // 4
    codes = codes_for(packed, shape, quarter, in_index, out_index)
    grid = (-(-pixels // tile.block_p) * -(-outputs // tile.block_o),)
    after: dict[str, Any] = {"low": epilogue.low, "high": epilogue.high, "KIND": epilogue.kind}
    ternary_kernel[grid](
        values, x_scale, codes, scale, bias, epilogue.scale, epilogue.shift, residual, y,
        x.shape[1], outputs, codes.shape[2], outputs, pixels, *x.shape[2:], *found[2:], codes.shape[1],
        *window(geometry), *strides, int(aligned),
        KH=shape[2], KW=shape[3], LAST=last, ALIGN=align, SPLIT=values.dtype == torch.float32,
        PACK=pack(x), UPCAST=INTERPRETED and x.dtype != torch.float16,
        BLOCK_P=tile.block_p, BLOCK_O=tile.block_o, QUARTER=quarter,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=not activation.int8, **after,
    )  # fmt: skip
    return y


def pack(x: Tensor) -> int:
    """How many bytes are decoded at once: as many as lie together in the registers of a tensor core's operand."""
    if INTERPRETED:
        return 0
    return 4 if configs.device_of(x).capability < (9, 0) else 2


def _layer(
    dtype: torch.dtype, shape: Sequence[int], found: Sequence[int], last: bool, op: str = "ternary_conv2d"
) -> configs.Layer:
    pixels = found[0] * found[2] * found[3]
    return configs.Layer(
        op, str(dtype).removeprefix("torch."), shape[0], shape[1], math.prod(shape[2:]), pixels, last
    )  # fmt: skip
