"""Which channels a value in the network holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """A stretch of a tensor's channel axis: all channels of a group, in order.

    Attributes:
        group: of :class:`Groups`.
        repeat: how many neighbouring entries each channel has: more than one after a flatten.
        factor: names a further factor of ``repeat`` that :class:`Groups` learns later.
    """

    group: int
    repeat: int = 1
    factor: int | None = None


@dataclass(frozen=True)
class Layout:
    """Where the channels of a tensor are.

    Attributes:
        segments: what lies along the channel axis.
        axis: the channel axis, counted from the end (-1 is the last).
        rank: the number of axes, or None while unknown.
        extent: how many entries follow each channel (height times width), or None while unknown.
    """

    segments: tuple[Segment, ...]
    axis: int
    rank: int | None
    extent: int | None = None

    @property
    def position(self) -> int | None:
        """The channel axis counted from the start."""
        return None if self.rank is None else self.rank + self.axis

    def from_end(self, dim: int) -> int | None:
        """``dim`` counted from the end; None where that takes an unknown rank."""
        if dim < 0:
            return dim
        return None if self.rank is None else dim - self.rank


class Untracked:
    """A tensor that comes from the network's input, or from what never changes: all its channels always run."""


class Scalar:
    """A value that is no tensor."""


@dataclass(frozen=True)
class Shape:
    """The shape of a tensor."""

    of: Layout | Untracked


@dataclass(frozen=True)
class Dim(Scalar):
    """One entry of a shape; the axis is as the network's code gives it."""

    of: Layout | Untracked
    axis: int

    @property
    def channels(self) -> Layout | None:
        """The tensor whose number of channels this is, if it is one."""
        of = self.of
        return of if isinstance(of, Layout) and of.from_end(self.axis) == of.axis else None


Value = Layout | Untracked | Scalar | Shape | Tensor

UNTRACKED = Untracked()
SCALAR = Scalar()


def layouts(values: Iterable[object]) -> Iterator[Layout]:
    """The layouts among ``values``, inside lists, tuples and dictionaries too."""
    for value in values:
        if isinstance(value, Layout):
            yield value
        elif isinstance(value, dict):
            yield from layouts(value.values())
        elif isinstance(value, (tuple, list)):
            yield from layouts(value)
