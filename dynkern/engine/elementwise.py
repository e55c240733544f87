"""Lowering of what works on each entry alone: arithmetic, activations, and what does nothing in eval mode."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from dynkern.engine.builder import Builder, Call, Constant, Feature, Operand, filled
from dynkern.engine.plan import Activation, Epilogue, Multiply, Softmax

Lowered = Callable[[Builder, Call], Feature]


def identity(b: Builder, call: Call) -> Operand:
    """What changes neither values nor shape: ``detach``, ``clone``, ``contiguous``, ..."""
    return call.first


def dropout(b: Builder, call: Call) -> Operand:
    """Nothing in eval mode."""
    if call["train"]:
        call.fail("it drops entries at random, as in training")
    return call.first


def add(b: Builder, call: Call) -> Feature:
    """``self + alpha * other``."""
    return _sum(b, call, call["self"], 1.0, call["other"], _alpha(call))


def sub(b: Builder, call: Call) -> Feature:
    """``self - alpha * other``."""
    return _sum(b, call, call["self"], 1.0, call["other"], -_alpha(call))


def rsub(b: Builder, call: Call) -> Feature:
    """``other - alpha * self``."""
    return _sum(b, call, call["self"], -_alpha(call), call["other"], 1.0)


def neg(b: Builder, call: Call) -> Feature:
    """``-self``."""
    return _scaled(b, call, call.feature(call["self"]), -1.0)


def mul(b: Builder, call: Call) -> Feature:
    """``self * other``: two activations, one of which may be a gate for whole channels, or one and a constant."""
    x, y = call["self"], call["other"]
    if isinstance(x, Feature) and isinstance(y, Feature):
        return _gated(b, call, x, y)
    if isinstance(x, Feature):
        return _scaled(b, call, x, y)
    return _scaled(b, call, y, x)


def div(b: Builder, call: Call) -> Feature:
    """``self / other`` by a constant."""
    if call.arguments.get("rounding_mode") is not None:
        call.fail("rounding is not supported")
    other = call["other"]
    if isinstance(other, Feature):
        call.fail("the divisor depends on the network's input")
    if isinstance(other, Constant):
        return _scaled(b, call, call["self"], Constant(f"1/{other.name}", other.tensor.double().reciprocal()))
    return _scaled(b, call, call["self"], 1 / other if other else math.inf)


def activation(kind: str, low: float = 0.0, high: float = math.inf) -> Lowered:
    """The lowering function of an activation without parameters."""
    return lambda b, call: _activated(b, call, Activation(kind, low, high))


def clamp(b: Builder, call: Call) -> Feature:
    """``clamp``, ``clamp_min``, ``clamp_max``, ``hardtanh``: bounds that are numbers."""
    bounds = [_bound(call, names) for names in (("min", "min_val"), ("max", "max_val"))]
    low = -math.inf if bounds[0] is None else bounds[0]
    high = math.inf if bounds[1] is None else bounds[1]
    # As torch does where the bounds cross: the upper one wins.
    return _activated(b, call, Activation("clamp", min(low, high), high))


def gelu(b: Builder, call: Call) -> Feature:
    """``gelu``, exact or by tanh."""
    return _activated(b, call, Activation("gelu_tanh" if call["approximate"] == "tanh" else "gelu"))


def softmax(log: bool) -> Lowered:
    """The lowering function of ``softmax`` or ``log_softmax`` over features."""

    def lower(b: Builder, call: Call) -> Feature:
        x = call.feature(call["self"])
        if call.axis(call["dim"], x) != 0 or math.prod(x.shape[1:]) != 1:
            call.fail(f"only over the features of (N, features), got dimension {call['dim']} of (N, {x.shape})")
        return b.step(call, x.value, lambda y: Softmax(x.index, y, log))

    return lower


def _activated(b: Builder, call: Call, function: Activation) -> Feature:
    x = call.first
    if not isinstance(x, Feature):
        call.fail("an argument that must come from the network's input does not")
    return b.pointwise(call, x, Epilogue(activation=function))


def _sum(b: Builder, call: Call, x: Operand, a: float, y: Operand, c: float) -> Feature:
    """``a x + c y``."""
    if not isinstance(x, Feature):
        x, a, y, c = y, c, x, a
    x = call.feature(x)
    if not isinstance(y, Feature):
        scale = None if a == 1 else filled(x.value.channels, a)
        return b.pointwise(call, x, Epilogue(scale, c * _per_channel(call, x, y)))
    y = call.feature(y)
    if x.shape != y.shape or x.value != y.value:
        call.fail(f"expected two tensors of one shape, got (N, {x.shape}) and (N, {y.shape})")
    channels = x.value.channels
    if x.index == y.index:
        return b.pointwise(call, x, Epilogue(filled(channels, a + c)))
    scales = (None if s == 1 else filled(channels, s) for s in (a, c))
    return b.pointwise(call, x, Epilogue(next(scales), None, y.index, next(scales)))


def _scaled(b: Builder, call: Call, operand: Operand, factor: Operand) -> Feature:
    x = call.feature(operand)
    return b.pointwise(call, x, Epilogue(_per_channel(call, x, factor)))


def _gated(b: Builder, call: Call, x: Feature, gate: Feature) -> Feature:
    if x.value.height * x.value.width < gate.value.height * gate.value.width:
        x, gate = gate, x
    same = x.value == gate.value
    channels = gate.value.channels == x.value.channels and gate.value.height == gate.value.width == 1
    if not x.whole or x.shape != call.shape or len(gate.shape) != len(x.shape) or not (same or channels):
        call.fail(f"expected one shape, or a gate (N, C, 1, 1), got (N, {x.shape}) and (N, {gate.shape})")
    return b.step(call, x.value, lambda y: Multiply(x.index, y, gate.index))


def _per_channel(call: Call, x: Feature, operand: Operand) -> Tensor:
    """A number or constant that is broadcast over the batch and the pixels, as (channels,) float64."""
    channels = x.value.channels
    if isinstance(operand, (int, float)):
        return filled(channels, float(operand))
    tensor = call.constant(operand).tensor.detach().double()
    sizes = (1,) * (len(x.shape) + 1 - tensor.dim()) + tuple(tensor.shape)
    broadcast = call.shape == x.shape and len(sizes) == len(x.shape) + 1
    if not broadcast or sizes[1] not in (1, channels) or math.prod(sizes) != sizes[1]:
        call.fail(f"a constant must be one number, or one for each channel, got shape {tuple(tensor.shape)}")
    return tensor.reshape(-1).expand(channels)


def _alpha(call: Call) -> float:
    return float(call.arguments.get("alpha", 1))


def _bound(call: Call, names: tuple[str, ...]) -> float | None:
    bound = next((call.arguments[name] for name in names if name in call.arguments), None)
    if bound is not None and not isinstance(bound, (int, float)):
        call.fail("a bound is a tensor")
    return None if bound is None else float(bound)
