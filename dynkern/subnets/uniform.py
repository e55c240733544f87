"""Uniform sub-nets as channel counts."""

from __future__ import annotations

from torch import nn

from dynkern.subnets.choice import choose
from dynkern.subnets.coupled import coupled
from dynkern.subnets.spec import SubNet, check_divisor, check_width
from dynkern.subnets.walk import flow_of


def uniform(model: nn.Module, width: float, name: str | None = None, divisor: int = 1) -> SubNet:
    """The same share of the channels of every layer, the first ones (equation 1 of Yang & Fan, ASP-DAC 2021).

    :func:`dynkern.slim` takes the width itself too; as a :class:`SubNet` it can be compared with others, or changed.

    Args:
        model: a plain network.
        width: above 0 and at most 1.
        name: of the sub-net; the width by default.
        divisor: layers keep a multiple of it.

    Raises:
        ValueError, TypeError: a number is out of range, or ``model`` cannot be made slim.
    """
    flow = flow_of(model)
    kept = choose(flow, check_width(width), check_divisor(divisor)).kept
    channels = {}
    for group in coupled(model, flow):
        number = next(g for g in flow.groups.sliceable() if set(flow.groups.owners(g)) & set(group.layers))
        channels[group.name] = kept.get(number, group.size)
    return SubNet(str(width) if name is None else name, channels)
