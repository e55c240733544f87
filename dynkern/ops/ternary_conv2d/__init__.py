"""Convolution with packed ternary weights; a zero weight costs no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynkern import _C
from dynkern.ops import arguments, quantize
from dynkern.ops.gpu import dispatch, layout
from dynkern.ops.library import autocast, call, lib, native, taken
from dynkern.ops.ternary_conv2d import int8, reference
from dynkern.ops.ternary_conv2d.common import backward, checked_shape, save
from dynkern.ops.ternary_weight import TernaryWeight, check_weight, lists_of

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
    activation: str = "float32",
    activation_scale: str | float = "row",
) -> Tensor:
    """2-D convolution with a ternary weight: inputs under +1 are added, those under -1 subtracted, the rest never read.

    ``y[n, o] = bias[o] + scale[o] (sum of x under +1 - sum of x under -1)``; equation 5 of Dordoni et al., MLSP 2024.
    A weight with a ``scale_minus`` runs as its two parts, in two calls.

    Args:
        x: (N, C, H, W) or (C, H, W), any strides.
        weight: of shape (O, I / groups, kh, kw), see :class:`~dynkern.TernaryWeight`.
        bias: (O,).
        stride, padding, dilation, groups, out_channels, in_index, out_index: as in :func:`sliced_conv2d`; a narrower
            sub-net runs from the one packed weight.
        activation: ``"float32"``, or ``"int8"``: ``x`` is quantised to whole numbers q within +-127 and a scale s, sums
            are exact integers, and every instruction set gives the same bits (:func:`dynkern.ops.quantize.quantize`):
            ``y = bias + (scale[o] s) (sum of q under +1 - sum of q under -1)``.
        activation_scale: what one step of q stands for: ``"row"``, from the greatest magnitude of each image of the
            batch; ``"tensor"``, from that of all of ``x``; or a calibrated number.

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
            activation=activation, activation_scale=activation_scale,
        ).squeeze(0)  # fmt: skip
    if weight.scale_minus is not None:
        plus, minus = weight.parts()
        rest: dict[str, Any] = {"out_channels": out_channels, "in_index": in_index, "out_index": out_index}
        rest |= {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        rest |= {"activation": activation, "activation_scale": activation_scale}
        return ternary_conv2d(x, plus, bias, **rest) + ternary_conv2d(x, minus, **rest)
    scale, where = weight.scale, (groups, out_channels, in_index, out_index)
    args = (x, weight.packed, scale, bias, weight.shape, geometry, *where)
    how = quantize.read(activation, activation_scale)
    if how.int8:
        op = torch.ops.dynkern.ternary_conv2d_int8
        return call(
            op,
            (x, scale, bias),
            (*args, how.scale, how.per_row),
            int8.run,
            checked_shape,
            reference.ternary_conv2d_int8,
        )
    op = torch.ops.dynkern.ternary_conv2d
    return call(op, (x, scale, bias), args, _run, checked_shape, reference.ternary_conv2d)


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
    checked_shape(x, packed, scale, bias, shape, geometry, *where)
    if native("ternary_conv2d", x):
        scale, bias = (None if v is None else v.contiguous() for v in (scale, bias))
        y = _C.ternary_conv2d(x, lists, scale, bias, shape[2], shape[3], geometry, *where, threads)
        return taken("ternary_conv2d", y)
    return reference.ternary_conv2d(x, packed, scale, bias, shape, geometry, *where).contiguous()


lib.impl("ternary_conv2d", _run, "CompositeExplicitAutograd")
_on_gpu = dispatch.register("ternary_conv2d", checked_shape, reference.ternary_conv2d)


@torch.library.register_fake("dynkern::ternary_conv2d", lib=lib)
def _fake(x: Tensor, *args: Any) -> Tensor:
    shape = checked_shape(x, *args)
    form = layout.output_format(x)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)


torch.library.register_autograd("dynkern::ternary_conv2d", backward, setup_context=save, lib=lib)
