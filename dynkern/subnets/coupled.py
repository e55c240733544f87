"""The channels of a network as groups, and where the numbers of each channel lie: for pruning and reordering."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dynkern.nn.channel_pad import ChannelPad
from dynkern.subnets.flow import Flow
from dynkern.subnets.groups import Segments
from dynkern.subnets.walk import flow_of


@dataclass(frozen=True)
class Place:
    """Where the numbers of a group lie in one parameter or buffer.

    Attributes:
        module: that has it.
        name: of the tensor in the module.
        axis: along which the channels lie.
        start: the first entry of the first channel.
        repeat: entries per channel.
    """

    module: nn.Module
    name: str
    axis: int
    start: int
    repeat: int

    def of(self, size: int) -> Tensor:
        """The numbers of the group's ``size`` channels, a view (size, repeat, ...) with the channels in front."""
        tensor: Tensor = getattr(self.module, self.name)
        part = tensor.narrow(self.axis, self.start, size * self.repeat)
        return part.unflatten(self.axis, (size, self.repeat)).movedim((self.axis, self.axis + 1), (0, 1))


@dataclass
class Coupled:
    """Channels that come and go together, in several layers if these are added.

    Attributes:
        name: of a layer that makes them, by which a :class:`~dynkern.SubNet` names the group.
        layers: all layers that make them.
        size: how many there are.
        rows: the weights that make them, (size, repeat, ...) each.
        vectors: biases, and what batch norms have for them.
        columns: the weights that read them.
        fixed: why their order and number are not to be changed alone, or None: a :class:`~dynkern.nn.ChannelPad` reads
            or makes them, or a weight is shared by two layers.
    """

    name: str
    layers: tuple[str, ...]
    size: int
    rows: list[Place] = field(default_factory=list)
    vectors: list[Place] = field(default_factory=list)
    columns: list[Place] = field(default_factory=list)
    fixed: str | None = None

    def norms(self) -> Tensor:
        """(size,): the L2 norm of all weights that make each channel; differentiable."""
        weights = torch.cat([place.of(self.size).flatten(1) for place in self.rows], 1)
        return torch.linalg.vector_norm(weights, dim=1)


def coupled(model: nn.Module, flow: Flow | None = None) -> list[Coupled]:
    """The groups of channels of ``model`` that may be sliced, in the order of the layers that make them.

    Raises:
        ValueError: ``model`` is not one that :func:`dynkern.slim` takes.
    """
    flow = flow_of(model) if flow is None else flow
    groups = flow.groups
    known = {g: _named(flow, g) for g in groups.sliceable()}
    sharing = _sharing(flow)
    for name, ports in flow.layers.items():
        layer = model.get_submodule(name)
        if name in sharing:
            for group, _, _ in (*_parts(flow, ports.inputs), *_parts(flow, ports.outputs)):
                if group in known:
                    known[group].fixed = f"layer {name!r} shares a parameter with another one"
        if isinstance(layer, ChannelPad):
            for group, _, _ in (*_parts(flow, ports.inputs), *_parts(flow, ports.outputs)):
                if group in known:
                    known[group].fixed = "they are padded with zeros"
            continue
        for group, start, repeat in _parts(flow, ports.outputs):
            if group in known:
                known[group].rows.append(Place(layer, "weight", 0, start, repeat))
                if layer.bias is not None:
                    known[group].vectors.append(Place(layer, "bias", 0, start, repeat))
        if getattr(layer, "groups", 1) == 1:
            for group, start, repeat in _parts(flow, ports.inputs):
                if group in known:
                    known[group].columns.append(Place(layer, "weight", 1, start, repeat))
    for name, ports in flow.norms.items():
        norm = model.get_submodule(name)
        for group, start, repeat in _parts(flow, ports.inputs):
            for part in ("weight", "bias", "running_mean", "running_var"):
                if group in known and getattr(norm, part) is not None:
                    known[group].vectors.append(Place(norm, part, 0, start, repeat))
    order = list(flow.layers)
    return sorted((c for c in known.values() if c.rows), key=lambda c: order.index(c.name))


def _named(flow: Flow, group: int) -> Coupled:
    """The group without its places, under the name of the first layer whose outputs are just this group."""
    single = [
        name
        for name, ports in flow.layers.items()
        if not isinstance(flow.model.get_submodule(name), ChannelPad)
        and [(g, r) for g, _, r in _parts(flow, ports.outputs)] == [(group, 1)]
    ]
    owners = tuple(sorted(flow.groups.owners(group)))
    return Coupled(single[0] if single else owners[0], tuple(single) or owners, flow.groups.size(group) or 0)


def _parts(flow: Flow, segments: Segments) -> Iterator[tuple[int, int, int]]:
    """(group, first entry, entries per channel) of each part of a channel axis."""
    start = 0
    for segment in flow.groups.parts(segments):
        group, repeat = flow.groups.find(segment.group), flow.groups.repeat(segment) or 1
        yield group, start, repeat
        start += (flow.groups.size(group) or 0) * repeat


def _sharing(flow: Flow) -> set[str]:
    """The layers with a parameter that another layer has too."""
    owners: dict[int, list[str]] = {}
    for name in flow.layers:
        for parameter in flow.model.get_submodule(name).parameters():
            owners.setdefault(id(parameter), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}
