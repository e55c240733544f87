"""Drop-in Conv2d and Linear that run the active channels of their one full weight."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dynkern import ops
from dynkern.nn.dynamic import SlicedModule
from dynkern.nn.plain import plain_conv2d, plain_linear
from dynkern.nn.selection import Key, Slice


class SlicedConv2d(SlicedModule, nn.Conv2d):
    """:class:`torch.nn.Conv2d` of a sub-net: same arguments, same ``state_dict``, reads only the active channels.

    Equation 1 of Yang & Fan, ASP-DAC 2021; see :func:`dynkern.ops.sliced_conv2d` for shapes and errors.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, active inputs, H, W) to (N, active outputs, H', W'); unbatched (C, H, W) is taken too."""
        x, padding = pad_as_asked(self, x)
        s = self.slice_for(x.shape[-3], "channels")
        where = {} if s is None else conv_where(s, self.groups)
        return ops.sliced_conv2d(
            x, self.effective_weight(), self.bias, self.stride, padding, self.dilation, self.groups, **where
        )

    def effective_weight(self) -> Tensor:
        """The full weight that the layer multiplies with, (O, I / groups, kh, kw)."""
        return self.weight

    def plain(self, key: Key) -> nn.Module:
        """A :class:`torch.nn.Conv2d` with a copy of the slice; a depthwise layer has fewer groups."""
        return plain_conv2d(self, self.slices[key])


class SlicedLinear(SlicedModule, nn.Linear):
    """:class:`torch.nn.Linear` of a sub-net: same arguments, same ``state_dict``, reads only the active features.

    Equation 1 of Yang & Fan, ASP-DAC 2021; see :func:`dynkern.ops.sliced_linear` for shapes and errors.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., active inputs) to (..., active outputs)."""
        s = self.slice_for(x.shape[-1], "features")
        where = {} if s is None else linear_where(s)
        return ops.sliced_linear(x, self.effective_weight(), self.bias, **where)

    def effective_weight(self) -> Tensor:
        """The full weight that the layer multiplies with, (O, I)."""
        return self.weight

    def plain(self, key: Key) -> nn.Module:
        """A :class:`torch.nn.Linear` with a copy of the slice."""
        return plain_linear(self, self.slices[key])


def conv_where(s: Slice, groups: int) -> dict[str, Any]:
    """The slice as keyword arguments of a convolution; with groups the outputs follow from the inputs."""
    if groups > 1:
        return {"in_index": s.in_index}
    return {
        "out_channels": s.out_count,
        "in_index": s.in_index,
        "out_index": s.out_index,
    }


def linear_where(s: Slice) -> dict[str, Any]:
    """The slice as keyword arguments of a linear layer."""
    return {
        "out_features": s.out_count,
        "in_index": s.in_index,
        "out_index": s.out_index,
    }


def pad_as_asked(layer: Any, x: Tensor) -> tuple[Tensor, Any]:
    """``x``, padded unless with zeros, and the padding that is left to the operator, which only knows zeros."""
    if layer.padding_mode == "zeros":
        return x, layer.padding
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
