"""Arithmetic with windows: two in a row as one, and which of them only pad."""

from __future__ import annotations

from collections.abc import Sequence

from dynkern.engine.plan import Crop, Value
from dynkern.ops.arguments import Sides


def joined(inner: Crop, outer: Crop) -> Crop | None:
    """The window that does ``outer`` to the result of ``inner``; None if only zeros are left."""
    steps = []
    axes = []
    for axis in range(3):
        fine, coarse = ((1, *crop.step)[axis] for crop in (inner, outer))
        # `outer` takes the entries first + i * coarse for i in range(count) of a line in which `inner` has put its
        # entries in range(start, stop). Those i are in range(low, high).
        first, start = outer.first[axis], inner.offset[axis]
        stop = start + inner.count[axis]
        low = max(0, -((first - start) // coarse))
        high = min(outer.count[axis], (stop - 1 - first) // coarse + 1)
        if high <= low:
            return None
        axes.append((inner.first[axis] + (first + low * coarse - start) * fine, high - low, outer.offset[axis] + low))
        steps.append(fine * coarse)
    first3, count3, offset3 = zip(*axes, strict=True)
    return Crop(inner.x, outer.y, first3, (steps[1], steps[2]), count3, offset3)


def padding_of(crop: Crop, values: Sequence[Value]) -> Sides | None:
    """Top, bottom, left and right zeros, if all that ``crop`` does is to add them; else None."""
    x, y = values[crop.x], values[crop.y]
    whole = crop.count == (x.channels, x.height, x.width) and x.channels == y.channels
    if not whole:
        return None
    top, left = crop.offset[1:]
    return top, y.height - x.height - top, left, y.width - x.width - left
