"""What the ternary convolution has in common for both kinds of activations: the check of a call, and the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynkern.ops import arguments, shapes
from dynkern.ops.sliced_conv2d import backward as dense_backward
from dynkern.ops.ternary_weight import check_packed, unpack


def checked_shape(
    x: Tensor, packed: Tensor, scale: Tensor | None, bias: Tensor | None, shape: Sequence[int], *rest: Any
) -> tuple[int, int, int, int]:
    """Check a call; the shape of its result."""
    arguments.check_tensor("x", x, 4)
    check_packed(packed, shape, scale)
    if packed.device != x.device:
        raise ValueError(f"weight: expected on {x.device} as x is, got on {packed.device}")
    return shapes.conv2d(x, shape, bias, *rest[:5])


def save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Keep what the gradient needs."""
    x, packed, scale, _, ctx.shape, ctx.geometry, ctx.groups, ctx.out_channels, in_index, out_index = inputs[:10]
    ctx.save_for_backward(x, packed, scale, in_index, out_index)


def backward(ctx: Any, grad: Tensor) -> tuple:
    """As of the dense convolution; a scale's gradient is that of its weights, summed over their signs."""
    x, packed, scale, in_index, out_index = ctx.saved_tensors
    signs = unpack(packed, ctx.shape, None).to(x.dtype)
    weight = signs if scale is None else signs * scale.to(x.dtype)[:, None, None, None]
    needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.needs_input_grad[3])
    where = (ctx.groups, ctx.out_channels, in_index, out_index)
    grad_x, grad_weight, grad_bias = dense_backward(grad, x, weight, ctx.geometry, *where, needs)
    grad_scale = None if grad_weight is None else (grad_weight * signs).sum((1, 2, 3)).to(torch.float32)
    return grad_x, None, grad_scale, grad_bias, *([None] * (len(ctx.needs_input_grad) - 4))
