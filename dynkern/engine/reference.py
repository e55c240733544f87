"""What a plan means, in plain PyTorch and any dtype: the specification that the native engine is tested against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynkern.engine import plan as p
from dynkern.engine.builder import WeightTensor
from dynkern.ops import TernaryWeight

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def run(plan: p.Plan, weights: Mapping[str, WeightTensor], x: Tensor) -> Tensor:
    """The result of ``plan`` for a batch.

    Args:
        plan: see :mod:`dynkern.engine.plan`.
        weights: the store: full weights by name.
        x: (N, C, H, W), or (N, C) for an input of features, in the dtype to compute in.

    Returns:
        (N, C) or (N, C, H, W), as ``plan.output_dims`` says.
    """
    shape = plan.values[plan.input]
    values = {plan.input: x.reshape(-1, shape.channels, shape.height, shape.width)}
    for step in plan.steps:
        y = _STEPS[type(step)](step, plan, weights, values)
        if hasattr(step, "epilogue"):
            y = epilogue(step.epilogue, y, values)
        values[step.y] = y
    y = values[plan.output]
    return y.flatten(1) if plan.output_dims == 2 else y


def epilogue(e: p.Epilogue, x: Tensor, values: Mapping[int, Tensor]) -> Tensor:
    """``activation(scale * x + shift + residual_scale * residual)``."""
    y = _each(e.scale, x, 1) * x + _each(e.shift, x, 0)
    if e.residual is not None:
        y = y + _each(e.residual_scale, x, 1) * values[e.residual]
    if e.activation.kind == "clamp":
        return y.clamp(e.activation.low, e.activation.high)
    return _ACTIVATIONS[e.activation.kind](y)


def weight_of(weights: Mapping[str, WeightTensor], s: p.Conv2d | p.Linear, inputs: int, outputs: int) -> Tensor:
    """The slice of a full weight that runs, dense, without the scale of a ternary weight."""
    full = weights[s.weight.name]
    dense = full.signs() if isinstance(full, TernaryWeight) else full
    columns, rows = s.weight.in_index, s.weight.out_index
    groups = s.groups if isinstance(s, p.Conv2d) else 1
    if groups > 1:
        each = outputs // groups
        rows = None if columns is None else tuple(g * each + i for g in columns for i in range(each))
        inputs, columns = inputs // groups, None
    dense = dense[:outputs] if rows is None else dense[list(rows)]
    return dense[:, :inputs] if columns is None else dense[:, list(columns)]


def _conv2d(s: p.Conv2d, plan: p.Plan, weights: Mapping[str, WeightTensor], v: Mapping[int, Tensor]) -> Tensor:
    x = v[s.x]
    weight = weight_of(weights, s, x.shape[1], plan.values[s.y].channels).to(x.dtype)
    top, bottom, left, right = s.geometry[2:6]
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, None, s.geometry[:2], 0, s.geometry[6:], s.groups)


def _linear(s: p.Linear, plan: p.Plan, weights: Mapping[str, WeightTensor], v: Mapping[int, Tensor]) -> Tensor:
    x = v[s.x].flatten(1)
    weight = weight_of(weights, s, x.shape[1], plan.values[s.y].channels).to(x.dtype)
    return F.linear(x, weight)[:, :, None, None]


def _pool2d(s: p.Pool2d, plan: p.Plan, weights: object, v: Mapping[int, Tensor]) -> Tensor:
    top, bottom, left, right = s.padding
    around = (left, right, top, bottom)
    if s.kind == "max":
        return F.max_pool2d(F.pad(v[s.x], around, value=-torch.inf), s.kernel, s.stride)
    average = F.avg_pool2d(F.pad(v[s.x], around), s.kernel, s.stride)
    if s.count_padding:
        return average
    return average / F.avg_pool2d(F.pad(torch.ones_like(v[s.x]), around), s.kernel, s.stride)


def _adaptive(s: p.AdaptiveAverage, plan: p.Plan, weights: object, v: Mapping[int, Tensor]) -> Tensor:
    return F.adaptive_avg_pool2d(v[s.x], (plan.values[s.y].height, plan.values[s.y].width))


def _crop(s: p.Crop, plan: p.Plan, weights: object, v: Mapping[int, Tensor]) -> Tensor:
    x, shape = v[s.x], plan.values[s.y]
    y = x.new_zeros(x.shape[0], shape.channels, shape.height, shape.width)
    (c, i, j), (channels, rows, columns), (vertical, horizontal) = s.first, s.count, s.step
    window = x[:, c : c + channels, i : i + rows * vertical : vertical, j : j + columns * horizontal : horizontal]
    before, above, left = s.offset
    y[:, before : before + channels, above : above + rows, left : left + columns] = window
    return y


_STEPS: dict[type, Callable[[Any, p.Plan, Any, Mapping[int, Tensor]], Tensor]] = {
    p.Conv2d: _conv2d,
    p.Linear: _linear,
    p.Pool2d: _pool2d,
    p.AdaptiveAverage: _adaptive,
    p.Pointwise: lambda s, plan, weights, v: v[s.x],
    p.Multiply: lambda s, plan, weights, v: v[s.x] * v[s.gate],
    p.Concat: lambda s, plan, weights, v: torch.cat([v[x] for x in s.xs], 1),
    p.Crop: _crop,
    p.Flatten: lambda s, plan, weights, v: v[s.x].flatten(1)[:, :, None, None],
    p.Torch: lambda s, plan, weights, v: s.node([v[x] for x in s.xs], v[plan.input].shape[0]),
    p.Softmax: lambda s, plan, weights, v: F.log_softmax(v[s.x], 1) if s.log else F.softmax(v[s.x], 1),
}


def _each(vector: Tensor | None, x: Tensor, neutral: float) -> Tensor | float:
    """A vector with one entry per channel of ``x``, to be broadcast with it."""
    return neutral if vector is None else vector.to(x.dtype)[:, None, None]
