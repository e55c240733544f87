"""Linear layer over the active features of one full weight (equation 1 of Yang & Fan, ASP-DAC 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynkern import _C
from dynkern.ops import arguments, shapes, slices
from dynkern.ops.gpu import dispatch
from dynkern.ops.library import autocast, call, lib, native, taken
from dynkern.ops.sliced_linear import reference

lib.define(
    "sliced_linear(Tensor x, Tensor weight, Tensor? bias, SymInt? out_features, Tensor? in_index, Tensor? out_index)"
    " -> Tensor"
)


def sliced_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int | None = None,
    in_index: Tensor | None = None,
    out_index: Tensor | None = None,
) -> Tensor:
    """Linear layer that reads only the active features of ``weight``; nothing is copied or re-packed.

    ``y[..., o] = bias[out(o)] + sum_i weight[out(o), in(i)] x[..., i]``, where ``in`` and ``out`` are the first
    features, or the given index sets.

    Args:
        x: (..., C), any strides. C is the number of active input features.
        weight: (O, I), of the full network.
        bias: (O,), of the full network.
        out_features: how many of the first outputs run; all by default.
        in_index: (C,) int64, the input feature of ``weight`` that each feature of ``x`` is; the first C by default.
        out_index: int64, the outputs to compute, in this order; not together with ``out_features``.

    Returns:
        (..., active outputs), contiguous, of the dtype of ``x``. float32 on the CPU runs dynkern's kernel, as do index
        sets on a GPU in float16, bfloat16 and TF32; the rest runs PyTorch on the slice, which is logged once.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or range; the message names it.
    """
    if isinstance(weight, Tensor):
        x = autocast(x, weight.dtype)
    args = (x, weight, bias, out_features, in_index, out_index)
    op = torch.ops.dynkern.sliced_linear
    return call(op, (x, weight, bias), args, _run, _shape, reference.sliced_linear)


def _shape(x: Tensor, weight: Tensor, *rest: Any) -> tuple[int, ...]:
    arguments.check_tensor("x", x, None)
    arguments.check_tensor("weight", weight, 2, x)
    return shapes.linear(x, weight.shape, *rest)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
) -> Tensor:
    where = (out_features, in_index, out_index)
    if isinstance(x, Tensor) and x.is_cuda:  # what is wrong is found below
        return _on_gpu(x, weight, bias, *where)
    y = _C.sliced_linear(x, weight, bias, *where, torch.get_num_threads())
    if y is not None:
        return y
    # Not what the kernel takes: wrong, or more dimensions, or a memory layout that it does not read, or another dtype.
    shape = _shape(x, weight, bias, *where)
    if native("sliced_linear", x):
        rows, bias = x.reshape(-1, x.shape[-1]).contiguous(), None if bias is None else bias.contiguous()
        y = _C.sliced_linear(rows, weight.contiguous(), bias, *where, torch.get_num_threads())
        return taken("sliced_linear", y).view(shape)
    return reference.sliced_linear(x, weight, bias, *where).contiguous()


lib.impl("sliced_linear", _run, "CompositeExplicitAutograd")
_on_gpu = dispatch.register("sliced_linear", _shape, reference.sliced_linear)


@torch.library.register_fake("dynkern::sliced_linear", lib=lib)
def _fake(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(_shape(x, *args))


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, _, ctx.out_features, in_index, out_index = inputs
    ctx.save_for_backward(x, weight, in_index, out_index)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, weight, in_index, out_index = ctx.saved_tensors
    return *backward(grad, x, weight, ctx.out_features, in_index, out_index, ctx.needs_input_grad), *([None] * 3)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias on the active slice; what did not run gets zero."""
    rows = slice(0, out_features) if out_index is None else out_index
    columns = slice(0, x.shape[-1]) if in_index is None else in_index
    grad_x = grad_weight = grad_bias = None
    if needs[0]:
        grad_x = grad @ weight[rows][:, columns]
    flat = grad.reshape(-1, grad.shape[-1])
    if needs[1]:
        grad_weight = slices.scatter(weight.shape, flat.t() @ x.reshape(-1, x.shape[-1]), rows, columns)
    if needs[2]:
        grad_bias = slices.scatter(weight.shape[:1], flat.sum(0), rows)
    return grad_x, grad_weight, grad_bias


torch.library.register_autograd("dynkern::sliced_linear", _backward, setup_context=_save, lib=lib)
