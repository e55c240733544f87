"""Zero-padding of channels: the shortcut that makes a residual wider without parameters."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dynkern.nn.dynamic import SlicedModule
from dynkern.nn.selection import Key


class ChannelPad(SlicedModule):
    """Zero channels before and after: shortcut "A" of He et al., CVPR 2016 (section 3.3, option A).

    ``out - in`` zero channels are added, ``(out - in) // 2`` of them first. In a slim network the padding goes from the
    active to the active number of channels, so that it stays centred as in a network built at that width.

    Args:
        in_channels: channels of the argument at full width.
        out_channels: channels of the result at full width, at least ``in_channels``.

    Raises:
        ValueError: fewer outputs than inputs, or fewer than one input.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        if not 0 < in_channels <= out_channels:
            raise ValueError(
                "in_channels, out_channels: expected 0 < in_channels <= out_channels, "
                f"got {in_channels} and {out_channels}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, active inputs, ...) to (N, active outputs, ...)."""
        if x.dim() < 2:
            raise ValueError(f"x: expected (N, C, ...), got shape {tuple(x.shape)}")
        s = self.slice_for(x.shape[1], "channels")
        inputs, outputs = (self.in_channels, self.out_channels) if s is None else (s.inputs, s.outputs)
        if x.shape[1] != inputs:
            raise ValueError(f"x: expected {inputs} channels, got {x.shape[1]}")
        first = (outputs - inputs) // 2
        return F.pad(x, (0, 0) * (x.dim() - 2) + (first, outputs - inputs - first))

    def plain(self, key: Key) -> nn.Module:
        """A padding of fixed numbers of channels."""
        s = self.slices[key]
        return ChannelPad(s.inputs, s.outputs).train(self.training)

    def extra_repr(self) -> str:
        """The arguments of the constructor."""
        return f"{self.in_channels}, {self.out_channels}"
