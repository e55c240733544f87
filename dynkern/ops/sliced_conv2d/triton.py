"""Sliced convolution by Triton: what it takes, and the launch of one kernel per call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dynkern.ops import arguments, shapes
from dynkern.ops.gpu import configs, layout
from dynkern.ops.gpu.blocks import INTERPRETED
from dynkern.ops.gpu.derived import Derived
from dynkern.ops.gpu.epilogue import Epilogue
from dynkern.ops.sliced_conv2d.triton_kernels import conv_kernel, depthwise_kernel

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NOTHING = Epilogue()
_runs: Derived[Tensor | None] = Derived()


def why_not(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: arguments.Geometry,
    groups: int,
    out_channels: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
) -> str | None:
    """Why PyTorch should run this call; None if the kernel should."""
    shape = shapes.conv2d(x, weight.shape, bias, geometry, groups, out_channels, in_index, out_index)
    if x.dtype not in DTYPES:
        return f"{x.dtype} has no kernel"
    if math.prod(shape) == 0:
        return "nothing to compute"
    if layout.too_large(x, shape):
        return "more elements than 32 bits count"
    depthwise = groups > 1 and weight.shape[1] == 1
    if groups > 1 and not depthwise and weight.shape[1] < 16:
        return "groups of fewer than 16 channels leave tensor cores empty"
    if x.dtype == torch.float32 and not depthwise and not torch.backends.cudnn.allow_tf32:
        return "float32 without TF32 does not use tensor cores"
    row = configs.row_for(configs.device_of(x), _layer(x, weight.shape, groups, shape))
    return None if row.wide is not None else "PyTorch was measured to be faster"


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: arguments.Geometry,
    groups: int,
    out_channels: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    *,
    epilogue: Epilogue = NOTHING,
    config: tuple[configs.Config, int] | None = None,
) -> Tensor:
    """``epilogue(sliced_conv2d(...))``, the arguments being those of the operator; float32 is multiplied as TF32.

    ``config`` replaces the choice from the tables: a configuration, and the alignment that the kernel is compiled for.
    """
    shape = shapes.conv2d(x, weight.shape, bias, geometry, groups, out_channels, in_index, out_index)
    epilogue.check(shape, x)
    x = x if layout.last(x) or x.stride(3) == 1 else x.contiguous()
    last = layout.last(x)
    form = torch.channels_last if last else torch.contiguous_format
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)
    if math.prod(shape) == 0:
        return y
    residual = None if epilogue.residual is None else epilogue.residual.contiguous(memory_format=form)
    bias = None if bias is None else bias.contiguous()
    images, channels, height, width = x.shape
    per_group = weight.shape[1]
    outputs = shape[1]
    pixels = images * shape[2] * shape[3]
    active_groups = channels // per_group if groups > 1 else 1
    depthwise = groups > 1 and per_group == 1
    weight, weight_last = _weight(weight, last and not depthwise)
    inputs = per_group if groups > 1 else channels
    strides = (x.stride(0), x.stride(1), x.stride(2), x.stride(3))
    must = (inputs, outputs // active_groups, outputs, per_group, *((strides[0], *strides[2:]) if last else ()))
    aligned = layout.multiples(8, must, (x, weight))
    if config is None:
        row = configs.row_for(configs.device_of(x), _layer(x, weight.shape, groups, shape))
        config = configs.pick(row, outputs // active_groups, aligned)
        if config is None:
            raise ValueError("config: expected one for a layer that the tables leave to PyTorch")
    tile, align = config
    vectors = (bias, epilogue.scale, epilogue.shift, residual, y)
    after: dict[str, Any] = {"low": epilogue.low, "high": epilogue.high, "KIND": epilogue.kind}
    size = {"num_warps": tile.warps, "num_stages": tile.stages}
    if depthwise:
        multiplier = weight.shape[0] // groups
        depthwise_kernel[-(-pixels // tile.block_p) * -(-outputs // tile.block_o),](
            x, weight, *vectors, in_index,
            outputs, pixels, height, width, *shape[2:], multiplier, *window(geometry), *strides,
            KH=weight.shape[2], KW=weight.shape[3], LAST=last, ALIGN=align or 1, SINGLE=multiplier == 1,
            BLOCK_P=tile.block_p, BLOCK_O=tile.block_o,
            **after, **size,
        )  # fmt: skip
        return y
    runs = None if in_index is None else _groups_of_eight(in_index)
    grid = (-(-pixels // tile.block_p) * -(-(outputs // active_groups) // tile.block_o), active_groups)
    conv_kernel[grid](
        x, weight, *vectors, in_index if runs is None else runs, out_index,
        inputs, outputs // active_groups, outputs, pixels, height, width, *shape[2:], per_group,
        *window(geometry), *strides, int(aligned),
        KH=weight.shape[2], KW=weight.shape[3], LAST=last, W_LAST=weight_last, ORDER=order(last, weight_last, align),
        ALIGN=align, IN_GROUP=1 if runs is None else 8,
        PRECISION="tf32" if x.dtype == torch.float32 else "ieee",
        UPCAST=INTERPRETED and x.dtype == torch.bfloat16,
        BLOCK_P=tile.block_p, BLOCK_O=tile.block_o, BLOCK_K=tile.block_k, **after, **size,
    )  # fmt: skip
    return y


def order(last: bool, weight_last: bool, align: int) -> str:
    """How the reduction runs: along what is contiguous, and where channels may be few, without half-empty blocks."""
    if not last and not weight_last:
        return "channel"
    return "tap" if align == 8 else "flat"


def _layer(x: Tensor, weight_shape: Sequence[int], groups: int, shape: Sequence[int]) -> configs.Layer:
    outputs, inputs, tall, wide = weight_shape
    depthwise = groups > 1 and inputs == 1
    op = configs.DEPTHWISE if depthwise else "sliced_conv2d"
    return configs.Layer(
        op, str(x.dtype).removeprefix("torch."), outputs if depthwise else outputs // groups, inputs, tall * wide,
        shape[0] * shape[2] * shape[3], layout.last(x),
    )  # fmt: skip


def _weight(weight: Tensor, prefer_last: bool) -> tuple[Tensor, bool]:
    """The weight in one of the two forms that kernels read, and whether channels come last."""
    plain, last = weight.is_contiguous(), weight.is_contiguous(memory_format=torch.channels_last)
    if last and (prefer_last or not plain):
        return weight, True
    return weight if plain else weight.contiguous(), False


@lru_cache(maxsize=1024)
def window(geometry: arguments.Geometry) -> tuple[int, ...]:
    """Stride, the padding before, dilation; the padding behind follows from the size of the result."""
    return geometry[0], geometry[1], geometry[2], geometry[4], geometry[6], geometry[7]


def _groups_of_eight(in_index: Tensor) -> Tensor | None:
    """Where ``in_index`` is made of runs of eight channels from multiples of eight: those multiples over eight. Kept.

    To find out means to wait for the device, once for each index set.
    """

    def derive() -> Tensor | None:
        if in_index.shape[0] % 8:
            return None
        runs = in_index.unflatten(0, (-1, 8))
        whole = (runs[:, :1] % 8 == 0) & (runs == runs[:, :1] + torch.arange(8, device=in_index.device))
        return (runs[:, 0] // 8).contiguous() if bool(whole.all()) else None

    return _runs.get((in_index,), None, derive)
