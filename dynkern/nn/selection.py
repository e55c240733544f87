"""Which sub-net runs: one object shared by all dynamic modules of a network."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Key = float | str

_lock = threading.Lock()


class Selection:
    """The sub-nets of one network and the one that runs.

    Args:
        keys: the names of the sub-nets: floats for uniform widths, strings for others.
        current: the one that runs first; the last of ``keys`` by default.

    Raises:
        ValueError: no keys, the same key twice, or ``current`` is not one of them.
    """

    def __init__(self, keys: Sequence[Key], current: Key | None = None) -> None:
        if not keys:
            raise ValueError("subnets: expected at least one sub-net, got none")
        self.keys = tuple(keys)
        self._known = {key: key for key in self.keys}
        if len(self._known) != len(self.keys):
            raise ValueError(f"subnets: expected every sub-net once, got {list(self.keys)}")
        self.current = self.keys[-1] if current is None else self.check(current)
        self._open = 0
        # True while any thread is inside `using`. torch.compile cannot read a ContextVar, but it guards on this flag,
        # so compiled code falls back to eager look-up instead of running the wrong sub-net.
        self._overridden = False

    def check(self, key: Key) -> Key:
        """``key`` if it names a sub-net; raises ``ValueError`` otherwise."""
        if isinstance(key, (float, int, str)) and not isinstance(key, bool) and key in self._known:
            return self._known[key]
        raise ValueError(f"subnet: expected one of {list(self.keys)}, got {key!r}")

    def active(self) -> Key:
        """The sub-net that runs in this thread."""
        if not self._overridden:
            return self.current
        return _own_eagerly(self) if torch.compiler.is_compiling() else _own(self)

    def select(self, key: Key) -> None:
        """Choose the sub-net for every thread that is not inside :meth:`using`."""
        self.current = self.check(key)

    @contextmanager
    def using(self, key: Key) -> Iterator[None]:
        """Choose the sub-net for this thread (or asyncio task) until the block ends."""
        choice = _Choice(self.check(key))
        token = _overrides.set({**_overrides.get(), self: choice})
        self._count(1)
        try:
            yield
        finally:
            choice.open = False
            self._count(-1)
            _overrides.reset(token)

    def _count(self, change: int) -> None:
        with _lock:
            self._open += change
            self._overridden = self._open > 0

    def __getstate__(self) -> dict[str, Any]:
        return {"keys": self.keys, "current": self.current}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"Selection({list(self.keys)}, current={self.current!r})"


@dataclass
class _Choice:
    """The sub-net of one :meth:`Selection.using` block, which a task started in it may outlive."""

    key: Key
    open: bool = True


# Sub-nets chosen for the running thread (or task) alone; replaced, never changed in place.
_overrides: ContextVar[Mapping[Selection, _Choice]] = ContextVar("dynkern_subnet", default={})  # noqa: B039


def _own(selection: Selection) -> Key:
    """The sub-net that this thread chose for itself, or else the one chosen for all."""
    choice = _overrides.get().get(selection)
    return choice.key if choice is not None and choice.open else selection.current


# As torch.compiler.disable, but torch's compiler is loaded when it is used and not with this package.
_own_eagerly = torch._disable_dynamo(_own)


@dataclass(frozen=True)
class Slice:
    """The channels of one layer that a sub-net runs.

    Attributes:
        inputs: how many input channels; they are the first ones unless ``in_index`` says which.
        outputs: how many output channels; they are the first ones unless ``out_index`` says which.
        in_index, out_index: (inputs,) and (outputs,) int64, or None.
    """

    inputs: int
    outputs: int
    in_index: Tensor | None = None
    out_index: Tensor | None = None

    def to(self, device: torch.device) -> Slice:
        """The same slice with its index sets on ``device``."""
        in_index, out_index = (i if i is None else i.to(device) for i in (self.in_index, self.out_index))
        return Slice(self.inputs, self.outputs, in_index, out_index)

    @property
    def out_count(self) -> int | None:
        """How many of the first outputs run; None where ``out_index`` says which."""
        return self.outputs if self.out_index is None else None

    @property
    def rows(self) -> Tensor | slice:
        """What indexes the active outputs of the full weight's first axis."""
        return slice(0, self.outputs) if self.out_index is None else self.out_index

    @property
    def columns(self) -> Tensor | slice:
        """What indexes the active inputs of the full weight's second axis."""
        return slice(0, self.inputs) if self.in_index is None else self.in_index
