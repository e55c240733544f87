"""What is computed once from tensors: kept with them, dropped with them, renewed when they change."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class Derived(Generic[T]):
    """A cache of ``derive(*tensors)``; the last few ``keys`` of each first tensor stay."""

    def __init__(self, keep: int = 16) -> None:
        self._keep = keep
        # By the first tensor; the others are held, so that no new tensor can pass for one of them.
        self._known: dict[int, tuple[weakref.ref[Tensor], dict[Hashable, tuple[Hashable, tuple[Tensor, ...], T]]]] = {}

    def get(self, tensors: tuple[Tensor, ...], key: Hashable, derive: Callable[[], T]) -> T:
        """What ``derive`` gives, from the cache if none of ``tensors`` was written to since.

        Tensors of inference mode do not count their writes: what follows from them is not kept.
        """
        if any(t.is_inference() for t in tensors):
            return derive()
        first = tensors[0]
        state = tuple((t._version, t.data_ptr()) for t in tensors)
        whole = (key, tuple(id(t) for t in tensors[1:]))
        entry = self._known.get(id(first))
        if entry is None or entry[0]() is not first:
            number = id(first)
            entry = (weakref.ref(first, self._forget(number)), {})
            self._known[number] = entry
        values = entry[1]
        found = values.get(whole)
        if found is not None and found[0] == state:
            return found[2]
        value = derive()
        values.pop(whole, None)
        while len(values) >= self._keep:
            del values[next(iter(values))]
        values[whole] = (state, tensors[1:], value)
        return value

    def _forget(self, number: int) -> Callable[[object], None]:
        def forget(_: object) -> None:
            self._known.pop(number, None)

        return forget
