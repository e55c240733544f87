"""Putting other modules in the place of some of a network's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def replace(net: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put each value of ``replacements`` in every place of ``net`` where its key stands; returns the root."""
    for parent in list(net.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(net, net)
