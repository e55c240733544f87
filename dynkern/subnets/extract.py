"""A sub-net as a plain network."""

from __future__ import annotations

import copy

from torch import nn

from dynkern.nn.dynamic import DynamicModule
from dynkern.nn.selection import Key
from dynkern.subnets.switch import MADE, ROOT, selection_of


def extract(net: nn.Module, key: Key) -> nn.Module:
    """A copy of sub-net ``key`` made of plain torch modules, with the same outputs: for export, or for comparison.

    Weights are sliced and copied, depthwise convolutions have fewer groups, and :class:`dynkern.nn.ChannelPad` pads by
    fixed numbers. Ternary layers become plain ones with ternary values. Hooks of sliced layers, and the sharing of one
    parameter by several layers, are not carried over.

    Args:
        net: a network made by :func:`dynkern.slim`, which is not touched.
        key: a width, or the name of a :class:`~dynkern.SubNet`.

    Returns:
        The copy, in the training or eval mode of ``net``.

    Raises:
        ValueError: ``net`` is not slim, or has no sub-net ``key``.
    """
    selection = selection_of(net)
    key = selection.check(key)
    # The copy takes the plain modules for copies of the dynamic ones, so that no full weight is copied.
    plain: dict[int, object] = {
        id(m): m.plain(key) for m in net.modules() if isinstance(m, DynamicModule) and m.selection is selection
    }
    result: nn.Module = copy.deepcopy(net, plain)
    for module in result.modules():
        for name in (ROOT, MADE):
            vars(module).pop(name, None)
    return result
