"""Conv2d and Linear that train a latent float weight and multiply with its ternary values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dynkern.nn import schemes
from dynkern.nn.dynamic import SlicedModule
from dynkern.nn.schemes import Delta, Scheme
from dynkern.nn.sliced import SlicedConv2d, SlicedLinear
from dynkern.ops.ternary_weight import TernaryWeight, check_delta, pack_signs

Size = int | tuple[int, int]
# The float32 below one: a threshold must not round up to one, which no file would take back.
_LARGEST = 1 - 2**-24
_DELTA = Delta()


class TernaryModule(SlicedModule):
    """What the ternary layers share: the latent ``weight``, and how it becomes ternary.

    The ``state_dict`` has the keys of the plain layer and ``threshold``, a float32 scalar: ``delta`` where compiled
    code reads it, so that a new value means no new compilation. A scheme that learns adds ``plus`` and ``minus``.

    Attributes:
        scheme: the ternariser.
        growth: what gives ``delta`` for an epoch, see :func:`dynkern.ternary.set_epoch`; None for a fixed ``delta``.
    """

    weight: Tensor
    threshold: Tensor
    growth: Callable[[int], float] | None = None
    scheme: Scheme = _DELTA

    def ternarize(
        self, delta: float, growth: Callable[[int], float] | None = None, scheme: str | Scheme = _DELTA
    ) -> None:
        """Set what this layer has beyond a sliced one."""
        self.scheme = schemes.scheme(scheme)
        if self.scheme != _DELTA and (delta or growth is not None):
            raise ValueError(f"delta: expected none, since scheme {self.scheme.name!r} has no such threshold")
        self._delta = check_delta(delta)
        self.growth = growth
        self.scheme.equip(self)
        value = min(self._delta, _LARGEST)
        self.register_buffer("threshold", torch.tensor(value, dtype=torch.float32, device=self.weight.device))

    @property
    def delta(self) -> float:
        """The threshold of equation 5 of Dordoni et al., MLSP 2024; may be set at any time, 0 <= delta < 1.

        Only ``Delta`` reads it; it is 0 for the other schemes.
        """
        return self._delta

    @delta.setter
    def delta(self, value: float) -> None:
        if self.scheme != _DELTA and value:
            raise ValueError(f"delta: expected none, since scheme {self.scheme.name!r} has no such threshold")
        self._delta = check_delta(value)
        self.threshold.fill_(min(self._delta, _LARGEST))

    def effective_weight(self) -> Tensor:
        """The full ternary weight; its gradient passes straight on to ``weight``, see :class:`Scheme`."""
        return self.scheme.values(self)

    @torch.no_grad()
    def packed_weight(self) -> TernaryWeight:
        """What the layer multiplies with now, at 2 bits a weight; ``ValueError`` if the latent weight has NaN."""
        signs = self.scheme.signs(self)
        if torch.isnan(signs).any():
            raise ValueError("weight: expected numbers, got NaN")
        levels = self.scheme.levels(self, signs)
        packed = pack_signs(signs.to(torch.int8).flatten(1))
        if levels is None:
            return TernaryWeight(packed, signs.shape)
        plus, minus = (level.detach().float().expand(len(signs)).contiguous() for level in levels)
        return TernaryWeight(packed, signs.shape, plus, None if torch.equal(plus, minus) else minus)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        # The threshold stays float32 in a network of another dtype: rounded, it would be another threshold.
        self._refill()
        return self

    def _refill(self) -> None:
        self.threshold = torch.full_like(self.threshold, min(self._delta, _LARGEST), dtype=torch.float32)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        errors: list[str] = args[-1]
        try:
            self.delta = float(state_dict.get(prefix + "threshold", self._delta))
        except (TypeError, ValueError, RuntimeError) as error:
            self._refill()
            errors.append(f"{prefix}threshold: {error}")

    def extra_repr(self) -> str:
        how = f"delta={self._delta:.4g}" if self.scheme == _DELTA else f"scheme={self.scheme}"
        return f"{super().extra_repr()}, {how}"


class TernaryConv2d(TernaryModule, SlicedConv2d):
    """:class:`torch.nn.Conv2d` with ternary weights, for training; Dordoni et al., MLSP 2024, equations 2 and 5.

    ``weight`` is latent: float, trained as usual. The layer multiplies with +1 where it exceeds ``delta``, -1 where it
    is below ``-delta`` and 0 elsewhere; the gradient goes straight through to the weights in [-1, 1]. Another
    ``scheme`` does it its own way.
    :func:`dynkern.pack` makes the inference layer that skips the zeros.

    Args:
        delta: the threshold, 0 <= delta < 1; by default 0.1. For ``Delta`` alone.
        scheme: another ternariser, or its name in :data:`dynkern.ternary.SCHEMES`.
        The others are those of :class:`torch.nn.Conv2d`.

    Raises:
        ValueError, TypeError: ``delta`` or ``scheme`` is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: str | Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        delta: float | None = None,
        scheme: str | Scheme = _DELTA,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.ternarize(_default(delta, scheme), None, scheme)


class TernaryLinear(TernaryModule, SlicedLinear):
    """:class:`torch.nn.Linear` with ternary weights, for training; see :class:`TernaryConv2d`.

    Args:
        delta: the threshold, 0 <= delta < 1; by default 0.1. For ``Delta`` alone.
        scheme: another ternariser, or its name in :data:`dynkern.ternary.SCHEMES`.
        The others are those of :class:`torch.nn.Linear`.

    Raises:
        ValueError, TypeError: ``delta`` or ``scheme`` is out of range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        delta: float | None = None,
        scheme: str | Scheme = _DELTA,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.ternarize(_default(delta, scheme), None, scheme)


def make_ternary(
    layer: nn.Conv2d | nn.Linear,
    delta: float,
    growth: Callable[[int], float] | None = None,
    scheme: str | Scheme = _DELTA,
) -> TernaryModule:
    """Change ``layer`` in place to the ternary class; its parameters, hooks and sub-nets stay the same objects."""
    layer.__class__ = TernaryConv2d if isinstance(layer, nn.Conv2d) else TernaryLinear
    new: TernaryModule = layer  # type: ignore[assignment]
    new.ternarize(delta, growth, scheme)
    return new


def _default(delta: float | None, scheme: str | Scheme) -> float:
    if delta is None:
        return 0.1 if schemes.scheme(scheme) == _DELTA else 0.0
    return delta
