"""Convolution with packed ternary weights; a zero weight costs no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynkern import _C
from dynkern.ops import arguments, shapes
from dynkern.ops.gpu import dispatch, layout
from dynkern.ops.library import autocast, call, lib, native, taken
from dynkern.ops.sliced_conv2d import backward as dense_backward
from dynkern.ops.ternary_conv2d import reference
from dynkern.ops.ternary_weight import TernaryWeight, check_packed, check_weight, lists_of, unpack

lib.define(
    "ternary_conv2d(Tensor x, Tensor packed, Tensor? scale, Tensor? bias, SymInt[4] shape, SymInt[8] geometry, "
    "SymInt groups, SymInt? out_channels, Tensor? in_index, Tensor? out_index)"
    " -> Tensor"
)


def ternary_conv2d(
    x: Tensor,
    weight: TernaryWeight,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    out_channels: int | None = None,
    in_index: Tensor | None = None,
    out_index: Tensor | None = None,
) -> Tensor:
    """2-D convolution with a ternary weight: inputs under +1 are added, those under -1 subtracted, the rest never read.

    ``y[n, o] = bias[o] + scale[o] (sum of x under +1 - sum of x under -1)``; equation 5 of Dordoni et al., MLSP 2024.

    Args:
        x: (N, C, H, W) or (C, H, W), any strides.
        weight: of shape (O, I / groups, kh, kw), see :class:`~dynkern.TernaryWeight`.
        bias: (O,).
        stride, padding, dilation, groups, out_channels, in_index, out_index: as in :func:`sliced_conv2d`; a narrower
            sub-net runs from the one packed weight.

    Returns:
        (N, active outputs, H', W') or (active outputs, H', W'), contiguous (on a GPU channels_last where ``x`` is), of
        the dtype of ``x``. float32 on the CPU, and float32, float16 and bfloat16 on a GPU, run dynkern's kernels; the
        rest runs PyTorch on the unpacked weight, which is logged once.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or range; the message names it.
    """
    check_weight(weight, 4)
    if not isinstance(x, Tensor):
        arguments.check_tensor("x", x, None)
    geometry = arguments.geometry(stride, padding, dilation, weight.shape[2:])
    x = autocast(x, torch.float32)
    if x.dim() == 3:
        return ternary_conv2d(
            x.unsqueeze(0), weight, bias, stride, padding, dilation, groups,
            out_channels=out_channels, in_index=in_index, out_index=out_index,
        ).squeeze(0)  # fmt: skip
    scale, where = weight.scale, (groups, out_channels, in_index, out_index)
    args = (x, weight.packed, scale, bias, weight.shape, geometry, *where)
    op = torch.ops.dynkern.ternary_conv2d
    return call(op, (x, scale, bias), args, _run, _shape, reference.ternary_conv2d)


def _shape(
    x: Tensor, packed: Tensor, scale: Tensor | None, bias: Tensor | None, shape: Sequence[int], *rest: Any
) -> tuple[int, int, int, int]:
    arguments.check_tensor("x", x, 4)
    check_packed(packed, shape, scale)
    if packed.device != x.device:
        raise ValueError(f"weight: expected on {x.device} as x is, got on {packed.device}")
    return shapes.conv2d(x, shape, bias, *rest)


def _run(
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
) -> Tensor:
    where = (groups, out_channels, in_index, out_index)
    if x.is_cuda:
        return _on_gpu(x, packed, scale, bias, shape, geometry, *where)
    if packed.is_cpu:
        threads = torch.get_num_threads()
        lists = lists_of(packed, shape)
        y = _C.ternary_conv2d(x, lists, scale, bias, shape[2], shape[3], geometry, *where, threads)
        if y is not None:
            return y
    # Not what the kernel takes: wrong, or a memory layout that it does not read, or another dtype or device.
    _shape(x, packed, scale, bias, shape, geometry, *where)
    if native("ternary_conv2d", x):
        scale, bias = (None if v is None else v.contiguous() for v in (scale, bias))
        y = _C.ternary_conv2d(x, lists, scale, bias, shape[2], shape[3], geometry, *where, threads)
        return taken("ternary_conv2d", y)
    return reference.ternary_conv2d(x, packed, scale, bias, shape, geometry, *where).contiguous()


lib.impl("ternary_conv2d", _run, "CompositeExplicitAutograd")
_on_gpu = dispatch.register("ternary_conv2d", _shape, reference.ternary_conv2d)


@torch.library.register_fake("dynkern::ternary_conv2d", lib=lib)
def _fake(x: Tensor, *args: Any) -> Tensor:
    shape = _shape(x, *args)
    form = layout.output_format(x)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, packed, scale, _, ctx.shape, ctx.geometry, ctx.groups, ctx.out_channels, in_index, out_index = inputs
    ctx.save_for_backward(x, packed, scale, in_index, out_index)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    """As of the dense convolution; a scale's gradient is that of its weights, summed over their signs."""
    x, packed, scale, in_index, out_index = ctx.saved_tensors
    signs = unpack(packed, ctx.shape, None).to(x.dtype)
    weight = signs if scale is None else signs * scale.to(x.dtype)[:, None, None, None]
    needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.needs_input_grad[3])
    where = (ctx.groups, ctx.out_channels, in_index, out_index)
    grad_x, grad_weight, grad_bias = dense_backward(grad, x, weight, ctx.geometry, *where, needs)
    grad_scale = None if grad_weight is None else (grad_weight * signs).sum((1, 2, 3)).to(torch.float32)
    return grad_x, None, grad_scale, grad_bias, *([None] * 6)


torch.library.register_autograd("dynkern::ternary_conv2d", _backward, setup_context=_save, lib=lib)
