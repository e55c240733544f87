"""Ternary values of a latent weight, with a gradient that goes straight through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def ternary_values(weight: Tensor, threshold: Tensor | float) -> Tensor:
    """+1 where ``weight > threshold``, -1 where ``weight < -threshold``, else 0 (equation 5 of Dordoni et al., 2024).

    Args:
        weight: any shape, floating point. Clipping it to [-1, 1] first would change nothing, because threshold < 1.
        threshold: a number or a 0-dimensional tensor, 0 <= threshold < 1.

    Returns:
        Of the shape and dtype of ``weight``. NaN stays NaN, so that a training run that diverged shows it.
    """
    magnitude = weight.abs()
    return torch.where(magnitude > threshold, weight.sign(), magnitude * 0)


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, threshold: Tensor) -> Tensor:
        return ternary_values(weight, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return grad * (weight.abs() <= 1), None


def straight_through(weight: Tensor, threshold: Tensor) -> Tensor:
    """:func:`ternary_values` with the gradient of equation 2 (same paper): the identity's where ``|weight| <= 1``.

    Outside [-1, 1] it is zero (saturation). ``threshold``, a 0-dimensional tensor, gets no gradient.
    """
    return _StraightThrough.apply(weight, threshold)
