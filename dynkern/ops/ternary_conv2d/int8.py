"""Ternary convolution whose activations are quantised to 8 bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynkern import _C
from dynkern.ops import arguments
from dynkern.ops.gpu import dispatch, layout
from dynkern.ops.library import lib, native, taken
from dynkern.ops.quantize import check_length
from dynkern.ops.ternary_conv2d import reference
from dynkern.ops.ternary_conv2d.common import backward, checked_shape, save
from dynkern.ops.ternary_weight import layouts_of

lib.define(
    "ternary_conv2d_int8(Tensor x, Tensor packed, Tensor? scale, Tensor? bias, SymInt[4] shape, SymInt[8] geometry, "
    "SymInt groups, SymInt? out_channels, Tensor? in_index, Tensor? out_index, float? activation_scale, bool per_row)"
    " -> Tensor"
)


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
    activation_scale: float | None,
    per_row: bool,
    kernel: str = "",
) -> Tensor:
    """One call; ``kernel`` forces one of ``ternary_dense``, ``ternary_lookup`` and ``ternary_short_lists``."""
    where = (groups, out_channels, in_index, out_index)
    if x.is_cuda:
        return _on_gpu(x, packed, scale, bias, shape, geometry, *where, activation_scale, per_row)
    how = (activation_scale or 0.0, per_row, torch.get_num_threads(), kernel)
    if packed.is_cpu:
        layouts = layouts_of(packed, shape)
        y = _C.ternary_conv2d_int8(x, layouts, packed, scale, bias, shape[2], shape[3], geometry, *where, *how)
        if y is not None:
            return y
    # Not what the kernel takes: wrong, or a memory layout that it does not read, or another dtype or device.
    checked_shape(x, packed, scale, bias, shape, geometry, *where)
    check_length(math.prod(shape[1:]))
    if native("ternary_conv2d", x):
        scale, bias = (None if v is None else v.contiguous() for v in (scale, bias))
        x, packed = x.contiguous(), packed.contiguous()
        y = _C.ternary_conv2d_int8(x, layouts, packed, scale, bias, shape[2], shape[3], geometry, *where, *how)
        return taken("ternary_conv2d", y)
    y = reference.ternary_conv2d_int8(x, packed, scale, bias, shape, geometry, *where, activation_scale, per_row)
    return y.contiguous()


def _op(x: Tensor, *args: Any) -> Tensor:
    return run(x, *args)


def _checked_shape(x: Tensor, packed: Tensor, scale: Tensor | None, bias: Tensor | None, *rest: Any) -> tuple[int, ...]:
    size = checked_shape(x, packed, scale, bias, *rest)
    check_length(math.prod(rest[0][1:]))
    return size


lib.impl("ternary_conv2d_int8", _op, "CompositeExplicitAutograd")
_on_gpu = dispatch.register("ternary_conv2d_int8", _checked_shape, reference.ternary_conv2d_int8)


@torch.library.register_fake("dynkern::ternary_conv2d_int8", lib=lib)
def _fake(x: Tensor, *args: Any) -> Tensor:
    shape = checked_shape(x, *args)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout.output_format(x))


# Rounding passes the gradient straight through.
torch.library.register_autograd("dynkern::ternary_conv2d_int8", backward, setup_context=save, lib=lib)
