"""Ranges of activations: what calibration measures, and integer plans are made with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from dynkern.engine import reference
from dynkern.engine.capture import capture, tensors_of
from dynkern.engine.lower import Lowered, lower
from dynkern.engine.quantized import Bounds, quantized, signature
from dynkern.nn.selection import Key
from dynkern.subnets.calibrate import input_of
from dynkern.subnets.switch import selection_of, selections

# Where a network keeps the ranges it was calibrated to.
RANGES = "_dynkern_ranges"
Signature = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Ranges:
    """The ranges of a network's activations, for each of its sub-nets; see :func:`calibrate`.

    Attributes:
        bounds: by sub-net (None: of a plain network), the least and the largest entry of every activation.
        signatures: by sub-net, the steps that compute them.
    """

    bounds: Mapping[Key | None, tuple[Bounds, ...]]
    signatures: Mapping[Key | None, Signature]

    def quantized(self, key: Key | None, lowered: Lowered, bits: int) -> Lowered:
        """The plan of sub-net ``key`` with integers of ``bits``.

        Raises:
            ValueError: there are no ranges for that sub-net, or they are those of another network.
        """
        if key not in self.bounds:
            raise ValueError(f"ranges: expected those of sub-net {key!r}, got {list(self.bounds)}; calibrate again")
        if signature(lowered.plan) != self.signatures[key]:
            raise ValueError(
                "ranges: they were calibrated on other layers: another network, or a size at which it has other steps; "
                "calibrate again"
            )
        return quantized(lowered, self.bounds[key], bits)


def calibrate(net: nn.Module, loader: Iterable[Any], batches: int | None = None) -> Ranges:
    """Measure the range of every activation of ``net``, for each of its sub-nets, in eval mode.

    ``dynkern.compile(net, x, int8=ranges)`` then computes in integers. ``net`` remembers its ranges: ``int8=True``
    takes those measured last. They are the least and largest entries that any batch had; larger ones saturate later.

    Args:
        net: as :func:`dynkern.compile` takes it; it is not changed otherwise.
        loader: batches: the input, or a tuple or list whose first item it is; (N, C, H, W) or (N, features) float32,
            all of one size but for N. A few hundred images of the kind to come are enough.
        batches: at most so many of the batches; all by default.

    Raises:
        ValueError: there is no batch, one is of another size or not finite, or ``net`` cannot be compiled.
        TypeError: an argument or batch is of another type.
        RuntimeError: a sub-net has no batch norm statistics.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a module, got {type(net).__name__}")
    if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int) or batches < 1):
        raise ValueError(f"batches: expected an integer of at least 1, got {batches!r}")
    inputs = (_checked(input_of(batch)) for batch in islice(loader, batches))
    first = next(inputs, None)
    if first is None:
        raise ValueError("loader: expected at least one batch, got none")
    slim = any(True for _ in selections(net))
    keys: tuple[Key | None, ...] = selection_of(net).keys if slim else (None,)
    shape = tuple(first.shape[1:])
    tensors = tensors_of(net)
    lowered = {key: lower(capture(net, shape, torch.float32, key), tensors) for key in keys}
    bounds = {key: [(0.0, 0.0)] * len(plan.plan.values) for key, plan in lowered.items()}
    with torch.no_grad():
        for x in chain([first], inputs):
            if tuple(x.shape[1:]) != shape:
                raise ValueError(f"loader: expected batches of one size, got {tuple(x.shape)} after (N, {shape})")
            for key, each in lowered.items():
                reference.run(each.plan, each.weights, x, _Widening(bounds[key]))
    ranges = Ranges(
        {key: tuple(found) for key, found in bounds.items()},
        {key: signature(each.plan) for key, each in lowered.items()},
    )
    setattr(net, RANGES, ranges)
    return ranges


def ranges_of(net: nn.Module, given: bool | Ranges, argument: str) -> Ranges | None:
    """The ranges that the ``argument`` of :func:`dynkern.compile` means.

    Raises:
        TypeError: it is neither a bool nor ranges.
        ValueError: it is True, and ``net`` was not calibrated.
    """
    if isinstance(given, Ranges):
        return given
    if not isinstance(given, bool):
        raise TypeError(f"{argument}: expected a bool or the ranges of dynkern.quantize.calibrate, got {given!r}")
    if not given:
        return None
    ranges = getattr(net, RANGES, None)
    if ranges is None:
        raise ValueError(
            f"{argument}: the ranges of the network's activations are not known; run dynkern.quantize.calibrate(net, "
            "loader) on a few hundred images first"
        )
    return ranges


class _Widening:
    """Widens the bounds of every value that it is shown."""

    def __init__(self, bounds: list[Bounds]) -> None:
        self.bounds = bounds

    def __call__(self, value: int, y: Tensor) -> None:
        low, high = (float(bound) for bound in torch.aminmax(y))
        if not (low > -torch.inf and high < torch.inf):
            raise ValueError(f"loader: expected batches with finite activations, got one between {low} and {high}")
        before = self.bounds[value]
        self.bounds[value] = (min(before[0], low), max(before[1], high))


def _checked(x: Tensor) -> Tensor:
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise TypeError(f"loader: expected torch.float32 on the CPU, got {x.dtype} on {x.device}")
    if x.dim() not in (2, 4) or x.numel() == 0:
        raise ValueError(f"loader: expected (N, C, H, W) or (N, features) that is not empty, got {tuple(x.shape)}")
    return x
