"""Which channels must be sliced alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dynkern.subnets.layout import Segment

Segments = tuple[Segment, ...]


class Unions:
    """Numbers that stand for the same thing, with one value for all of them (None while unknown)."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._values: list[int | None] = []

    def new(self, value: int | None) -> int:
        """A number that stands for itself."""
        self._parents.append(len(self._parents))
        self._values.append(value)
        return len(self._parents) - 1

    def find(self, number: int) -> int:
        """The number that stands for all those joined with ``number``."""
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number

    def value(self, number: int) -> int | None:
        """The value of ``number``, or None while it is unknown."""
        return self._values[self.find(number)]

    def set(self, number: int, value: int) -> None:
        """Set a value that was unknown."""
        self._values[self.find(number)] = value

    def join(self, a: int, b: int) -> bool:
        """Let ``a`` stand for ``b`` too; False if their values differ."""
        a, b = self.find(a), self.find(b)
        values = {self._values[a], self._values[b]} - {None}
        if len(values) > 1:
            return False
        self._parents[b] = a
        self._values[a] = values.pop() if values else None
        return True

    def __iter__(self) -> Iterator[int]:
        """Each number that stands for others, or for itself."""
        return (n for n, parent in enumerate(self._parents) if n == parent)


class Groups:
    """Sets of channels that are sliced as one, each with the layers that make it.

    A group may turn out to be composed: a convolution whose result is added to a concatenation has the parts of that
    concatenation for its channels.
    """

    def __init__(self) -> None:
        self._parts: dict[int, Segments] = {}
        self._sizes = Unions()
        self._factors = Unions()
        self._owners: dict[int, list[str]] = {}
        self._pins: dict[int, str] = {}

    def new(self, size: int | None, owner: str | None = None, pin: str | None = None) -> int:
        """A group of ``size`` channels (None: not known yet), made by ``owner``; with ``pin`` it is never sliced."""
        group = self._sizes.new(size)
        self._owners[group] = [] if owner is None else [owner]
        if pin is not None:
            self._pins[group] = pin
        return group

    def factor(self) -> int:
        """A factor that is not known yet, for :class:`Segment`."""
        return self._factors.new(None)

    def find(self, group: int) -> int:
        """The group that stands for all those joined with ``group``."""
        return self._sizes.find(group)

    def size(self, group: int) -> int | None:
        """How many channels ``group`` has at full width."""
        return self._sizes.value(group)

    def repeat(self, segment: Segment) -> int | None:
        """How many entries each channel of ``segment`` has."""
        factor = 1 if segment.factor is None else self._factors.value(segment.factor)
        return None if factor is None else segment.repeat * factor

    def owners(self, group: int) -> list[str]:
        """The layers that make the channels of ``group``."""
        return self._owners[self.find(group)]

    def pin(self, group: int, why: str) -> None:
        """Never slice ``group``."""
        for segment in self.parts((Segment(group),)):
            self._pins.setdefault(self.find(segment.group), why)

    def pinned(self, group: int) -> str | None:
        """Why ``group``, which is not composed, is never sliced, or None if it may be."""
        return self._pins.get(self.find(group))

    def sliceable(self) -> list[int]:
        """The groups that may be sliced, one number for each."""
        return [g for g in self._sizes if g not in self._pins and g not in self._parts]

    def parts(self, segments: Segments) -> Segments:
        """``segments`` with those of composed groups taken apart."""
        found: list[Segment] = []
        for segment in segments:
            parts = self._parts.get(self.find(segment.group))
            if parts is None:
                found.append(segment)
            else:
                inner = (replace(p, repeat=p.repeat * segment.repeat, factor=segment.factor) for p in parts)
                found += self.parts(tuple(inner))
        return tuple(found)

    def join(self, a: Segments, b: Segments) -> bool:
        """Slice ``a`` and ``b`` as one, entry by entry; False if that cannot be."""
        left, right = list(self.parts(a)), list(self.parts(b))
        while left and right:
            if self._join(left[0], right[0]):
                del left[0], right[0]
            elif not self._compose(left, right) and not self._compose(right, left):
                return False
        return not left and not right

    def _join(self, s: Segment, t: Segment) -> bool:
        a, b = self.find(s.group), self.find(t.group)
        known = {self.size(a), self.size(b)} - {None}
        if len(known) > 1 or not self._same_repeat(s, t):
            return False
        if a != b:
            self._sizes.join(a, b)
            self._owners[a] += self._owners[b]
            if b in self._pins:
                self._pins.setdefault(a, self._pins[b])
        return True

    def _compose(self, one: list[Segment], many: list[Segment]) -> bool:
        """Let the first segment of ``one`` have the parts that ``many`` begins with, and remove both."""
        rest = self.size(one[0].group)
        if rest is None or self.repeat(one[0]) != 1:
            return False
        parts: list[Segment] = []
        for segment in many:
            size, repeat = self.size(segment.group), self.repeat(segment)
            if rest == 0 or size is None or repeat is None:
                break
            parts.append(Segment(segment.group, repeat))
            rest -= size * repeat
        if rest:
            return False
        why = self.pinned(one[0].group)
        self._parts[self.find(one[0].group)] = tuple(parts)
        if why is not None:
            self.pin(one[0].group, why)
        del one[0], many[: len(parts)]
        return True

    def _same_repeat(self, s: Segment, t: Segment) -> bool:
        a, b = self.repeat(s), self.repeat(t)
        if a is None and b is None and s.factor is not None and t.factor is not None:
            return s.repeat == t.repeat and self._factors.join(s.factor, t.factor)
        if a is None:
            return b is not None and self._learn(s, b)
        return self._learn(t, a) if b is None else a == b

    def _learn(self, segment: Segment, repeat: int) -> bool:
        """Each channel of ``segment`` has ``repeat`` entries; False if that cannot be."""
        if repeat % segment.repeat or segment.factor is None:
            return False
        self._factors.set(segment.factor, repeat // segment.repeat)
        return True

    def fit(self, segments: Segments, total: int) -> bool:
        """Learn what is not known from the ``total`` number of entries; False if that cannot be."""
        sizes: dict[int, int] = {}
        factors: dict[int, int] = {}
        rest = total
        for segment in segments:
            size, repeat = self.size(segment.group), self.repeat(segment)
            if size is not None and repeat is not None:
                rest -= size * repeat
            elif repeat is not None:
                group = self.find(segment.group)
                sizes[group] = sizes.get(group, 0) + repeat
            elif size is not None and segment.factor is not None:
                factor = self._factors.find(segment.factor)
                factors[factor] = factors.get(factor, 0) + size * segment.repeat
            else:
                return False
        if len(sizes) + len(factors) != 1:
            return rest == 0 and not sizes and not factors
        ((unknown, times),) = [*sizes.items(), *factors.items()]
        if rest < 1 or rest % times:
            return False
        (self._sizes if sizes else self._factors).set(unknown, rest // times)
        return True
