"""Ternary values of a latent weight, with a gradient that goes straight through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def ternary_values(weight: Tensor, threshold: Tensor | float) -> Tensor:
    """+1 where ``weight > threshold``, -1 where ``weight < -threshold``, else 0 (equation 5 of Dordoni et al., 2024).

    Args:
        weight: any shape, floating point. Clipping it to [-1, 1] first would change nothing, because threshold < 1.
        threshold: a number or a 0-dimensional tensor, at least 0.

    Returns:
        Of the shape and dtype of ``weight``. NaN stays NaN, so that a training run that diverged shows it.
    """
    magnitude = weight.abs()
    return torch.where(magnitude > threshold, weight.sign(), magnitude * 0)


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, signs: Tensor) -> Tensor:
        return signs.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return grad * (weight.abs() <= 1), None


def straight_through(weight: Tensor, signs: Tensor) -> Tensor:
    """``signs``, with the gradient of equation 2 of Dordoni et al., 2024: the identity's where ``|weight| <= 1``.

    Outside [-1, 1] it is zero (saturation).
    """
    return _StraightThrough.apply(weight, signs)


class _Levels(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, signs: Tensor, plus: Tensor, minus: Tensor, scaled: bool) -> Tensor:
        # A product keeps the NaN of a sign.
        return signs * torch.where(signs > 0, plus, minus).to(signs.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
        _, signs, plus, minus, ctx.scaled = inputs
        ctx.save_for_backward(signs, plus, minus)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None, Tensor | None, None]:
        signs, plus, minus = ctx.saved_tensors
        above = (grad * (signs > 0)).sum().to(plus.dtype) if ctx.needs_input_grad[2] else None
        below = -(grad * (signs < 0)).sum().to(minus.dtype) if ctx.needs_input_grad[3] else None
        if ctx.scaled:
            grad = grad * torch.where(signs > 0, plus, torch.where(signs < 0, minus, 1.0)).to(grad.dtype)
        return grad, None, above, below, None


def two_levels(weight: Tensor, signs: Tensor, plus: Tensor, minus: Tensor, scaled: bool) -> Tensor:
    """``plus`` where ``signs`` is +1, ``-minus`` where it is -1, 0 where it is 0.

    Args:
        weight: the latent weight, which gets the result's gradient; times ``plus``, 1 or ``minus`` where ``scaled``
            (Zhu et al., ICLR 2017, equation 8).
        signs: {-1, 0, +1} (or NaN) of the shape and dtype of ``weight``.
        plus, minus: 0-dimensional. Each gets the sum of the gradients of the weights that it stands for (equation 7).
        scaled: see ``weight``.
    """
    return _Levels.apply(weight, signs, plus, minus, scaled)
