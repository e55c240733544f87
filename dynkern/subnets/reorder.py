"""Putting channels into such an order that nested sub-nets are prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dynkern.subnets.choice import choose
from dynkern.subnets.coupled import Coupled, coupled
from dynkern.subnets.spec import SubNet
from dynkern.subnets.walk import flow_of


def nested(model: nn.Module, subnets: Iterable[SubNet]) -> bool:
    """True if in every layer each of ``subnets`` keeps only channels that the next larger ones keep too."""
    return all(_chain(sets) for sets in _kept(model, list(subnets)).values())


def reorder(model: nn.Module, subnets: Sequence[SubNet]) -> list[SubNet]:
    """Permute the channels of ``model`` once, so that each of ``subnets`` becomes the first channels of every layer.

    The network computes the same as before; a sub-net by its first channels is read where it lies, by index set it is
    not (the engine and a GPU then copy it). Call it before :func:`dynkern.slim` and before an optimiser is made.

    Args:
        model: a plain network, changed in place.
        subnets: nested ones: of any two, one has all channels of the other in every layer.

    Returns:
        The sub-nets in the new order, as counts of channels.

    Raises:
        ValueError: the sub-nets are not nested, do not fit ``model``, or would permute channels that a
            :class:`dynkern.nn.ChannelPad` gives a place, or of a weight that two layers share; the layer is named.
            ``model`` is then as it was.
    """
    kept = _kept(model, subnets)
    groups = {group.name: group for group in coupled(model)}
    orders: dict[str, Tensor] = {}
    for name, sets in kept.items():
        if not _chain(sets):
            raise ValueError(f"subnets: expected nested ones, but in layer {name!r} none of two has all of the other's")
        # A channel that more sub-nets keep comes first; otherwise the order stays.
        votes = [sum(channel in s for s in sets) for channel in range(groups[name].size)]
        order = sorted(range(len(votes)), key=lambda channel: (-votes[channel], channel))
        if order != sorted(order):
            if groups[name].fixed is not None:
                raise ValueError(f"subnets: layer {name!r}: its channels keep their order ({groups[name].fixed})")
            orders[name] = torch.tensor(order)
    for name, permutation in orders.items():
        _permute(groups[name], permutation)
    return [
        SubNet(subnet.name, {name: len(sets[i]) for name, sets in kept.items()}) for i, subnet in enumerate(subnets)
    ]


def _kept(model: nn.Module, subnets: Sequence[SubNet]) -> dict[str, list[frozenset[int]]]:
    """For each group by name the channels that each sub-net keeps."""
    for subnet in subnets:
        if not isinstance(subnet, SubNet):
            raise TypeError(f"subnets: expected SubNets, got {subnet!r}")
    flow = flow_of(model)
    chosen = [choose(flow, subnet, 1) for subnet in subnets]
    found: dict[str, list[frozenset[int]]] = {}
    for group in coupled(model, flow):
        number = next(g for g in flow.groups.sliceable() if set(flow.groups.owners(g)) & set(group.layers))
        for active in chosen:
            channels = active.kept.get(number, group.size)
            whole = range(channels) if isinstance(channels, int) else channels
            found.setdefault(group.name, []).append(frozenset(whole))
    return found


def _chain(sets: Sequence[frozenset[int]]) -> bool:
    ordered = sorted(sets, key=len)
    return all(a <= b for a, b in pairwise(ordered))


@torch.no_grad()
def _permute(group: Coupled, order: Tensor) -> None:
    for place in (*group.rows, *group.vectors, *group.columns):
        numbers = place.of(group.size)
        numbers.copy_(numbers[order.to(numbers.device)].clone())


def structure(model: nn.Module, subnets: Iterable[float | SubNet], divisor: int = 1) -> Mapping[str, dict[str, int]]:
    """How many output channels each convolution and linear layer has in each sub-net (figures 4 and 5 of Yang & Fan).

    Args:
        model: a plain network.
        subnets, divisor: as :func:`dynkern.slim` takes them.

    Returns:
        For each sub-net, by name or width, the number by layer, in the order of the layers.
    """
    flow = flow_of(model)
    found: dict[str, dict[str, int]] = {}
    for spec in subnets:
        active = choose(flow, spec, divisor)
        channels = {
            name: active.entries(ports.outputs)
            for name, ports in flow.layers.items()
            if isinstance(model.get_submodule(name), (nn.Conv2d, nn.Linear))
        }
        key = spec.name if isinstance(spec, SubNet) else str(spec)
        found[key] = {name: c if isinstance(c, int) else len(c) for name, c in channels.items()}
    return found
