"""Convolution over the active channels of one full weight (equation 1 of Yang & Fan, ASP-DAC 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynkern import _C
from dynkern.ops import arguments, shapes, slices
from dynkern.ops.gpu import dispatch, layout
from dynkern.ops.library import autocast, call, lib, native, taken
from dynkern.ops.sliced_conv2d import reference

lib.define(
    "sliced_conv2d(Tensor x, Tensor weight, Tensor? bias, SymInt[8] geometry, SymInt groups, "
    "SymInt? out_channels, Tensor? in_index, Tensor? out_index) -> Tensor"
)


def sliced_conv2d(
    x: Tensor,
    weight: Tensor,
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
    """2-D convolution that reads only the active channels of ``weight``; nothing is copied or re-packed.

    ``y[n, o] = bias[out(o)] + sum_i weight[out(o), in(i)] * x[n, i]`` (``*``: cross-correlation), where ``in`` and
    ``out`` are the first channels, or the given index sets.

    Args:
        x: (N, C, H, W) or (C, H, W), any strides. C is the number of active input channels.
        weight: (O, I / groups, kh, kw), of the full network.
        bias: (O,), of the full network.
        stride, dilation: an integer or (vertical, horizontal).
        padding: as in :func:`torch.nn.functional.conv2d`, or per side ``((top, bottom), (left, right))``.
        groups: groups of the full network. With ``groups > 1`` a sub-net has fewer groups of the same size: C must be
            a multiple of I / groups, and C / (I / groups) groups run (a depthwise layer runs C of its filters).
        out_channels: how many of the first output channels run; all by default.
        in_index: (C,) int64, the input channel of ``weight`` that each channel of ``x`` is; the first C by default.
            With ``groups > 1`` only for depthwise layers.
        out_index: int64, the output channels to compute, in this order; not together with ``out_channels``.

    Returns:
        (N, active outputs, H', W') or (active outputs, H', W'), contiguous (on a GPU channels_last where ``x`` is), of
        the dtype of ``x``. float32 on the CPU, and float16, bfloat16 and TF32 on a GPU, run dynkern's kernels; the rest
        runs PyTorch on the slice, which is logged once.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or range; the message names it.
    """
    if not isinstance(weight, Tensor) or not isinstance(x, Tensor) or weight.dim() != 4:
        arguments.check_tensor("x", x, None)
        arguments.check_tensor("weight", weight, 4)
    geometry = arguments.geometry(stride, padding, dilation, weight.shape[2:])
    x = autocast(x, weight.dtype)
    if x.dim() == 3:
        return sliced_conv2d(
            x.unsqueeze(0), weight, bias, stride, padding, dilation, groups,
            out_channels=out_channels, in_index=in_index, out_index=out_index,
        ).squeeze(0)  # fmt: skip
    args = (x, weight, bias, geometry, groups, out_channels, in_index, out_index)
    op = torch.ops.dynkern.sliced_conv2d
    return call(op, (x, weight, bias), args, _run, _shape, reference.sliced_conv2d)


def _shape(x: Tensor, weight: Tensor, *rest: Any) -> tuple[int, int, int, int]:
    arguments.check_tensor("x", x, 4)
    arguments.check_tensor("weight", weight, 4, x)
    return shapes.conv2d(x, weight.shape, *rest)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: arguments.Geometry,
    groups: int,
    out_channels: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
) -> Tensor:
    where = (groups, out_channels, in_index, out_index)
    if x.is_cuda:
        return _on_gpu(x, weight, bias, geometry, *where)
    y = _C.sliced_conv2d(x, weight, bias, geometry, *where, torch.get_num_threads())
    if y is not None:
        return y
    # Not what the kernel takes: wrong, or a memory layout that it does not read, or another dtype or device.
    _shape(x, weight, bias, geometry, *where)
    if native("sliced_conv2d", x):
        bias = None if bias is None else bias.contiguous()
        y = _C.sliced_conv2d(x, weight.contiguous(), bias, geometry, *where, torch.get_num_threads())
        return taken("sliced_conv2d", y)
    return reference.sliced_conv2d(x, weight, bias, geometry, *where).contiguous()


lib.impl("sliced_conv2d", _run, "CompositeExplicitAutograd")
_on_gpu = dispatch.register("sliced_conv2d", _shape, reference.sliced_conv2d)


@torch.library.register_fake("dynkern::sliced_conv2d", lib=lib)
def _fake(x: Tensor, *args: Any) -> Tensor:
    shape = _shape(x, *args)
    form = layout.output_format(x)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, _, ctx.geometry, ctx.groups, ctx.out_channels, in_index, out_index = inputs
    ctx.save_for_backward(x, weight, in_index, out_index)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, weight, in_index, out_index = ctx.saved_tensors
    where = (ctx.groups, ctx.out_channels, in_index, out_index)
    return *backward(grad, x, weight, ctx.geometry, *where, ctx.needs_input_grad), *([None] * 5)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: arguments.Geometry,
    groups: int,
    out_channels: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias by PyTorch's own backward on the active slice; what did not run gets zero."""
    channels = x.shape[1]
    rows = slices.conv_rows(weight.shape, channels, groups, out_channels, in_index, out_index)
    columns = slices.conv_columns(channels, groups, in_index)
    top, bottom, left, right = geometry[2:6]
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad,
        torch.nn.functional.pad(x, (left, right, top, bottom)),
        weight[rows][:, columns],
        [grad.shape[1]] if needs[2] else None,
        list(geometry[:2]),
        [0, 0],
        list(geometry[6:]),
        False,
        [0, 0],
        channels // weight.shape[1] if groups > 1 else 1,
        list(needs[:3]),
    )
    if grad_x is not None:
        grad_x = grad_x[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    if grad_weight is not None:
        grad_weight = slices.scatter(weight.shape, grad_weight, rows, columns)
    if grad_bias is not None:
        grad_bias = slices.scatter(weight.shape[:1], grad_bias, rows)
    return grad_x, grad_weight, grad_bias


torch.library.register_autograd("dynkern::sliced_conv2d", _backward, setup_context=_save, lib=lib)
