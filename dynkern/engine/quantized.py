"""Plans of integers: convolutions on quantised activations, and what takes floats to integers and back.

Convolutions of one group are quantised, and what only moves their activations about (crops, maxima); all else stays in
floats. An activation is quantised by the step that computes it where a convolution reads it.

Integers lie in one of two forms: planes of words for dense convolutions, crops and maxima; and for ternary ones that
skip zeros bytes whose channels are neighbours. Between the two forms a value goes through floats.
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
from dynkern.engine.quantized_weight import LARGEST, QuantizedWeight, SkippingWeight
from dynkern.ops import TernaryWeight
from dynkern.ops.break_even import skips_in_place

Bounds = tuple[float, float]  # the least and the largest entry of an activation

# Values of different zero points share no memory, and a network has many values: few zero points.
ZEROS = range(0, 256, 32)
# Longer sums of products of 8 bits do not fit 32 bits.
MOST_PRODUCTS = (2**31 - 1) // (255 * 128)
# A unit below this is none: what is so small is zero.
LEAST_UNIT = 1e-30
FLOAT = Element()
# The form of an activation: planes of words, or the pixels that each pixel holds and where its own is among them.
Form = tuple[int, int]
PLANES: Form = (0, 0)
# Bytes whose channels are neighbours are read in lines of so many.
LINE = 64
# The most padding that the engine keeps around values.
MOST_PADDING = 3


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
        self.integers: dict[tuple[int, Form], int] = {}
        self.skipping = {s.weight.name for s in self.old.steps if isinstance(s, Conv2d) and self._skips(s)}
        self.byte_forms = {v: self._byte_form(v) for v in range(len(self.old.values))}
        self.wanted = self._wanted()

    def run(self) -> Lowered:
        plan = self.old
        self.floats[plan.input] = self._value(plan.values[plan.input])
        for step in plan.steps:
            if isinstance(step, Conv2d) and self._is_integer(step):
                self._conv2d(step)
            elif _moves(step) and (step.y, PLANES) in self.wanted:
                self._moved(step)
            elif isinstance(step, Pointwise) and self._quantizes(step):
                for form in sorted(form for value, form in self.wanted if value == step.y):
                    self._quantize(step.x, step.y, step.epilogue, form)
            else:
                self._unchanged(step)
        output = self._float(plan.output)
        new = Plan(self.floats[plan.input], output, plan.output_dims, self.values, self.steps)
        return Lowered(new, self.new_weights)

    def _wanted(self) -> set[tuple[int, Form]]:
        """The values that some step reads as integers, and their forms."""
        wanted: set[tuple[int, Form]] = set()
        for step in reversed(self.old.steps):
            if isinstance(step, Conv2d) and self._is_integer(step):
                wanted.update((v, self._form(step, v)) for v in reads(step))
            elif _moves(step) and (step.y, PLANES) in wanted:
                wanted.update((v, PLANES) for v in reads(step))
        return wanted

    def _is_integer(self, step: Conv2d) -> bool:
        weight = self.weights[step.weight.name]
        if step.groups > 1 or not isinstance(weight, (Tensor, TernaryWeight)):
            return False
        if isinstance(weight, TernaryWeight) and self.bits == 16:
            return False
        inputs, height, width = weight.shape[1:]
        return self.bits == 16 or -(-inputs // 4) * 4 * height * width <= MOST_PRODUCTS

    def _skips(self, step: Conv2d) -> bool:
        """True if ``step`` reads bytes whose channels are neighbours."""
        weight, x = self.weights[step.weight.name], self.old.values[step.x]
        padding = max(step.geometry[2:6])
        fits = padding <= (0 if x.height == x.width == 1 else MOST_PADDING)
        return isinstance(weight, TernaryWeight) and self._is_integer(step) and fits and skips_in_place(weight.sparsity)

    def _form(self, step: Conv2d, value: int) -> Form:
        """The form in which ``step`` reads or writes ``value``."""
        return self.byte_forms[value] if step.weight.name in self.skipping else PLANES

    def _byte_form(self, value: int) -> Form:
        """How pixels of ``value`` lie as bytes: three side by side where that fills lines better."""
        channels = self.old.values[value].channels
        readers = [
            s for s in self.old.steps if isinstance(s, Conv2d) and s.x == value and s.weight.name in self.skipping
        ]
        if -channels % LINE * 16 <= channels:
            return 1, 0
        for step in readers:
            width, (left, right), dilation = (
                self.weights[step.weight.name].shape[3],
                step.geometry[4:6],
                step.geometry[7],
            )
            if width == 3 and left == right == 1 and dilation == 1:
                return 3, 1
        return 1, 0

    def _quantizes(self, step: Pointwise) -> bool:
        """True if ``step`` can write integers, and nothing wants its floats."""
        readers = [s for s in self.old.steps if step.y in reads(s)]
        integers = all(isinstance(s, Conv2d) and self._is_integer(s) for s in readers)
        plain = step.epilogue.residual is None and _folds(step.epilogue.activation)
        return integers and plain and step.y != self.old.output

    def _conv2d(self, step: Conv2d) -> None:
        x = self._integer(step.x, self._form(step, step.x))
        residual = step.epilogue.residual
        if residual is not None:
            residual = self._integer(residual, self._form(step, residual))
        weight, scale = self._weight(step)
        form = self._form(step, step.y)
        folds = (step.y, form) in self.wanted and _folds(step.epilogue.activation)
        element = self._element(step.y, form) if folds else FLOAT
        y = self._value(replace(self.old.values[step.y], element=element))
        before = None if residual is None else self.values[residual].element
        scale = scale * self.values[x].element.scale
        epilogue = _folded(step.epilogue, scale, element, residual, before)
        self.steps.append(replace(step, x=x, y=y, weight=weight, epilogue=epilogue))
        if folds:
            self.integers[step.y, form] = y
        else:
            self.floats[step.y] = y

    def _moved(self, step: Crop | Pool2d) -> None:
        x = self._integer(step.x, PLANES)
        y = self._value(replace(self.old.values[step.y], element=self.values[x].element))
        self.steps.append(replace(step, x=x, y=y))
        self.integers[step.y, PLANES] = y

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
        if isinstance(full, (QuantizedWeight, SkippingWeight)):
            raise TypeError(f"weight {w.name!r}: expected floats or ternary")
        ternary = isinstance(full, TernaryWeight)
        full = full.signs() if isinstance(full, TernaryWeight) else full
        name = f"{w.name}:int{self.bits}"
        if w.out_index is not None or w.in_index is not None:
            if w.out_index is not None:
                full = full[list(w.out_index)]
            if w.in_index is not None:
                full = full[:, list(w.in_index)]
            name += ":" + hashlib.sha256(repr((w.out_index, w.in_index)).encode()).hexdigest()[:16]
        channels = self.old.values[step.y].channels
        if not ternary:
            weight = QuantizedWeight.from_float(full, self.bits)
            self.new_weights.setdefault(name, weight)
            return Slice(name), weight.scale[:channels]
        packed = TernaryWeight.pack(full)
        skipping = w.name in self.skipping
        self.new_weights.setdefault(name, SkippingWeight(packed) if skipping else QuantizedWeight.of_ternary(packed))
        return Slice(name), torch.ones(channels, dtype=torch.float64)

    def _integer(self, old: int, form: Form) -> int:
        """Where value ``old`` is as integers of ``form``, which a new step makes of its floats if nothing did."""
        if (old, form) not in self.integers:
            self._quantize(old, old, Epilogue(), form)
        return self.integers[old, form]

    def _element(self, old: int, form: Form) -> Element:
        return replace(element_of(self.bounds[old], self.bits), across=form[0], left=form[1])

    def _quantize(self, x: int, y: int, epilogue: Epilogue, form: Form) -> None:
        value = self.old.values[y]
        element = self._element(y, form)
        source, new = self._float(x), self._value(replace(value, element=element))
        scale = torch.ones(value.channels, dtype=torch.float64)
        self.steps.append(Pointwise(source, new, _folded(epilogue, scale, element)))
        self.integers[y, form] = new

    def _float(self, old: int) -> int:
        """Where value ``old`` is as floats."""
        if old not in self.floats:
            x = next(x for (value, _), x in self.integers.items() if value == old)
            value = self.old.values[old]
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
