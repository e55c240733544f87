"""Ternary linear layer whose activations are quantised to 8 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynkern import _C
from dynkern.ops.gpu import dispatch
from dynkern.ops.library import lib, native, taken
from dynkern.ops.quantize import check_length
from dynkern.ops.ternary_linear import reference
from dynkern.ops.ternary_linear.common import backward, checked_shape, save
from dynkern.ops.ternary_weight import layouts_of

lib.define(
    "ternary_linear_int8(Tensor x, Tensor packed, Tensor? scale, Tensor? bias, SymInt in_features, "
    "SymInt? out_features, Tensor? in_index, Tensor? out_index, float? activation_scale, bool per_row) -> Tensor"
)


def run(
    x: Tensor,
    packed: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    activation_scale: float | None,
    per_row: bool,
    kernel: str = "",
) -> Tensor:
    """One call; ``kernel`` forces one of ``ternary_dense``, ``ternary_lookup`` and ``ternary_short_lists``."""
    where = (out_features, in_index, out_index)
    if isinstance(x, Tensor) and x.is_cuda:  # what is wrong is found below
        return _on_gpu(x, packed, scale, bias, in_features, *where, activation_scale, per_row)
    rest = (*where, activation_scale or 0.0, per_row, torch.get_num_threads(), kernel)
    if packed.is_cpu:
        layouts = layouts_of(packed, (packed.shape[0], in_features))
        y = _C.ternary_linear_int8(x, layouts, packed, scale, bias, *rest)
        if y is not None:
            return y
    # Not what the kernel takes: wrong, or more dimensions, or another memory layout, dtype or device.
    size = checked_shape(x, packed, scale, bias, in_features, *where)
    check_length(in_features)
    if native("ternary_linear", x):
        x = x.reshape(-1, x.shape[-1]).contiguous()
        scale, bias = (None if v is None else v.contiguous() for v in (scale, bias))
        y = _C.ternary_linear_int8(x, layouts, packed.contiguous(), scale, bias, *rest)
        return taken("ternary_linear", y).view(size)
    y = reference.ternary_linear_int8(x, packed, scale, bias, in_features, *where, activation_scale, per_row)
    return y.contiguous()


def _op(x: Tensor, *args: Any) -> Tensor:
    return run(x, *args)


def _checked_shape(x: Tensor, packed: Tensor, scale: Tensor | None, bias: Tensor | None, *rest: Any) -> tuple[int, ...]:
    size = checked_shape(x, packed, scale, bias, *rest)
    check_length(rest[0])
    return size


lib.impl("ternary_linear_int8", _op, "CompositeExplicitAutograd")
_on_gpu = dispatch.register("ternary_linear_int8", _checked_shape, reference.ternary_linear_int8)


@torch.library.register_fake("dynkern::ternary_linear_int8", lib=lib)
def _fake(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(checked_shape(x, *args))


# Rounding passes the gradient straight through.
torch.library.register_autograd("dynkern::ternary_linear_int8", backward, setup_context=save, lib=lib)
