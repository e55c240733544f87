"""Training that knows of the integers to come: quantisation-aware training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dynkern.engine.quantized import element_of
from dynkern.engine.quantized_weight import LARGEST, QuantizedWeight
from dynkern.nn.sliced import SlicedConv2d


class AwareConv2d(SlicedConv2d):
    """A sliced convolution that rounds its input and weights as the engine's integer kernels do.

    Weights are symmetric with a scale for each output channel; inputs have a scale and a zero point from the least and
    largest entry of the batch. Gradients pass the rounding as if it were not there.
    """

    bits: int

    def forward(self, x: Tensor) -> Tensor:
        """As of :class:`~dynkern.nn.SlicedConv2d`."""
        return super().forward(rounded_input(x, self.bits))

    def effective_weight(self) -> Tensor:
        """The full weight, rounded."""
        return rounded_weight(self.weight, self.bits)


@contextmanager
def aware(net: nn.Module, bits: int = 8) -> Iterator[nn.Module]:
    """Let the convolutions of ``net`` round inputs and weights to integers of ``bits`` (8 or 16) inside the block.

    Train inside, then calibrate and compile as ever: ``dk.compile(net, x, int8=dk.quantize.calibrate(net, loader))``.
    Each sub-net sees its own ranges. What the engine leaves in floats (grouped convolutions, linear layers) stays as it
    is here too.

    Args:
        net: a slim network (:func:`dynkern.slim`; of a plain one with ``subnets=(1.0,)``).
        bits: of weights and activations.

    Raises:
        ValueError: ``bits`` is neither 8 nor 16, or ``net`` has no sliced convolution.
    """
    if bits not in LARGEST:
        raise ValueError(f"bits: expected one of {sorted(LARGEST)}, got {bits}")
    layers = [m for m in net.modules() if type(m) is SlicedConv2d and m.groups == 1]
    if not layers:
        raise ValueError("net: expected convolutions of a slim network (see dynkern.slim), found none")
    try:
        for layer in layers:
            layer.__class__ = AwareConv2d
            layer.bits = bits  # type: ignore[assignment]
        yield net
    finally:
        for layer in layers:
            layer.__class__ = SlicedConv2d
            del layer.bits


def rounded_input(x: Tensor, bits: int) -> Tensor:
    """``x`` rounded to what integers of ``bits`` with one scale and zero point can hold; straight-through gradient."""
    with torch.no_grad():
        wide = x.float()
        least, greatest = torch.aminmax(wide) if x.numel() else (torch.zeros(()), torch.zeros(()))
        element = element_of((float(least), float(greatest)), bits)
        low, high = (0, 255) if element.kind == "uint8" else (-LARGEST[16], LARGEST[16])
        q = (wide / element.scale + element.zero).round().clamp(low, high)
        change = ((q - element.zero) * element.scale).to(x.dtype) - x
    return x + change


def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """``weight`` (O, ...) rounded to symmetric integers of ``bits``, a scale per output; straight-through gradient."""
    with torch.no_grad():
        stored = QuantizedWeight.from_float(weight, bits)
        exact = stored.values * stored.scale.view(-1, *[1] * (weight.dim() - 1))
        change = exact.to(weight.dtype) - weight
    return weight + change
