"""What every module that depends on the running sub-net has in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dynkern.nn.selection import Key, Selection, Slice


class DynamicModule(nn.Module):
    """A module that runs differently in each sub-net.

    Attributes:
        selection: which sub-net runs, shared with the network's other dynamic modules; None outside a slim network.
    """

    selection: Selection | None = None

    def plain(self, key: Key) -> nn.Module:
        """A new module without sub-nets that computes what this one computes in sub-net ``key``.

        It holds copies of the active parameters and buffers, and has the same training flag.
        """
        raise NotImplementedError(f"{type(self).__name__}.plain")


class SlicedModule(DynamicModule):
    """A layer that runs a :class:`Slice` of its channels, one for each sub-net.

    Without sub-nets (:meth:`bind` not called) a layer runs all its outputs on the first inputs, as many as its argument
    has. A subclass says how it becomes plain by :meth:`plain`.
    """

    slices: Mapping[Key, Slice]
    # The class before and after `become`; a layer that was made into yet another kind does not go back.
    _became: tuple[type[nn.Module], type[nn.Module]] | None = None

    def bind(self, selection: Selection, slices: Mapping[Key, Slice]) -> None:
        """Let ``selection`` choose among ``slices``, which holds one entry per sub-net."""
        missing = set(selection.keys) - set(slices)
        if missing:
            raise ValueError(f"slices: expected one per sub-net, none for {sorted(map(str, missing))}")
        self.selection = selection
        self.slices = dict(slices)

    def unbind(self) -> None:
        """Forget the sub-nets; a module that :func:`become` changed is again of the class that it had."""
        before, after = self._became or (None, None)
        for name in ("selection", "slices", "_became"):
            self.__dict__.pop(name, None)
        if before is not None and type(self) is after:
            self.__class__ = before  # type: ignore[assignment]

    @property
    def slice(self) -> Slice | None:
        """The channels that run now in this thread, or None for a layer that belongs to no sub-net."""
        return None if self.selection is None else self.slices[self.selection.active()]

    def slice_for(self, channels: int, kind: str) -> Slice | None:
        """The channels that run now, which take ``channels`` inputs; raises ``ValueError`` for another number."""
        s = self.slice
        if s is not None and channels != s.inputs:
            raise ValueError(f"x: expected {s.inputs} {kind}, as in the selected sub-net, got {channels}")
        return s

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        device = device_of(self)
        if self.selection is not None and device is not None:
            self.slices = {key: s.to(device) for key, s in self.slices.items()}
        return self


def become(module: nn.Module, cls: type[SlicedModule]) -> SlicedModule:
    """Change ``module`` in place to the dynamic class ``cls``, which must add no state to it.

    The object, its parameters, buffers and hooks stay what they are, so that optimisers and other references to them
    keep working; :meth:`SlicedModule.unbind` undoes it.
    """
    before = type(module)
    module.__class__ = cls
    module._became = (before, cls)  # type: ignore[assignment]
    return module  # type: ignore[return-value]


def device_of(module: nn.Module) -> torch.device | None:
    """The device of the module's parameters or buffers; None if it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return None
