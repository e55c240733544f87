"""From the captured graph of a sub-net to its plan, and the weights that the plan names."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import SymInt, Tensor, fx

from dynkern.engine.builder import Builder, Call, Constant, Feature, LoweringError, Operand, WeightTensor
from dynkern.engine.capture import Captured, packet
from dynkern.engine.epilogues import finished
from dynkern.engine.fuse import fuse
from dynkern.engine.operators import TABLE
from dynkern.engine.plan import Conv2d, Linear, Plan, Pointwise, Torch, Value
from dynkern.engine.torch_node import Foreign, TorchNode, announce, template

_LONGEST_NAME = 200


@dataclass(frozen=True)
class Lowered:
    """A plan and the full weights that its steps name."""

    plan: Plan
    weights: Mapping[str, WeightTensor]


def lower(
    captured: Captured, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32, fallback: bool = False
) -> Lowered:
    """The plan of a captured sub-net.

    Args:
        captured: see :func:`dynkern.engine.capture.capture`.
        tensors: parameters and buffers by name. Weights are referred to, not copied, under their name (the first one
            of a weight that has several), or that of the computation where a weight is computed of some. All sub-nets
            of a network therefore use the same names.
        dtype: of the epilogues' vectors, which are folded in float64.
        fallback: an operator that has no place in a plan becomes a step that torch runs.

    Raises:
        LoweringError: an operator has no place in a plan; the message names it and its module.
        ValueError: the network's argument or result is none that a plan has, or ``tensors`` do not fit the graph.
    """
    return _Lowering(captured, tensors, dtype, fallback).run()


class _Lowering:
    def __init__(self, captured: Captured, tensors: Mapping[str, Tensor], dtype: torch.dtype, fallback: bool) -> None:
        self.captured, self.dtype, self.fallback = captured, dtype, fallback
        self.tensors = {**captured.lifted, **tensors}
        self.names: dict[int, str] = {}
        for name, tensor in tensors.items():
            self.names.setdefault(id(tensor), name)
        for tensor in captured.lifted.values():
            if id(tensor) not in self.names:
                self.names[id(tensor)] = _digest(tensor)
        self.builder = Builder()
        self.operands: dict[fx.Node, Operand] = {}

    def run(self) -> Lowered:
        nodes = list(self.captured.graph.nodes)
        output = next((node for node in nodes if node.name == self.captured.output), None)
        needed = {output}
        for node in reversed(nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        with torch.no_grad():
            for node in nodes:
                if node in needed or node.name == self.captured.input:
                    self.operands[node] = self._operand(node)
        return self._result(None if output is None else self.operands[output])

    def _result(self, y: Operand) -> Lowered:
        if isinstance(y, Foreign):
            return self._fused(y.index, 0)
        if not isinstance(y, Feature) or not y.whole or len(y.shape) not in (1, 3):
            got = f"(N, {y.shape})" if isinstance(y, Feature) else "one that does not depend on the input"
            raise ValueError(f"net: expected a result of shape (N, features) or (N, C, H, W), got {got}")
        b = self.builder
        index = y.index
        if index == self.source.index:
            # A result is a new tensor, also that of a network that does nothing.
            b.values.append(y.value)
            index = len(b.values) - 1
            b.steps.append(Pointwise(y.index, index))
        return self._fused(index, len(y.shape) + 1)

    def _fused(self, output: int, dims: int) -> Lowered:
        b = self.builder
        plan = fuse(Plan(self.source.index, output, dims, b.values, b.steps))
        for i, step in enumerate(plan.steps):
            if isinstance(step, (Conv2d, Linear, Pointwise)):
                plan.steps[i] = replace(step, epilogue=finished(step.epilogue, self.dtype))
        return Lowered(plan, b.weights)

    def _operand(self, node: fx.Node) -> Operand:
        value: Any = node.meta.get("val")
        if node.op == "placeholder":
            return self._input(value) if node.name == self.captured.input else self._source(node.name, value)
        if node.op == "get_attr":
            return self._source(str(node.target), value) if isinstance(value, Tensor) else None
        if isinstance(value, (int, float, bool, SymInt)):
            return value
        args: Any = fx.map_arg(node.args, lambda n: self.operands[n])
        kwargs: Any = fx.map_arg(node.kwargs, lambda n: self.operands[n])
        if node.target is operator.getitem and not isinstance(args[0], Foreign):
            return args[0][args[1]]
        return self._call(node, args, kwargs)

    def _input(self, value: Tensor) -> Feature:
        self.batch = value.shape[0]
        shape = tuple(value.shape[1:])
        if len(shape) not in (1, 3) or not value.is_floating_point():
            raise ValueError(
                f"net: expected an input (N, C, H, W) or (N, features) of floats, got {value.dtype}, (N, {shape})"
            )
        self.dtype_in = value.dtype
        self.source = self.builder.input(shape)
        return self.source

    def _source(self, placeholder: str, value: Tensor) -> Constant:
        name = self.captured.sources.get(placeholder, placeholder)
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ValueError(f"net: {name!r} is gone since the network was captured; compile it again")
        if tensor.shape != value.shape or tensor.dtype != value.dtype:
            raise ValueError(
                f"net: expected {name!r} to be {value.dtype} of shape {tuple(value.shape)} as when the network was "
                f"captured, got {tensor.dtype} of shape {tuple(tensor.shape)}; compile it again"
            )
        return Constant(self.names[id(tensor)], tensor.detach())

    def _call(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Operand:
        b = self.builder
        before = len(b.values), len(b.steps), dict(b.weights)
        try:
            return self._native(node, args, kwargs)
        except LoweringError as error:
            if not self.fallback or not _runs_in_torch(node, args):
                raise
            del b.values[before[0] :], b.steps[before[1] :]
            b.weights = before[2]
            return self._in_torch(node, args, kwargs, str(error))

    def _in_torch(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], why: str) -> Operand:
        announce(why)
        b, result = self.builder, node.meta.get("val")
        shape = self._image_shape(result)
        reads, arguments = template(args, kwargs, self.batch)
        torch_node = TorchNode(packet(node), _module(node), node.target, arguments, shape is not None)  # type: ignore[arg-type]
        index, value = len(b.values), Value(*shape) if shape is not None else Value(0, 0, 0)
        b.values.append(value)
        b.steps.append(Torch(reads, index, torch_node))
        return Foreign(index) if shape is None else Feature(index, value, shape)

    def _image_shape(self, result: Any) -> tuple[int, ...] | None:
        """The shape, without the batch, of what the engine can go on with; None for anything else."""
        if not isinstance(result, Tensor) or result.dim() not in (2, 4) or result.dtype != self.dtype_in:
            return None
        batch, *shape = result.shape
        fixed = all(isinstance(size, int) and size > 0 for size in shape)
        return tuple(shape) if fixed and _equal(batch, self.batch) else None

    def _native(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Operand:
        name, where = packet(node), _module(node)
        failing = Call(name, where, {}, ())
        if not isinstance(node.target, torch._ops.OpOverload):
            failing.fail("it is no ATen operator")
        if _holds((args, kwargs), Foreign):
            failing.fail("an argument of it is none that the engine has")
        if not _holds((args, kwargs), Feature):
            return self._folded(failing, node.target, args, kwargs)
        if node.target._schema.is_mutable:
            name = name.removesuffix("_")
        if name not in TABLE:
            failing.fail("the engine has no step for it")
        call = Call(name, where, _named(node.target, args, kwargs), self._shapes(failing, node.meta.get("val")))
        return TABLE[name](self.builder, call)

    def _shapes(self, call: Call, value: Any) -> tuple[tuple[int, ...], ...]:
        """The results' shapes without the batch, which must be the first axis, in the network's dtype."""
        results = [v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, Tensor)]
        for i, result in enumerate(results):
            if i > 0 and result.numel() == 0:
                continue
            if result.dim() < 2 or not _equal(result.shape[0], self.batch):
                call.fail(f"its result {tuple(result.shape)} has the batch ({self.batch}) not as its first axis")
            if any(isinstance(size, SymInt) for size in result.shape[1:]):
                call.fail(f"its result {tuple(result.shape)} has a size that depends on the batch ({self.batch})")
            if result.dtype != self.dtype_in:
                call.fail(f"its result is {result.dtype}, where only that of the input, {self.dtype_in}, is supported")
        return tuple(tuple(result.shape[1:]) for result in results)

    def _folded(self, call: Call, target: torch._ops.OpOverload, args: tuple, kwargs: Mapping[str, Any]) -> Operand:
        """What a node computes of constants alone, computed now."""
        if target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags:
            call.fail("it changes a parameter or buffer, or is random")
        if _holds((args, kwargs), SymInt):
            call.fail("a tensor that depends on the batch size alone is not supported")
        values = fx.node.map_aggregate((args, kwargs), lambda v: v.tensor if isinstance(v, Constant) else v)
        described = fx.node.map_aggregate((args, dict(kwargs)), lambda v: v.name if isinstance(v, Constant) else v)
        name = f"{target}{described}"
        if len(name) > _LONGEST_NAME:
            name = f"{target}#{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        result = target(*values[0], **values[1])
        if isinstance(result, (list, tuple)):
            return tuple(Constant(f"{name}[{i}]", t) if isinstance(t, Tensor) else t for i, t in enumerate(result))
        return Constant(name, result) if isinstance(result, Tensor) else result


def _runs_in_torch(node: fx.Node, args: tuple[Any, ...]) -> bool:
    """True for operators that change at most what was made for them."""
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return not node.target._schema.is_mutable or isinstance(args[0], (Feature, Foreign))


def _named(target: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Operand]:
    """The arguments of a call by the names of the schema, with its defaults."""
    named = {}
    for i, argument in enumerate(target._schema.arguments):
        if i < len(args):
            named[argument.name] = args[i]
        else:
            named[argument.name] = kwargs.get(argument.name, argument.default_value)
    return named


def _holds(operands: Any, kind: type) -> bool:
    found = False

    def look(operand: Any) -> Any:
        nonlocal found
        found = found or isinstance(operand, kind)
        return operand

    fx.node.map_aggregate(operands, look)
    return found


def _equal(a: Any, b: Any) -> bool:
    """Equality of two sizes, without asking the symbols for it (which would be an assumption from then on)."""
    if isinstance(a, SymInt) and isinstance(b, SymInt):
        return a.node.expr == b.node.expr
    return not isinstance(a, SymInt) and not isinstance(b, SymInt) and a == b


def _module(node: fx.Node) -> str:
    stack = [entry for entry in (node.meta.get("nn_module_stack") or {}).values() if "empty" not in entry[0]]
    path, kind = stack[-1] if stack else ("", "")
    path = path.removeprefix("L['self']").removeprefix("L['fn']").lstrip(".")
    kind = (kind if isinstance(kind, str) else kind.__name__).split(".")[-1]
    return f"module {path!r} ({kind})" if path else f"the network itself ({kind})" if kind else "the network itself"


def _digest(tensor: Tensor) -> str:
    """A name for a tensor that has none: that of its contents."""
    contents = tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"tensor {tuple(tensor.shape)} {hashlib.sha256(contents).hexdigest()[:16]}"
