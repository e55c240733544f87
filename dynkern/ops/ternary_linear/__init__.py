"""Linear layer with packed ternary weights; a zero weight costs no arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynkern import _C
from dynkern.ops import arguments, shapes
from dynkern.ops.gpu import dispatch
from dynkern.ops.library import autocast, call, lib, native, taken
from dynkern.ops.sliced_linear import backward as dense_backward
from dynkern.ops.ternary_linear import reference
from dynkern.ops.ternary_weight import TernaryWeight, check_packed, check_weight, lists_of, unpack

lib.define(
    "ternary_linear(Tensor x, Tensor packed, Tensor? scale, Tensor? bias, SymInt in_features, SymInt? out_features, "
    "Tensor? in_index, Tensor? out_index) -> Tensor"
)


def ternary_linear(
    x: Tensor,
    weight: TernaryWeight,
    bias: Tensor | None = None,
    *,
    out_features: int | None = None,
    in_index: Tensor | None = None,
    out_index: Tensor | None = None,
) -> Tensor:
    """Linear layer with a ternary weight: inputs under +1 are added, those under -1 subtracted, the rest never read.

    ``y[..., o] = bias[o] + scale[o] (sum of x under +1 - sum of x under -1)``; equation 5 of Dordoni et al., MLSP
    2024.

    Args:
        x: (..., C), any strides.
        weight: of shape (O, I), see :class:`~dynkern.TernaryWeight`.
        bias: (O,).
        out_features, in_index, out_index: as in :func:`sliced_linear`; a narrower sub-net runs from the one
            packed weight.

    Returns:
        (..., active outputs), contiguous, of the dtype of ``x``. float32 on the CPU, and float32, float16 and bfloat16
        on a GPU, run dynkern's kernels; the rest runs PyTorch on the unpacked weight, which is logged once.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or range; the message names it.
    """
    check_weight(weight, 2)
    x = autocast(x, torch.float32)
    args = (x, weight.packed, weight.scale, bias, weight.shape[1], out_features, in_index, out_index)
    op = torch.ops.dynkern.ternary_linear
    return call(op, (x, weight.scale, bias), args, _run, _shape, reference.ternary_linear)


def _shape(
    x: Tensor, packed: Tensor, scale: Tensor | None, bias: Tensor | None, in_features: int, *rest: Any
) -> tuple[int, ...]:
    arguments.check_tensor("x", x, None)
    check_packed(packed, (packed.shape[0], in_features), scale)
    if packed.device != x.device:
        raise ValueError(f"weight: expected on {x.device} as x is, got on {packed.device}")
    return shapes.linear(x, (packed.shape[0], in_features), bias, *rest)


def _run(
    x: Tensor,
    packed: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
) -> Tensor:
    where = (out_features, in_index, out_index)
    if isinstance(x, Tensor) and x.is_cuda:  # what is wrong is found below
        return _on_gpu(x, packed, scale, bias, in_features, *where)
    if packed.is_cpu:
        threads = torch.get_num_threads()
        lists = lists_of(packed, (packed.shape[0], in_features))
        y = _C.ternary_linear(x, lists, scale, bias, *where, threads)
        if y is not None:
            return y
    # Not what the kernel takes: wrong, or more dimensions, or another dtype or device.
    shape = _shape(x, packed, scale, bias, in_features, *where)
    if native("ternary_linear", x):
        scale, bias = (None if v is None else v.contiguous() for v in (scale, bias))
        y = _C.ternary_linear(x.reshape(-1, x.shape[-1]), lists, scale, bias, *where, threads)
        return taken("ternary_linear", y).view(shape)
    return reference.ternary_linear(x, packed, scale, bias, in_features, *where).contiguous()


lib.impl("ternary_linear", _run, "CompositeExplicitAutograd")
_on_gpu = dispatch.register("ternary_linear", _shape, reference.ternary_linear)


@torch.library.register_fake("dynkern::ternary_linear", lib=lib)
def _fake(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(_shape(x, *args))


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, packed, scale, _, ctx.in_features, ctx.out_features, in_index, out_index = inputs
    ctx.save_for_backward(x, packed, scale, in_index, out_index)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    """As of the dense layer; a scale's gradient is that of its weights, summed over their signs."""
    x, packed, scale, in_index, out_index = ctx.saved_tensors
    signs = unpack(packed, (packed.shape[0], ctx.in_features), None).to(x.dtype)
    weight = signs if scale is None else signs * scale.to(x.dtype)[:, None]
    needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.needs_input_grad[3])
    grad_x, grad_weight, grad_bias = dense_backward(grad, x, weight, ctx.out_features, in_index, out_index, needs)
    grad_scale = None if grad_weight is None else (grad_weight * signs).sum(1).to(torch.float32)
    return grad_x, None, grad_scale, grad_bias, *([None] * 4)


torch.library.register_autograd("dynkern::ternary_linear", _backward, setup_context=_save, lib=lib)
