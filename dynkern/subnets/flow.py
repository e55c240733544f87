"""What is known of the channels of a network: what every layer takes and makes, and what must be sliced alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dynkern.subnets.groups import Groups, Segments
from dynkern.subnets.layout import SCALAR, UNTRACKED, Layout, Scalar, Segment, Shape, Untracked, Value, layouts


@dataclass(frozen=True)
class Ports:
    """The channels that one layer takes and makes, at full width."""

    inputs: Segments
    outputs: Segments


class Flow:
    """The channel flow of ``model``, as far as it is known: the rules of the walk over the graph add to it.

    Attributes:
        model: the network.
        groups: the channels that are sliced as one.
        layers: convolutions, linear layers and channel paddings, by qualified name.
        norms: batch norms, by qualified name.
        read: parameters and buffers that are used outside of their module: the qualified name, by the tensor's id.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.groups = Groups()
        self.layers: dict[str, Ports] = {}
        self.norms: dict[str, Ports] = {}
        self.read: dict[int, str] = {}
        self._refusals: list[tuple[Segments, str]] = []

    def pin(self, segments: Iterable[Segment], why: str) -> None:
        """Never slice these channels."""
        for segment in segments:
            self.groups.pin(segment.group, why)

    def refuse(self, segments: Segments, message: str) -> None:
        """Raise ``ValueError`` in the end, if any of these channels may be sliced."""
        self._refusals.append((segments, message))

    def unknown(self, where: str, args: Any, kwargs: Any) -> Value:
        """The result of what has no rule: it must not get sliced channels."""
        for layout in layouts((args, kwargs)):
            self.refuse(layout.segments, f"{where}: it is not known how to slice its channels")
        tensors = any(isinstance(v, (Layout, Untracked, Tensor)) for v in (*args, *kwargs.values()))
        shapes = any(isinstance(v, (Scalar, Shape)) for v in args)
        return SCALAR if shapes and not tensors else UNTRACKED

    def fixed(self, size: int, why: str) -> Segments:
        """``size`` channels that are never sliced."""
        return (Segment(self.groups.new(size, pin=why)),)

    def fit(self, x: Layout, total: int, where: str) -> Segments:
        """The channels of ``x`` for the module at ``where``, which was made for ``total`` of them."""
        if self.groups.fit(x.segments, total):
            return x.segments
        self.refuse(x.segments, f"{where}: it is not known which channels its {total} inputs are")
        return self.fixed(total, "they go into a module that cannot be sliced")

    def join(self, a: Segments, b: Segments, message: str) -> Segments:
        """Slice ``a`` and ``b`` alike, entry by entry; refuse with ``message`` if they are composed differently."""
        if not self.groups.join(a, b):
            self.refuse(a + b, message)
        return a

    def record(self, known: dict[str, Ports], name: str, where: str, inputs: Segments, outputs: Segments) -> Segments:
        """Note what the layer ``name`` takes and makes, and return what it makes; a second call takes the same."""
        if name not in known:
            known[name] = Ports(inputs, outputs)
        else:
            self.join(known[name].inputs, inputs, f"{where}: used twice, on channels that are not sliced alike")
        return known[name].outputs

    def settle(self) -> None:
        """Raise ``ValueError`` for what stands in the way, now that it is known which channels are never sliced."""
        for segments, message in self._refusals:
            free = [s.group for s in self.groups.parts(segments) if self.groups.pinned(s.group) is None]
            if free:
                made = ", ".join(sorted({repr(o) for g in free for o in self.groups.owners(g)}))
                raise ValueError(f"cannot slice {message}" + (f" (they come from {made})" if made else ""))
        for name, ports in self.layers.items():
            if all(self.groups.pinned(s.group) for s in self.groups.parts(ports.inputs + ports.outputs)):
                continue
            for parameter in self.model.get_submodule(name).parameters():
                if id(parameter) in self.read:
                    raise ValueError(
                        f"cannot slice module {name!r}: the network also uses its parameter "
                        f"{self.read[id(parameter)]!r} outside of it"
                    )
        if not self.groups.sliceable():
            raise ValueError(
                "model: nothing to slice: all channels come from its input or reach its output, which are never sliced"
            )
