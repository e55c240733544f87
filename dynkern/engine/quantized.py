"""Plans of integers: convolutions on quantised activations, and what takes floats to integers and back.

Convolutions of one group with dense weights are quantised, and what only moves their activations about (crops, maxima);
all else stays in floats. An activation is quantised by the step that computes it where a convolution reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor

from dynkern.engine.builder import WeightTensor
from dynkern.engine.fuse import reads
from dynkern.engine.lower import Lowered
from dynkern.engine.plan import Activation, Conv2d, Crop, Element, Epilogue, Plan, Pointwise, Pool2d, Step, Value
from dynkern.engine.plan import Weight as Slice
from dynkern.engine.quantized_weight import LARGEST, QuantizedWeight

Bounds = tuple[float, float]  # the least and the largest entry of an activation

# Values of different zero points share no memory, and a network has many values: few zero points.
ZEROS = range(0, 256, 32)
# Longer sums of products of 8 bits do not fit 32 bits.
MOST_PRODUCTS = (2**31 - 1) // (255 * 128)
# A unit below this is none: what is so small is zero.
LEAST_UNIT = 1e-30
FLOAT = Element()


def element_of(bounds: Bounds, bits: int) -> Element:
    """The finest integers that hold zero exactly and everything between ``bounds``."""
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    if bits == 16:
        return Element("int16", _unit(max(-low, high) / LARGEST[16]))
    scales = {zero: max(high / (255 - zero), -low / zero if zero else 0.0) for zero in ZEROS if zero or low == 0}
    zero = min(scales, key=scales.__getitem__)
    return Element("uint8", _unit(scales[zero]), zero)


def _unit(scale: float) -> float:
    return scale if scale >= LEAST_UNIT else 1.0


def quantized(lowered: Lowered, bounds: Sequence[Bounds], bits: int) -> Lowered:
    """``lowered`` with integers of ``bits`` (8 or 16), ``bounds`` being those of each of its values."""
    return _Quantizing(lowered, bounds, bits).run()


class _Quantizing:
    def __init__(self, lowered: Lowered, bounds: Sequence[Bounds], bits: int) -> None:
        self.old, self.weights = lowered.plan, lowered.weights
        self.bounds, self.bits = bounds, bits
        self.new_weights: dict[str, WeightTensor] = {}
        self.values: list[Value] = []
        self.steps: list[Step] = []
        # Where the values of the old plan are in the new one.
        self.floats: dict[int, int] = {}
        self.integers: dict[int, int] = {}
        self.wanted = self._wanted()

    def run(self) -> Lowered:
        plan = self.old
        self.floats[plan.input] = self._value(plan.values[plan.input])
        for step in plan.steps:
            if isinstance(step, Conv2d) and self._is_integer(step):
                self._conv2d(step)
            elif _moves(step) and step.y in self.wanted:
                self._moved(step)
            elif isinstance(step, Pointwise) and self._quantizes(step):
                self._quantize(step.x, step.y, step.epilogue)
            else:
                self._unchanged(step)
        output = self._float(plan.output)
        new = Plan(self.floats[plan.input], output, plan.output_dims, self.values, self.steps)
        return Lowered(new, self.new_weights)

    def _wanted(self) -> set[int]:
        """The values that some step reads as integers."""
        wanted: set[int] = set()
        for step in reversed(self.old.steps):
            if (isinstance(step, Conv2d) and self._is_integer(step)) or (_moves(step) and step.y in wanted):
                wanted.update(reads(step))
        return wanted

    def _is_integer(self, step: Conv2d) -> bool:
        weight = self.weights[step.weight.name]
        if not isinstance(weight, Tensor) or step.groups > 1:
            return False
        inputs, height, width = weight.shape[1:]
        return self.bits == 16 or -(-inputs // 4) * 4 * height * width <= MOST_PRODUCTS

    def _quantizes(self, step: Pointwise) -> bool:
        """True if ``step`` can write integers, and nothing wants its floats."""
        readers = [s for s in self.old.steps if step.y in reads(s)]
        integers = all(isinstance(s, Conv2d) and self._is_integer(s) for s in readers)
        plain = step.epilogue.residual is None and _folds(step.epilogue.activation)
        return integers and plain and step.y != self.old.output

    def _conv2d(self, step: Conv2d) -> None:
        x = self._integer(step.x)
        residual = None if step.epilogue.residual is None else self._integer(step.epilogue.residual)
        weight, scale = self._weight(step)
        folds = step.y in self.wanted and _folds(step.epilogue.activation)
        element = element_of(self.bounds[step.y], self.bits) if folds else FLOAT
        y = self._value(replace(self.old.values[step.y], element=element))
        before = None if residual is None else self.values[residual].element
        scale = scale * self.values[x].element.scale
        epilogue = _folded(step.epilogue, scale, element, residual, before)
        self.steps.append(replace(step, x=x, y=y, weight=weight, epilogue=epilogue))
        (self.integers if folds else self.floats)[step.y] = y

    def _moved(self, step: Crop | Pool2d) -> None:
        x = self._integer(step.x)
        y = self._value(replace(self.old.values[step.y], element=self.values[x].element))
        self.steps.append(replace(step, x=x, y=y))
        self.integers[step.y] = y

    def _unchanged(self, step: Step) -> None:
        number = {v: self._float(v) for v in reads(step)}
        y = self._value(self.old.values[step.y])
        changes: dict[str, object] = {"y": y}
        for name in ("x", "gate"):
            if hasattr(step, name):
                changes[name] = number[getattr(step, name)]
        if hasattr(step, "xs"):
            changes["xs"] = tuple(number[v] for v in step.xs)
        if hasattr(step, "epilogue") and step.epilogue.residual is not None:
            changes["epilogue"] = replace(step.epilogue, residual=number[step.epilogue.residual])
        if hasattr(step, "weight"):
            self.new_weights[step.weight.name] = self.weights[step.weight.name]
        self.steps.append(replace(step, **changes))  # type: ignore[arg-type]
        self.floats[step.y] = y

    def _weight(self, step: Conv2d) -> tuple[Slice, Tensor]:
        """The integer weight that ``step`` reads, and the scales of its outputs.

        All sub-nets that run the first channels read one weight in place; index sets have copies of their own.
        """
        w = step.weight
        full = self.weights[w.name]
        if not isinstance(full, Tensor):
            raise TypeError(f"weight {w.name!r}: expected a dense one")
        name = f"{w.name}:int{self.bits}"
        if w.out_index is not None or w.in_index is not None:
            if w.out_index is not None:
                full = full[list(w.out_index)]
            if w.in_index is not None:
                full = full[:, list(w.in_index)]
            name += ":" + hashlib.sha256(repr((w.out_index, w.in_index)).encode()).hexdigest()[:16]
        weight = QuantizedWeight.from_float(full, self.bits)
        self.new_weights.setdefault(name, weight)
        return Slice(name), weight.scale[: self.old.values[step.y].channels]

    def _integer(self, old: int) -> int:
        """Where value ``old`` is as integers, which a new step makes of its floats if nothing did."""
        if old not in self.integers:
            self._quantize(old, old, Epilogue())
        return self.integers[old]

    def _quantize(self, x: int, y: int, epilogue: Epilogue) -> None:
        value = self.old.values[y]
        element = element_of(self.bounds[y], self.bits)
        source, new = self._float(x), self._value(replace(value, element=element))
        scale = torch.ones(value.channels, dtype=torch.float64)
        self.steps.append(Pointwise(source, new, _folded(epilogue, scale, element)))
        self.integers[y] = new

    def _float(self, old: int) -> int:
        """Where value ``old`` is as floats."""
        if old not in self.floats:
            x, value = self.integers[old], self.old.values[old]
            element = self.values[x].element
            self.floats[old] = self._value(value)
            scale = torch.full((value.channels,), element.scale)
            self.steps.append(Pointwise(x, self.floats[old], Epilogue(scale, -scale * element.zero)))
        return self.floats[old]

    def _value(self, value: Value) -> int:
        self.values.append(value)
        return len(self.values) - 1


def _moves(step: Step) -> TypeGuard[Crop | Pool2d]:
    """True for a step that does with integers what it does with floats."""
    return isinstance(step, Crop) or (isinstance(step, Pool2d) and step.kind == "max")


def _folds(activation: Activation) -> bool:
    """True if the activation works on integers as on floats, and leaves zero as it is."""
    return activation.kind == "none" or (activation.kind == "clamp" and activation.low <= 0 <= activation.high)


def _folded(
    e: Epilogue, scale: Tensor, element: Element, residual: int | None = None, before: Element | None = None
) -> Epilogue:
    """The epilogue ``e`` of sums that are to be multiplied by ``scale``, with a result in units of ``element``.

    ``before`` is what the residual is made of.
    """
    unit = element.scale
    scale = scale if e.scale is None else scale * e.scale.double()
    shift = torch.zeros_like(scale) if e.shift is None else e.shift.double()
    factor = None
    if before is not None:
        factor = torch.full_like(scale, before.scale)
        factor = factor if e.residual_scale is None else factor * e.residual_scale.double()
        shift = shift - factor * before.zero
    activation = e.activation
    if element.quantized:
        least, most = (0, 255) if element.kind == "uint8" else (-LARGEST[16], LARGEST[16])
        low, high = (activation.low, activation.high) if activation.kind == "clamp" else (-torch.inf, torch.inf)
        low, high = (_float32(min(max(bound / unit + element.zero, least), most)) for bound in (low, high))
        activation = Activation("clamp", low, high)
    return Epilogue(
        (scale / unit).float(),
        (shift / unit + element.zero).float(),
        residual,
        None if factor is None else (factor / unit).float(),
        activation,
    )


def _float32(number: float) -> float:
    return float(torch.tensor(number, dtype=torch.float32))


def signature(plan: Plan) -> tuple[tuple[str, int], ...]:
    """What two plans must have in common for the bounds of one to be those of the other."""
    return tuple((type(step).__name__, plan.values[step.y].channels) for step in plan.steps)
