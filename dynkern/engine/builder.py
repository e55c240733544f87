"""What the lowering functions work with: operands, one operator's call, and the plan that grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from dynkern.engine.plan import Epilogue, Pointwise, Step, Value
from dynkern.engine.quantized_weight import QuantizedWeight, SkippingWeight
from dynkern.ops import TernaryWeight

WeightTensor = Tensor | TernaryWeight | QuantizedWeight | SkippingWeight


class LoweringError(ValueError):
    """An operator has no place in a plan; the message names it and its module."""


@dataclass(frozen=True)
class Feature:
    """A value of the plan as torch sees it.

    Attributes:
        index: its number in the plan.
        value: its shape in the plan.
        shape: its shape in torch, without the batch: (C,), (C, pixels) or (C, H, W). It is larger than ``value`` where
            torch has expanded (C, 1, 1).
    """

    index: int
    value: Value
    shape: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """True unless torch has expanded the value."""
        v = self.value
        return self.shape[0] == v.channels and math.prod(self.shape) == v.channels * v.height * v.width


@dataclass(frozen=True)
class Constant:
    """A tensor that does not depend on the input: a parameter or buffer, or what is computed of some."""

    name: str
    tensor: Tensor


Operand = Any  # Feature, Constant, a number, a string, None, or a list or tuple of them


@dataclass(frozen=True)
class Call:
    """One operator of the graph.

    Attributes:
        op: its name, as in the table.
        where: the module that calls it.
        arguments: its operands by the names of torch's schema.
        shapes: of its results, without the batch.
    """

    op: str
    where: str
    arguments: Mapping[str, Operand]
    shapes: tuple[tuple[int, ...], ...]

    def __getitem__(self, name: str) -> Operand:
        if name not in self.arguments:
            self.fail(f"it has no argument {name!r} in this form")
        return self.arguments[name]

    @property
    def first(self) -> Operand:
        """The first operand, whatever it is called."""
        return next(iter(self.arguments.values()))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first result, without the batch."""
        return self.shapes[0]

    def fail(self, why: str) -> NoReturn:
        """Raise :class:`LoweringError`."""
        raise LoweringError(f"cannot lower {self.op} in {self.where}: {why}")

    def feature(self, operand: Operand) -> Feature:
        """``operand``, which must come from the input and not be expanded."""
        if not isinstance(operand, Feature):
            self.fail("an argument that must come from the network's input does not")
        if not operand.whole:
            self.fail("an argument is broadcast")
        return operand

    def image(self, operand: Operand) -> Feature:
        """``operand``, which must be (N, C, H, W)."""
        x = self.feature(operand)
        if len(x.shape) != 3:
            self.fail(f"expected (N, C, H, W), got {len(x.shape) + 1} dimensions")
        return x

    def vector(self, operand: Operand) -> Feature:
        """``operand``, which must be (N, features)."""
        x = self.feature(operand)
        if len(x.shape) != 1:
            self.fail(f"expected (N, features), got {len(x.shape) + 1} dimensions")
        return x

    def constant(self, operand: Operand) -> Constant:
        """``operand``, which must not depend on the input."""
        if not isinstance(operand, Constant):
            self.fail("an argument that must be a parameter or buffer depends on the network's input")
        return operand

    def axis(self, dim: int, x: Feature) -> int:
        """Which axis of ``x.shape`` torch's ``dim`` is; it must not be the batch."""
        axis = dim % (len(x.shape) + 1) - 1
        if axis < 0:
            self.fail("it works along the batch")
        return axis


@dataclass
class Builder:
    """A plan in the making: its values and steps, and the weights that they use."""

    values: list[Value] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    weights: dict[str, WeightTensor] = field(default_factory=dict)

    def input(self, shape: tuple[int, ...]) -> Feature:
        """The plan's argument."""
        return self._new(Value(*shape), shape)

    def step(self, call: Call, value: Value, make: Callable[[int], Step]) -> Feature:
        """Append the step that ``make`` gives for the number of a new ``value``, which is the result of ``call``."""
        y = self._new(value, call.shape)
        self.steps.append(make(y.index))
        return y

    def image_step(self, call: Call, make: Callable[[int], Step]) -> Feature:
        """:meth:`step` with a value of the shape that torch gives to the result."""
        return self.step(call, Value(*call.shape), make)

    def pointwise(self, call: Call, x: Feature, epilogue: Epilogue) -> Feature:
        """Append ``epilogue`` of ``x``."""
        return self.step(call, x.value, lambda y: Pointwise(x.index, y, epilogue))

    def dense(self, weight: Constant) -> str:
        """Put ``weight`` into the store; returns its name."""
        if weight.name not in self.weights:
            self.weights[weight.name] = weight.tensor.detach().contiguous()
        return weight.name

    def ternary(self, packed: Constant, shape: Sequence[int]) -> str:
        """Put a packed ternary weight into the store, without a scale; returns its name."""
        if packed.name not in self.weights:
            self.weights[packed.name] = TernaryWeight(packed.tensor.detach(), tuple(shape))
        return packed.name

    def _new(self, value: Value, shape: tuple[int, ...]) -> Feature:
        self.values.append(value)
        return Feature(len(self.values) - 1, value, shape)


def filled(channels: int, number: float) -> Tensor:
    """(channels,) float64 of one number."""
    return torch.full((channels,), number, dtype=torch.float64)
