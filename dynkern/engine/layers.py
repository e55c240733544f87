"""Lowering of the layers with weights: convolution, linear, batch norm."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dynkern.engine.builder import Builder, Call, Constant, Feature, Operand
from dynkern.engine.plan import Conv2d, Epilogue, Linear, Value, Weight
from dynkern.ops import arguments

Rows = tuple[int, ...] | None


def conv2d(b: Builder, call: Call) -> Feature:
    """``aten.conv2d``, with padding as numbers or as "same" or "valid"."""
    weight = call.constant(call["weight"])
    geometry = arguments.geometry(call["stride"], call["padding"], call["dilation"], weight.tensor.shape[2:])
    epilogue = _epilogue(call, None, call["bias"], None, weight.tensor.shape[0])
    return _conv(b, call, Weight(b.dense(weight)), geometry, call["groups"], epilogue)


def convolution(b: Builder, call: Call) -> Feature:
    """``aten.convolution``, the general form."""
    if call["transposed"]:
        call.fail("transposed convolutions are not supported")
    if call.constant(call["weight"]).tensor.dim() != 4:
        call.fail("only 2-D convolutions are supported")
    return conv2d(b, call)


def sliced_conv2d(b: Builder, call: Call) -> Feature:
    """``dynkern.sliced_conv2d``."""
    weight = call.constant(call["weight"])
    return _sliced_conv(b, call, b.dense(weight), weight.tensor.shape, None)


def ternary_conv2d(b: Builder, call: Call) -> Feature:
    """``dynkern.ternary_conv2d``."""
    name = b.ternary(call.constant(call["packed"]), call["shape"])
    return _sliced_conv(b, call, name, call["shape"], call["scale"])


def linear(b: Builder, call: Call) -> Feature:
    """``aten.linear``."""
    return _dense_linear(b, call, call["input"], call.constant(call["weight"]), call["bias"])


def addmm(b: Builder, call: Call) -> Feature:
    """``aten.addmm`` with a constant matrix."""
    if call["beta"] != 1 or call["alpha"] != 1:
        call.fail(f"expected alpha and beta of one, got {call['alpha']} and {call['beta']}")
    return _dense_linear(b, call, call["mat1"], _transposed(call, call["mat2"]), call["self"])


def matmul(b: Builder, call: Call) -> Feature:
    """``aten.mm`` and ``aten.matmul`` with a constant matrix on the right."""
    x, matrix = call.arguments.values()
    return _dense_linear(b, call, x, _transposed(call, matrix), None)


def sliced_linear(b: Builder, call: Call) -> Feature:
    """``dynkern.sliced_linear``."""
    weight = call.constant(call["weight"])
    return _sliced_linear(b, call, b.dense(weight), weight.tensor.shape[0], None)


def ternary_linear(b: Builder, call: Call) -> Feature:
    """``dynkern.ternary_linear``."""
    packed = call.constant(call["packed"])
    outputs = packed.tensor.shape[0]
    return _sliced_linear(b, call, b.ternary(packed, (outputs, call["in_features"])), outputs, call["scale"])


def batch_norm(b: Builder, call: Call) -> Feature:
    """Batch norm with running statistics: ``(x - mean) / sqrt(var + eps) * weight + bias``."""
    if call.arguments.get("training") or call["running_mean"] is None or call["running_var"] is None:
        call.fail("it normalises with the statistics of the batch")
    x = call.feature(call["input"])
    mean, variance = (call.constant(call[name]).tensor.double() for name in ("running_mean", "running_var"))
    scale = (variance + call["eps"]).rsqrt()
    if call["weight"] is not None:
        scale = scale * call.constant(call["weight"]).tensor.double()
    shift = -mean * scale
    if call["bias"] is not None:
        shift = shift + call.constant(call["bias"]).tensor.double()
    return b.pointwise(call, x, Epilogue(scale, shift))


def native_batch_norm(b: Builder, call: Call) -> tuple[Feature, None, None]:
    """``aten._native_batch_norm_legit_no_training``, of whose three results only the first has entries."""
    return batch_norm(b, call), None, None


def _conv(
    b: Builder, call: Call, weight: Weight, geometry: arguments.Geometry, groups: int, epilogue: Epilogue
) -> Feature:
    x = call.image(call.first)
    return b.image_step(call, lambda y: Conv2d(x.index, y, weight, geometry, groups, epilogue))


def _sliced_conv(b: Builder, call: Call, name: str, shape: Sequence[int], scale: Operand) -> Feature:
    x = call.image(call["x"])
    geometry = tuple(call["geometry"])
    groups, columns, rows = call["groups"], _index(call, call["in_index"]), _index(call, call["out_index"])
    taken = rows
    if groups > 1:
        # Of the groups that run each keeps its channels. The index set of a depthwise layer says which ones run.
        taken = None if columns is None else _filters(columns, shape[0] // groups)
        groups = x.value.channels // shape[1]
        if groups == 1:
            columns, rows = None, taken
    epilogue = _epilogue(call, scale, call["bias"], taken, call.shape[0])
    return _conv(b, call, Weight(name, columns, rows), geometry, groups, epilogue)


def _filters(groups: Sequence[int], multiplier: int) -> tuple[int, ...]:
    """The outputs of ``groups`` that have ``multiplier`` of them each."""
    return tuple(group * multiplier + i for group in groups for i in range(multiplier))


def _dense_linear(b: Builder, call: Call, x: Operand, weight: Constant, bias: Operand) -> Feature:
    if weight.tensor.dim() != 2:
        call.fail(f"expected a matrix as its weight, got shape {tuple(weight.tensor.shape)}")
    epilogue = _epilogue(call, None, bias, None, weight.tensor.shape[0])
    return _linear(b, call, x, Weight(b.dense(weight)), epilogue)


def _sliced_linear(b: Builder, call: Call, name: str, outputs: int, scale: Operand) -> Feature:
    rows = _index(call, call["out_index"])
    count = outputs if call["out_features"] is None else call["out_features"]
    epilogue = _epilogue(call, scale, call["bias"], rows, count)
    return _linear(b, call, call["x"], Weight(name, _index(call, call["in_index"]), rows), epilogue)


def _linear(b: Builder, call: Call, operand: Operand, weight: Weight, epilogue: Epilogue) -> Feature:
    x = call.vector(operand)
    return b.step(call, Value(call.shape[0]), lambda y: Linear(x.index, y, weight, epilogue))


def _transposed(call: Call, operand: Operand) -> Constant:
    matrix = call.constant(operand)
    if matrix.tensor.dim() != 2:
        call.fail(f"expected a matrix, got shape {tuple(matrix.tensor.shape)}")
    return Constant(f"transposed({matrix.name})", matrix.tensor.t())


def _epilogue(call: Call, scale: Operand, bias: Operand, rows: Rows, outputs: int) -> Epilogue:
    return Epilogue(_rows(call, scale, rows, outputs), _rows(call, bias, rows, outputs))


def _rows(call: Call, vector: Operand, rows: Rows, outputs: int) -> Tensor | None:
    if vector is None:
        return None
    values = call.constant(vector).tensor.detach().double()
    return values[:outputs] if rows is None else values[list(rows)]


def _index(call: Call, operand: Operand) -> Rows:
    """An index set as numbers; None where it is the first channels in order."""
    if operand is None:
        return None
    numbers = tuple(call.constant(operand).tensor.tolist())
    return None if numbers == tuple(range(len(numbers))) else numbers
