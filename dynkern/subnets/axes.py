"""What becomes of the channels when a function moves, merges, removes or cuts axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dynkern.subnets.flow import Flow
from dynkern.subnets.layout import UNTRACKED, Dim, Layout, Scalar, Segment, Untracked, Value


def extent(size: Any, axes: int) -> int | None:
    """The product of a size that is given for ``axes`` axes; None if it is not wholly known."""
    sizes = [size] * axes if isinstance(size, int) else size
    if not isinstance(sizes, Sequence) or not all(isinstance(s, int) for s in sizes):
        return None
    return math.prod(sizes)


def spatial(flow: Flow, where: str, x: Value, axes: int, extent: int | None) -> Value:
    """Each channel is worked on alone, along the last ``axes`` axes, which then have ``extent`` entries."""
    if not isinstance(x, Layout):
        return UNTRACKED
    if -x.axis <= axes:
        return refused(flow, where, x, "it works along the channels")
    return replace(x, extent=extent if -x.axis == axes + 1 else None)


def resize(flow: Flow, where: str, x: Value) -> Value:
    """Each channel is worked on alone, along all axes after the second."""
    if not isinstance(x, Layout):
        return UNTRACKED
    if x.position != 1:
        return refused(flow, where, x, "it works along the channels")
    return replace(x, extent=None)


def flatten(flow: Flow, where: str, x: Value, start: Any, end: Any) -> Value:
    """The axes from ``start`` to ``end`` become one."""
    if not isinstance(x, Layout):
        return UNTRACKED
    first, last = (x.from_end(d) if isinstance(d, int) else None for d in (start, end))
    if first is None or last is None or x.rank is None:
        return refused(flow, where, x, "it is not known which axes it merges")
    merged = max(0, last - first)
    if first > x.axis:
        return replace(x, axis=x.axis + merged, rank=x.rank - merged)
    if merged == 0 or last < x.axis:
        return replace(x, rank=x.rank - merged)
    if first < x.axis or last != -1:
        return refused(flow, where, x, "it merges the channels with other axes")
    return flat(flow, where, x)


def flat(flow: Flow, where: str, x: Layout) -> Value:
    """The channels merged with all axes after them."""
    rank = None if x.position is None else x.position + 1
    if x.extent is not None:
        return Layout(tuple(replace(s, repeat=s.repeat * x.extent) for s in x.segments), -1, rank, 1)
    if any(s.factor is not None for s in x.segments):
        return refused(flow, where, x, "it merges them with other axes twice")
    factor = flow.groups.factor()
    return Layout(tuple(replace(s, factor=factor) for s in x.segments), -1, rank, 1)


def reduce(flow: Flow, where: str, x: Value, dims: Any, keepdim: bool) -> Value:
    """One value (a mean, a sum) for all entries along ``dims``."""
    if not isinstance(x, Layout):
        return UNTRACKED
    if dims is None:
        return UNTRACKED
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, Sequence) or not all(isinstance(d, int) for d in dims):
        return refused(flow, where, x, "it is not known along which axes it works")
    ends = [x.from_end(d) for d in dims]
    gone = [d for d in ends if d is not None]
    if len(gone) < len(ends):
        return refused(flow, where, x, "it is not known along which axes it works")
    if x.axis in gone:
        one = (Segment(flow.groups.new(1, pin="it is a single channel")),)
        return replace(x, segments=one) if keepdim else UNTRACKED
    after = sum(d > x.axis for d in gone)
    left = 1 if after == -x.axis - 1 else None
    if keepdim:
        return replace(x, extent=left)
    return replace(x, axis=x.axis + after, rank=None if x.rank is None else x.rank - len(gone), extent=left)


def squeeze(flow: Flow, where: str, x: Value, dims: Any) -> Value:
    """Axes of one entry are removed; which ones is taken from ``dims``, and all after the channels when it is None."""
    if not isinstance(x, Layout):
        return UNTRACKED
    if dims is None:
        return Layout(x.segments, -1, None, 1)
    dims = [dims] if isinstance(dims, int) else dims
    gone = [x.from_end(d) if isinstance(d, int) else None for d in dims]
    if None in gone or x.axis in gone:
        return refused(flow, where, x, "it may remove the axis of the channels")
    after = sum(d is not None and d > x.axis for d in gone)
    return replace(x, axis=x.axis + after, rank=None if x.rank is None else x.rank - len(gone))


def unsqueeze(flow: Flow, where: str, x: Value, dim: Any) -> Value:
    """An axis of one entry is added."""
    if not isinstance(x, Layout):
        return UNTRACKED
    if not isinstance(dim, int) or (dim >= 0 and x.rank is None):
        return refused(flow, where, x, "it is not known where it adds an axis")
    place = dim if x.rank is None or dim < 0 else dim - x.rank - 1
    return replace(x, axis=x.axis if x.axis > place else x.axis - 1, rank=None if x.rank is None else x.rank + 1)


def view(flow: Flow, where: str, x: Value, sizes: Sequence[Any]) -> Value:
    """A new shape: (batch, channels, ...), where the channels must be given as -1 or as the size of a channel axis."""
    if not isinstance(x, Layout):
        return UNTRACKED
    if x.position != 1 or len(sizes) < 2 or not _batch(sizes[0], sizes[1]):
        return refused(flow, where, x, "it is not known where it puts the channels")
    channels, rest = sizes[1], sizes[2:]
    ones = all(isinstance(s, int) and s == 1 for s in rest)
    counted = channels.channels if isinstance(channels, Dim) else None
    if counted is not None:
        joined = flow.join(x.segments, counted.segments, f"{where}: it counts the channels of one tensor in another")
        return Layout(joined, -len(rest) - 1, len(sizes), 1 if ones else None)
    if not isinstance(channels, int) or not ones:
        return refused(flow, where, x, "it is not known where it puts the channels")
    if channels != -1:
        refused(flow, where, x, f"it fixes their number to {channels}; -1, flatten or x.size(1) would not")
    merged = flat(flow, where, x)
    return replace(merged, axis=-len(rest) - 1, rank=len(sizes)) if isinstance(merged, Layout) else merged


def _batch(size: Any, channels: Any) -> bool:
    if isinstance(size, Dim):
        return size.axis == 0
    return isinstance(size, int) and size == -1 and channels != -1


def index(flow: Flow, where: str, x: Value, key: Any) -> Value:
    """``x[key]``: cuts, picks and adds axes other than that of the channels."""
    if not isinstance(x, Layout):
        return UNTRACKED
    items = list(key) if isinstance(key, tuple) else [key]
    if x.rank is None or not all(k is None or k is ... or isinstance(k, (int, slice)) for k in items):
        return refused(flow, where, x, "it is not known which channels it takes")
    used = sum(k is not None and k is not ... for k in items)
    if ... not in items:
        items.append(...)
    place = items.index(...)
    items[place : place + 1] = [slice(None)] * (x.rank - used)
    kept: list[int | None] = []
    position = 0
    for item in items:
        if item is None:
            kept.append(None)
            continue
        if position == x.position and item != slice(None):
            return refused(flow, where, x, "it takes some of the channels")
        if isinstance(item, slice):
            kept.append(position)
        position += 1
    axis = kept.index(x.position) - len(kept)
    return Layout(x.segments, axis, len(kept), 1 if x.extent == 1 else None)


def pad(flow: Flow, where: str, x: Value, widths: Any) -> Value:
    """Entries are added along the last axes: ``widths`` holds two numbers for each, the last axis first."""
    if not isinstance(x, Layout):
        return UNTRACKED
    if not isinstance(widths, Sequence):
        return refused(flow, where, x, "it is not known which axes it pads")
    place = 2 * (-x.axis - 1)
    if any(isinstance(w, Scalar) or w != 0 for w in widths[place : place + 2]):
        return refused(flow, where, x, "it pads the channels; dynkern.nn.ChannelPad does that in every sub-net")
    return replace(x, extent=None)


def refused(flow: Flow, where: str, x: Layout, why: str) -> Untracked:
    """What comes out when the channels of ``x`` must not be sliced, since they can no longer be followed."""
    flow.refuse(x.segments, f"{where}: {why}")
    return UNTRACKED
