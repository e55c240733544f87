"""What the ternary linear layer has in common for both kinds of activations: the check of a call, and the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynkern.ops import arguments, shapes
from dynkern.ops.sliced_linear import backward as dense_backward
from dynkern.ops.ternary_weight import check_packed, unpack


def checked_shape(
    x: Tensor, packed: Tensor, scale: Tensor | None, bias: Tensor | None, in_features: int, *rest: Any
) -> tuple[int, ...]:
    """Check a call; the shape of its result."""
    arguments.check_tensor("x", x, None)
    check_packed(packed, (packed.shape[0], in_features), scale)
    if packed.device != x.device:
        raise ValueError(f"weight: expected on {x.device} as x is, got on {packed.device}")
    return shapes.linear(x, (packed.shape[0], in_features), bias, *rest[:3])


def save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Keep what the gradient needs."""
    x, packed, scale, _, ctx.in_features, ctx.out_features, in_index, out_index = inputs[:8]
    ctx.save_for_backward(x, packed, scale, in_index, out_index)


def backward(ctx: Any, grad: Tensor) -> tuple:
    """As of the dense layer; a scale's gradient is that of its weights, summed over their signs."""
    x, packed, scale, in_index, out_index = ctx.saved_tensors
    signs = unpack(packed, (packed.shape[0], ctx.in_features), None).to(x.dtype)
    weight = signs if scale is None else signs * scale.to(x.dtype)[:, None]
    needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.needs_input_grad[3])
    grad_x, grad_weight, grad_bias = dense_backward(grad, x, weight, ctx.out_features, in_index, out_index, needs)
    grad_scale = None if grad_weight is None else (grad_weight * signs).sum(1).to(torch.float32)
    return grad_x, None, grad_scale, grad_bias, *([None] * (len(ctx.needs_input_grad) - 4))
