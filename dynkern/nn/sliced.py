"""Drop-in Conv2d and Linear that run the active channels of their one full weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynkern import ops
from dynkern.nn.dynamic import SlicedModule
from dynkern.nn.plain import plain_conv2d, plain_linear
from dynkern.nn.selection import Key, Slice
from dynkern.ops import slices


class SlicedConv2d(SlicedModule, nn.Conv2d):
    """:class:`torch.nn.Conv2d` of a sub-net: same arguments, same ``state_dict``, reads only the active channels.

    Equation 1 of Yang & Fan, ASP-DAC 2021; see :func:`dynkern.ops.sliced_conv2d` for shapes and errors.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, active inputs, H, W) to (N, active outputs, H', W'); unbatched (C, H, W) is taken too."""
        x, padding = pad_as_asked(self, x)
        s = self.slice_for(x.shape[-3], "channels")
        where = {} if s is None else conv_where(s, self.groups)
        if differentiated(x, self):
            return _conv2d(self, x, padding, **where)
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
        if differentiated(x, self):
            return _linear(self, x, **where)
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


def differentiated(x: Tensor, layer: nn.Module) -> bool:
    """True where a gradient is recorded: then PyTorch runs on the active slice, at the cost of a copy of the slice.

    Its own layers train faster than a kernel for inference between them would: they keep channels_last and the dtype of
    autocast from one to the next (ResNet-20, batch 128, bfloat16: 2.8 times).
    """
    if not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return False
    return x.requires_grad or any(p is not None and p.requires_grad for p in layer._parameters.values())


def _conv2d(
    layer: Any,
    x: Tensor,
    padding: Any,
    out_channels: int | None = None,
    in_index: Tensor | None = None,
    out_index: Tensor | None = None,
) -> Tensor:
    weight, channels = layer.effective_weight(), x.shape[-3]
    rows = slices.conv_rows(weight.shape, channels, layer.groups, out_channels, in_index, out_index)
    active = weight[rows][:, slices.conv_columns(channels, layer.groups, in_index)]
    bias = None if layer.bias is None else layer.bias[rows]
    groups = channels // weight.shape[1] if layer.groups > 1 else 1
    return F.conv2d(x, active, bias, layer.stride, padding, layer.dilation, groups)


def _linear(
    layer: Any,
    x: Tensor,
    out_features: int | None = None,
    in_index: Tensor | None = None,
    out_index: Tensor | None = None,
) -> Tensor:
    rows = slice(0, out_features) if out_index is None else out_index
    columns = slice(0, x.shape[-1]) if in_index is None else in_index
    active = layer.effective_weight()[rows][:, columns]
    return F.linear(x, active, None if layer.bias is None else layer.bias[rows])


def pad_as_asked(layer: Any, x: Tensor) -> tuple[Tensor, Any]:
    """``x``, padded unless with zeros, and the padding that is left to the operator, which only knows zeros."""
    if layer.padding_mode == "zeros":
        return x, layer.padding
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
