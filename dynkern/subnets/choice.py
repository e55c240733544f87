"""The channels that one sub-net keeps, in every group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dynkern.nn.channel_pad import ChannelPad
from dynkern.subnets.flow import Flow, Ports
from dynkern.subnets.groups import Groups
from dynkern.subnets.layout import Segment
from dynkern.subnets.spec import Channels, SubNet, prefix, uniform_count


@dataclass(frozen=True)
class Active:
    """What a sub-net keeps.

    Attributes:
        groups: of the whole network.
        kept: for each group that is not kept whole, its channels.
    """

    groups: Groups
    kept: Mapping[int, Channels]

    @property
    def whole(self) -> bool:
        """True if the sub-net is the whole network."""
        return not self.kept

    def entries(self, segments: tuple[Segment, ...]) -> Channels:
        """Which entries of a channel axis made of ``segments`` run: how many of the first, or their indices."""
        indices: list[int] = []
        start = 0
        for segment in self.groups.parts(segments):
            size, repeat = self.groups.size(segment.group) or 0, self.groups.repeat(segment) or 0
            kept = self.kept.get(self.groups.find(segment.group), size)
            for channel in range(kept) if isinstance(kept, int) else kept:
                indices += range(start + channel * repeat, start + (channel + 1) * repeat)
            start += size * repeat
        return prefix(tuple(indices))


def choose(flow: Flow, spec: float | SubNet, divisor: int) -> Active:
    """The channels that ``spec`` keeps; ``ValueError`` if it does not fit the network."""
    kept = _named(flow, spec) if isinstance(spec, SubNet) else _uniform(flow.groups, spec, divisor)
    sizes = flow.groups.size
    active = Active(flow.groups, {g: c for g, c in kept.items() if c != sizes(g)})
    for name, ports in flow.layers.items():
        if isinstance(flow.model.get_submodule(name), ChannelPad):
            _check_pad(active, spec, name, ports)
    return active


def _uniform(groups: Groups, width: float, divisor: int) -> dict[int, Channels]:
    return {g: uniform_count(groups.size(g) or 0, width, divisor) for g in groups.sliceable()}


def _named(flow: Flow, spec: SubNet) -> dict[int, Channels]:
    kept: dict[int, Channels] = {}
    said: dict[int, str] = {}
    for layer, value in spec.channels.items():
        channels: Channels = value if isinstance(value, int) else tuple(value)
        where = f"subnets: {spec.name!r}: layer {layer!r}"
        if layer not in flow.layers:
            raise ValueError(f"{where}: expected one of {sorted(flow.layers)}")
        segments = flow.groups.parts(flow.layers[layer].outputs)
        if len(segments) > 1 or flow.groups.repeat(segments[0]) != 1:
            raise ValueError(f"{where}: has the channels of a concatenation; name the layers that make them")
        group = flow.groups.find(segments[0].group)
        size = flow.groups.size(group) or 0
        most = channels if isinstance(channels, int) else max(channels) + 1
        if most > size:
            raise ValueError(f"{where}: has {size} channels, got {value!r}")
        why = flow.groups.pinned(group)
        if why is not None and channels != size:
            raise ValueError(f"{where}: keeps all its {size} channels ({why}), got {value!r}")
        if kept.setdefault(group, channels) != channels:
            raise ValueError(
                f"subnets: {spec.name!r}: layers {said[group]!r} and {layer!r} are coupled and must keep the same "
                f"channels, got {kept[group]!r} and {value!r}"
            )
        said.setdefault(group, layer)
    return kept


def _check_pad(active: Active, spec: float | SubNet, name: str, ports: Ports) -> None:
    inputs, outputs = (active.entries(s) for s in (ports.inputs, ports.outputs))
    fewer, more = (c if isinstance(c, int) else len(c) for c in (inputs, outputs))
    if fewer > more:
        key = spec.name if isinstance(spec, SubNet) else spec
        raise ValueError(f"subnets: {key!r}: module {name!r} (ChannelPad) cannot go from {fewer} channels to {more}")
