"""Plans handed to the native engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dynkern import _C
from dynkern.engine import plan as ir
from dynkern.engine.builder import WeightTensor
from dynkern.engine.quantized_weight import QuantizedWeight, SkippingWeight
from dynkern.ops import TernaryWeight


class Store:
    """Copies of a network's weights, shared by the programs of all its sub-nets.

    Args:
        tensors: by name: dense float32 tensors (O, I / groups, kh, kw) or (O, I), or ternary, skipping or
            quantised weights of that shape.
    """

    def __init__(self, tensors: Mapping[str, WeightTensor]) -> None:
        self.native = _C.Store()
        self.ids: dict[str, int] = {}
        self.kernels: dict[str, tuple[int, int]] = {}
        for name, weight in tensors.items():
            if isinstance(weight, TernaryWeight):
                self.ids[name] = self.native.add_ternary(weight.packed.contiguous(), weight.shape)
            elif isinstance(weight, SkippingWeight):
                self.ids[name] = self.native.add_codes(weight.ternary.packed.contiguous(), weight.shape)
            elif isinstance(weight, QuantizedWeight):
                self.ids[name] = self.native.add_quantized(weight.values)
            else:
                self.ids[name] = self.native.add_dense(weight.detach().contiguous())
            height, width = (*weight.shape[2:], 1, 1)[:2]
            self.kernels[name] = (height, width)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.native.weight_bytes


class Program:
    """One sub-net at one input size, or a part of it, ready to run; any number of threads may run it at once.

    Args:
        store: has the weights.
        plan: without steps in torch.
        inputs, outputs: the values that are given and returned, where that is not one each.
    """

    def __init__(
        self, store: Store, plan: ir.Plan, inputs: Sequence[int] | None = None, outputs: Sequence[int] | None = None
    ) -> None:
        self.store = store
        self.dims = plan.output_dims
        self.native = _C.Program(store.native)
        for value in plan.values:
            element = value.element
            shape = (value.channels, value.height, value.width)
            self.native.value(*shape, element.kind, element.zero, element.across, element.left)
        for step in plan.steps:
            _ADD[type(step)](self.native, store, step)
        self.native.finish([plan.input] if inputs is None else inputs, [plan.output] if outputs is None else outputs)

    def run(self, x: Tensor, threads: int) -> Tensor | None:
        """The result for ``x`` (N, C, H, W) float32 on the CPU; None if ``x`` is anything else."""
        return self.native.run(x, self.dims, threads)

    def run_many(self, xs: list[Tensor], threads: int) -> list[Tensor]:
        """The results (N, C, H, W) of a program with several ``inputs`` or ``outputs``, in their order."""
        return self.native.run_many(xs, threads)

    def describe(self) -> list[dict[str, Any]]:
        """One row per step: what runs, the values it reads and writes, the shape of the result."""
        return self.native.describe()

    @property
    def arena_bytes(self) -> int:
        """Bytes of activations and working memory of one running call."""
        return self.native.arena_bytes

    @property
    def constant_bytes(self) -> int:
        """Bytes that this program holds beyond the store: scales, shifts, offsets."""
        return self.native.constant_bytes


def _vector(v: Tensor | None) -> Tensor | None:
    return None if v is None else v.detach().to(torch.float32).contiguous()


def _epilogue(e: ir.Epilogue) -> _C.Epilogue:
    residual = -1 if e.residual is None else e.residual
    a = e.activation
    return _C.Epilogue(
        _vector(e.scale), _vector(e.shift), residual, _vector(e.residual_scale), a.kind, float(a.low), float(a.high)
    )


def _conv2d(p: _C.Program, store: Store, s: ir.Conv2d) -> None:
    w = s.weight
    kernel = store.kernels[w.name]
    where = (list(w.in_index or ()), list(w.out_index or ()))
    p.conv2d(s.x, s.y, store.ids[w.name], kernel, list(s.geometry), s.groups, *where, _epilogue(s.epilogue))


def _linear(p: _C.Program, store: Store, s: ir.Linear) -> None:
    w = s.weight
    where = (list(w.in_index or ()), list(w.out_index or ()))
    p.linear(s.x, s.y, store.ids[w.name], *where, _epilogue(s.epilogue))


def _pool2d(p: _C.Program, _: Store, s: ir.Pool2d) -> None:
    geometry = [*s.stride, *s.padding, 1, 1]
    p.pool2d(s.x, s.y, s.kind == "max", s.kernel, geometry, s.count_padding)


# How each kind of step is added to a program.
_ADD: dict[type, Callable[[_C.Program, Store, Any], None]] = {
    ir.Conv2d: _conv2d,
    ir.Linear: _linear,
    ir.Pool2d: _pool2d,
    ir.AdaptiveAverage: lambda p, _, s: p.adaptive_average(s.x, s.y),
    ir.Pointwise: lambda p, _, s: p.pointwise(s.x, s.y, _epilogue(s.epilogue)),
    ir.Multiply: lambda p, _, s: p.multiply(s.x, s.y, s.gate),
    ir.Concat: lambda p, _, s: p.concat(list(s.xs), s.y),
    ir.Crop: lambda p, _, s: p.crop(s.x, s.y, s.first, s.step, s.count, s.offset),
    ir.Flatten: lambda p, _, s: p.flatten(s.x, s.y),
    ir.Softmax: lambda p, _, s: p.softmax(s.x, s.y, s.log),
}
