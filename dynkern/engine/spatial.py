"""Lowering of what works on the axes: pooling, reshaping, cutting, padding, joining."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynkern.engine.builder import Builder, Call, Feature, Operand
from dynkern.engine.plan import AdaptiveAverage, Concat, Crop, Flatten, Pool2d, Value
from dynkern.ops.arguments import Pair, Sides, pair


def max_pool2d(b: Builder, call: Call) -> Feature:
    """``max_pool2d``; rounding sizes up means more padding at the bottom and right, which a maximum ignores."""
    if pair("dilation", call["dilation"], 1) != (1, 1):
        call.fail(f"dilation is not supported, got {call['dilation']}")
    return _pool(b, call, "max")


def max_pool2d_with_indices(b: Builder, call: Call) -> tuple[Feature, None]:
    """``max_pool2d_with_indices``, of which only the maxima can be used."""
    return max_pool2d(b, call), None


def avg_pool2d(b: Builder, call: Call) -> Feature:
    """``avg_pool2d``."""
    if call["divisor_override"] is not None:
        call.fail(f"divisor_override is not supported, got {call['divisor_override']}")
    return _pool(b, call, "average")


def adaptive_avg_pool2d(b: Builder, call: Call) -> Feature:
    """``adaptive_avg_pool2d``."""
    x = call.image(call["self"])
    if call.shape == x.shape:
        return x
    return b.image_step(call, lambda y: AdaptiveAverage(x.index, y))


def mean(b: Builder, call: Call) -> Feature:
    """``mean`` over all pixels."""
    x = _all_pixels(call)
    return b.step(call, Value(x.value.channels), lambda y: AdaptiveAverage(x.index, y))


def amax(b: Builder, call: Call) -> Feature:
    """``amax`` over all pixels."""
    x = _all_pixels(call)
    size = (x.value.height, x.value.width)
    return b.step(call, Value(x.value.channels), lambda y: Pool2d(x.index, y, "max", size, size))


def reshape(b: Builder, call: Call) -> Feature:
    """``view``, ``flatten``, ``squeeze``, ``unsqueeze``, ...: the pixels as one axis, or all as features."""
    x = call.feature(call.first)
    channels, pixels = x.value.channels, x.value.height * x.value.width
    new = call.shape
    flat = Value(channels * pixels)
    kept = len(new) < 3 or new[1:] == (x.value.height, x.value.width)
    if kept and new[0] == channels and math.prod(new) == channels * pixels:
        return Feature(x.index, x.value, new)
    if math.prod(new) == new[0] == flat.channels:
        return b.step(call, flat, lambda y: Flatten(x.index, y))
    call.fail(f"from (N, {x.shape}) to (N, {new}) moves entries between channels, rows and columns")


def expand(b: Builder, call: Call) -> Feature:
    """``expand`` of (N, C, 1, 1), as the gate of a product."""
    x = call.feature(call.first)
    if len(call.shape) != len(x.shape) or call.shape[0] != x.value.channels:
        call.fail(f"only over rows and columns, got (N, {x.shape}) to (N, {call.shape})")
    return Feature(x.index, x.value, call.shape)


def cat(b: Builder, call: Call) -> Feature:
    """``cat`` along the channels."""
    xs = [call.feature(x) for x in call["tensors"]]
    if call.axis(call["dim"], xs[0]) != 0 or len({(len(x.shape), x.value.height, x.value.width) for x in xs}) != 1:
        call.fail("only along the channels of tensors that are else of one shape")
    if len(xs) == 1:
        return xs[0]
    value = Value(call.shape[0], xs[0].value.height, xs[0].value.width)
    return b.step(call, value, lambda y: Concat(tuple(x.index for x in xs), y))


def pad(b: Builder, call: Call) -> Feature:
    """``pad`` and ``constant_pad_nd`` with zeros; negative widths cut."""
    if call.arguments.get("mode", "constant") != "constant" or call.arguments.get("value") not in (None, 0):
        call.fail(f"only padding with zeros is supported, got {call.arguments.get('mode', 'constant')!r} padding")
    x = call.feature(call["self"])
    first, count, offset = [0, 0, 0], list(_size(x)), [0, 0, 0]
    widths: Sequence[int] = call["pad"]
    for i in range(0, len(widths), 2):
        before, after = widths[i : i + 2]
        axis = len(x.shape) - 1 - i // 2
        if axis < 0 or (axis > 0 and len(x.shape) == 2 and (before or after)):
            call.fail("it pads the batch, or pixels that were flattened")
        first[axis], offset[axis] = max(0, -before), max(0, before)
        count[axis] -= first[axis] + max(0, -after)
    return _crop(b, call, x, first, (1, 1), count, offset)


def cut(b: Builder, call: Call) -> Operand:
    """``slice``: a range of channels, rows or columns."""
    dim = call["dim"]
    x = call.feature(call["self"])
    if dim % (len(x.shape) + 1) == 0:
        # Lowering has checked that the batch is as it was.
        return x
    axis = call.axis(dim, x)
    start, stop, step = slice(call["start"], call["end"], call["step"]).indices(x.shape[axis])
    return _range(b, call, x, axis, start, len(range(start, stop, step)), step)


def narrow(b: Builder, call: Call) -> Feature:
    """``narrow``: a range of channels, rows or columns."""
    x = call.feature(call["self"])
    axis = call.axis(call["dim"], x)
    return _range(b, call, x, axis, call["start"] % x.shape[axis], call["length"], 1)


def split(b: Builder, call: Call) -> tuple[Feature, ...]:
    """``split`` and ``chunk``: all ranges of channels, rows or columns."""
    x = call.feature(call["self"])
    axis = call.axis(call["dim"], x)
    parts, start = [], 0
    for shape in call.shapes:
        part = Call(call.op, call.where, call.arguments, (shape,))
        parts.append(_range(b, part, x, axis, start, shape[axis], 1))
        start += shape[axis]
    return tuple(parts)


def _pool(b: Builder, call: Call, kind: str) -> Feature:
    x = call.image(call["self"])
    kernel: Pair = pair("kernel_size", call["kernel_size"], 1)
    stride: Pair = pair("stride", call["stride"], 1) if call["stride"] else kernel
    padding: Pair = pair("padding", call["padding"], 0)
    sides: list[int] = []
    for axis in (0, 1):
        spare = (call.shape[1 + axis] - 1) * stride[axis] + kernel[axis] - x.shape[1 + axis] - 2 * padding[axis]
        if spare > 0 and kind != "max":
            call.fail("an average whose size is rounded up (ceil_mode) is not supported")
        sides += [padding[axis], padding[axis] + max(0, spare)]
    if kernel == (1, 1) and not any(sides):
        return _crop(b, call, x, (0, 0, 0), stride, call.shape, (0, 0, 0))
    if kind == "average" and kernel == x.shape[1:] and not any(sides):
        return b.image_step(call, lambda y: AdaptiveAverage(x.index, y))
    around: Sides = tuple(sides)  # type: ignore[assignment]
    counted = call.arguments.get("count_include_pad", True)
    return b.image_step(call, lambda y: Pool2d(x.index, y, kind, kernel, stride, around, counted))


def _all_pixels(call: Call) -> Feature:
    """The argument of a reduction over rows and columns, and over nothing else."""
    x = call.feature(call["self"])
    dims = call["dim"] or ()
    axes = {call.axis(dim, x) for dim in dims}
    if not axes or axes != set(range(1, len(x.shape))):
        call.fail(f"only over all rows and columns together, got dimensions {list(dims)} of (N, {x.shape})")
    return x


def _range(b: Builder, call: Call, x: Feature, axis: int, start: int, length: int, step: int) -> Feature:
    if (axis == 0 and step != 1) or (axis > 0 and len(x.shape) != 3) or length < 1:
        call.fail("only ranges that are not empty, of channels without steps, or of rows and columns")
    first, count, steps = [0, 0, 0], list(_size(x)), [1, 1, 1]
    first[axis], count[axis], steps[axis] = start, length, step
    return _crop(b, call, x, first, (steps[1], steps[2]), count, (0, 0, 0))


def _crop(
    b: Builder,
    call: Call,
    x: Feature,
    first: Sequence[int],
    step: Pair,
    count: Sequence[int],
    offset: Sequence[int],
) -> Feature:
    sizes = (*call.shape, 1, 1)[:3] if len(call.shape) != 2 else (call.shape[0], *_size(x)[1:])
    value = Value(*sizes)
    if value == x.value and tuple(count) == _size(x):
        return Feature(x.index, x.value, call.shape)
    if min(count) < 1:
        call.fail("nothing of its argument is left")
    start, taken, place = (tuple(v) for v in (first, count, offset))
    return b.step(call, value, lambda y: Crop(x.index, y, start, step, taken, place))  # type: ignore[arg-type]


def _size(x: Feature) -> tuple[int, int, int]:
    return x.value.channels, x.value.height, x.value.width
