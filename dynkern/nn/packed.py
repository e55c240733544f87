"""Conv2d and Linear that hold packed ternary weights, for inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dynkern import _C, ops
from dynkern.nn.dynamic import SlicedModule
from dynkern.nn.plain import plain_conv2d, plain_linear
from dynkern.nn.schemes import LEVELS
from dynkern.nn.selection import Key
from dynkern.nn.sliced import conv_where, linear_where, pad_as_asked
from dynkern.ops.ternary_linear import cuda_forms
from dynkern.ops.ternary_weight import TernaryWeight, check_weight

Size = int | tuple[int, int]
# What a layer that becomes a packed one does not keep.
_DROPPED = ("weight", "bias", "threshold", "packed", "scale", "scale_minus", "growth", "scheme", "_delta", *LEVELS)


class PackedTernary(SlicedModule):
    """What the packed layers share: the weight at 2 bits each. It cannot be trained; gradients reach the input alone.

    Buffers: ``packed`` (O, ceil(K / 4)) uint8 in the format of :class:`~dynkern.TernaryWeight`, ``scale`` and
    ``scale_minus`` (O,) float32 or None, ``bias`` (O,) or None. ``to()`` moves them all; a new dtype is for ``bias``
    alone.

    Attributes:
        activation, activation_scale: how inputs are read, see :func:`dynkern.ops.ternary_linear`. Set them on the
            layer; they are not part of its state.
    """

    activation: str = "float32"
    activation_scale: str | float = "row"

    packed: Tensor
    scale: Tensor | None
    scale_minus: Tensor | None
    bias: Tensor | None

    def hold(self, weight: TernaryWeight, bias: Tensor | None) -> None:
        """Put ``weight`` and ``bias`` in the place of what the layer multiplied with before."""
        if weight.shape != self.shape:
            raise ValueError(f"weight: expected shape {self.shape}, got {weight.shape}")
        if bias is not None and tuple(bias.shape) != weight.shape[:1]:
            raise ValueError(f"bias: expected shape {weight.shape[:1]}, got {tuple(bias.shape)}")
        for name in _DROPPED:
            for place in (self._parameters, self._buffers, vars(self)):
                place.pop(name, None)
        self._weight = weight
        self.register_buffer("packed", weight.packed)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("scale_minus", weight.scale_minus)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that belongs to this layer's geometry."""
        raise NotImplementedError

    @property
    def weight(self) -> TernaryWeight:
        """The packed weight; checked when a buffer was replaced (``to``, ``load_state_dict``), not in every call."""
        packed, scale, minus, known = self.packed, self.scale, self.scale_minus, self._weight
        if torch.compiler.is_compiling():
            return TernaryWeight(packed, self.shape, scale, minus)
        if known.packed is not packed or known.scale is not scale or known.scale_minus is not minus:
            known = TernaryWeight(packed, self.shape, scale, minus)
            self._weight, self.packed = known, known.packed
            self.scale, self.scale_minus = known.scale, known.scale_minus
        return known

    def effective_weight(self) -> Tensor:
        """The full weight that the layer multiplies with, dense float32."""
        return self.weight.unpack()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        before = {name: self._buffers[name] for name in ("scale", "scale_minus")}
        super()._apply(fn, recurse)
        for name, scale in before.items():
            if scale is not None and self._buffers[name].dtype != torch.float32:  # type: ignore[union-attr]
                self._buffers[name] = scale.to(self.packed.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        packed, scale, minus = (state_dict.get(prefix + name) for name in ("packed", "scale", "scale_minus"))
        if packed is not None:
            try:
                TernaryWeight(packed, self.shape, scale, minus)
            except (TypeError, ValueError) as error:
                args[-1].append(f"{prefix}{error}")
                return
        super()._load_from_state_dict(state_dict, prefix, *args)


class PackedTernaryConv2d(PackedTernary):
    """2-D convolution with a packed ternary weight, whose zeros cost nothing. :func:`dynkern.pack` makes them.

    See :func:`dynkern.ops.ternary_conv2d` for shapes, dtypes and errors.

    Args:
        weight: of shape (O, I / groups, kh, kw).
        bias: (O,) or None.
        The others are those of :class:`torch.nn.Conv2d`.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    def __init__(
        self,
        weight: TernaryWeight,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: str | Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        check_weight(weight, 4)
        outputs, per_group, tall, wide = weight.shape
        options: dict[str, Any] = {"groups": groups, "bias": False, "padding_mode": padding_mode, "device": "meta"}
        like = nn.Conv2d(per_group * groups, outputs, (tall, wide), stride, padding, dilation, **options)
        vars(self).update(vars(like))
        self.hold(weight, bias)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """(N, active inputs, H, W) to (N, active outputs, H', W')."""
        x, padding = pad_as_asked(self, x)
        s = self.slice_for(x.shape[-3], "channels")
        where = {} if s is None else conv_where(s, self.groups)
        return ops.ternary_conv2d(
            x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups, **where,
            activation=self.activation, activation_scale=self.activation_scale,
        )  # fmt: skip

    def plain(self, key: Key) -> nn.Conv2d:
        """A :class:`torch.nn.Conv2d` with the dense values of the slice."""
        return plain_conv2d(self, self.slices[key])

    def extra_repr(self) -> str:
        return nn.Conv2d.extra_repr(self)  # type: ignore[arg-type]


class PackedTernaryLinear(PackedTernary):
    """Linear layer with a packed ternary weight, whose zeros cost nothing. :func:`dynkern.pack` makes them.

    See :func:`dynkern.ops.ternary_linear` for shapes, dtypes and errors.

    Args:
        weight: of shape (O, I).
        bias: (O,) or None.
    """

    in_features: int
    out_features: int

    def __init__(self, weight: TernaryWeight, bias: Tensor | None = None) -> None:
        check_weight(weight, 2)
        outputs, inputs = weight.shape
        vars(self).update(vars(nn.Linear(inputs, outputs, bias=False, device="meta")))
        self.hold(weight, bias)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.out_features, self.in_features

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        if self.packed.is_cuda and _C.cuda_architectures is not None:
            kind = torch.int8 if self.activation == "int8" else torch.bfloat16
            weight = self.weight
            for part in (weight,) if weight.scale_minus is None else weight.parts():
                cuda_forms.prepare(part.packed, self.in_features, kind)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(..., active inputs) to (..., active outputs)."""
        s = self.slice_for(x.shape[-1], "features")
        where: dict[str, Any] = {} if s is None else linear_where(s)
        where |= {"activation": self.activation, "activation_scale": self.activation_scale}
        return ops.ternary_linear(x, self.weight, self.bias, **where)

    def plain(self, key: Key) -> nn.Linear:
        """A :class:`torch.nn.Linear` with the dense values of the slice."""
        return plain_linear(self, self.slices[key])

    def extra_repr(self) -> str:
        return nn.Linear.extra_repr(self)  # type: ignore[arg-type]


def make_packed(layer: nn.Module, weight: TernaryWeight) -> PackedTernary:
    """Change ``layer``, a convolution or linear layer of any kind, in place to the packed class, holding ``weight``.

    Bias (from now on a buffer), hooks and sub-nets stay. Raises ``ValueError`` if ``weight`` is of another shape.
    """
    convolution = isinstance(layer, (nn.Conv2d, PackedTernaryConv2d))
    before = layer.__class__
    layer.__class__ = PackedTernaryConv2d if convolution else PackedTernaryLinear
    new: PackedTernary = layer  # type: ignore[assignment]
    try:
        new.hold(weight, new.bias)
    except ValueError:
        layer.__class__ = before
        raise
    return new
