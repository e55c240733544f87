"""What a plan means, in plain PyTorch and any dtype: the specification that the native engine is tested against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynkern.engine import plan as p
from dynkern.engine.builder import WeightTensor
from dynkern.engine.quantized_weight import QuantizedWeight, SkippingWeight
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


def run(
    plan: p.Plan,
    weights: Mapping[str, WeightTensor],
    x: Tensor,
    observe: Callable[[int, Tensor], object] = lambda value, y: None,
) -> Tensor:
    """The result of ``plan`` for a batch.

    Args:
        plan: see :mod:`dynkern.engine.plan`.
        weights: the store: full weights by name.
        x: (N, C, H, W), or (N, C) for an input of features, in the dtype to compute in. What is quantised is exact, and
            scaled in float32, whatever that is.
        observe: called with every value's number and content, the input first. Integers come as float32.

    Returns:
        (N, C) or (N, C, H, W), as ``plan.output_dims`` says.
    """
    shape = plan.values[plan.input]
    values = {plan.input: x.reshape(-1, shape.channels, shape.height, shape.width)}
    observe(plan.input, values[plan.input])
    for step in plan.steps:
        y = _STEPS[type(step)](step, plan, weights, values)
        if hasattr(step, "epilogue"):
            y = epilogue(step.epilogue, y, values)
        element = plan.values[step.y].element
        if not element.quantized:
            y = y.to(x.dtype)
        elif isinstance(step, (p.Conv2d, p.Pointwise)):
            y = y.nan_to_num(nan=step.epilogue.activation.low).round()
        values[step.y] = y
        observe(step.y, y)
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
    if isinstance(full, (QuantizedWeight, SkippingWeight)):
        raise TypeError(f"weight {s.weight.name!r}: expected floats or ternary")
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
    full = weights[s.weight.name]
    if isinstance(full, SkippingWeight):
        full = QuantizedWeight.of_ternary(full.ternary)
    if isinstance(full, QuantizedWeight):
        return _integer_conv2d(s, plan, full, x)
    weight = weight_of(weights, s, x.shape[1], plan.values[s.y].channels).to(x.dtype)
    top, bottom, left, right = s.geometry[2:6]
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, None, s.geometry[:2], 0, s.geometry[6:], s.groups)


def _integer_conv2d(s: p.Conv2d, plan: p.Plan, full: QuantizedWeight, x: Tensor) -> Tensor:
    """The sums as float32. Those of int16 are exact over as many words as 32 bits hold, and added in float32."""
    zero, outputs = plan.values[s.x].element.zero, plan.values[s.y].channels
    weight = full.values[:outputs, : x.shape[1]].double()
    top, bottom, left, right = s.geometry[2:6]
    x = F.pad(x.double() - zero, (left, right, top, bottom))

    def sums(weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, s.geometry[:2], 0, s.geometry[6:]).float()

    if full.bits == 8:
        return sums(weight)
    inputs, height, width = weight.shape[1:]
    words = -(-inputs // 2) * height * width
    # Which word each weight is in: pairs of channels outside, taps inside.
    taps = torch.arange(height * width).reshape(1, height, width)
    word = torch.arange(inputs)[:, None, None] // 2 * height * width + taps
    length = full.exact_words()
    y = sums(torch.zeros_like(weight))
    for first in range(0, words, length):
        y = y + sums(weight * ((word >= first) & (word < first + length)))
    return y


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
    y = x.new_full((x.shape[0], shape.channels, shape.height, shape.width), shape.element.zero)
    (c, i, j), (channels, rows, columns), (vertical, horizontal) = s.first, s.count, s.step
    window = x[:, c : c + channels, i : i + rows * vertical : vertical, j : j + columns * horizontal : horizontal]
    before, above, left = s.offset
    y[:, before : before + channels, above : above + rows, left : left + columns] = window
    return y


def _pointwise(s: p.Pointwise, plan: p.Plan, weights: object, v: Mapping[int, Tensor]) -> Tensor:
    converts = plan.values[s.x].element.quantized or plan.values[s.y].element.quantized
    return v[s.x].float() if converts else v[s.x]


_STEPS: dict[type, Callable[[Any, p.Plan, Any, Mapping[int, Tensor]], Tensor]] = {
    p.Conv2d: _conv2d,
    p.Linear: _linear,
    p.Pool2d: _pool2d,
    p.AdaptiveAverage: _adaptive,
    p.Pointwise: _pointwise,
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
