"""A network as a short list of steps: what lowering produces, and what the native engine and the reference run.

A step reads and writes values by number. A value is one image's activation: (channels, height, width); a vector of
features is (channels, 1, 1). The batch is free. Every step that computes ends in an :class:`Epilogue`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from dynkern.ops.arguments import Geometry

if TYPE_CHECKING:
    from dynkern.engine.torch_node import TorchNode


@dataclass(frozen=True)
class Element:
    """What an activation is made of: floats, or integers ``q`` that mean ``scale * (q - zero)``.

    ``across`` and ``left`` say how uint8 lie in memory: 0 for planes, or channels are neighbours and each pixel holds
    ``across`` pixels of its row, from the one ``left`` before it on.
    """

    kind: str = "float32"  # float32, uint8 or int16
    scale: float = 1.0
    zero: int = 0  # of uint8; int16 is symmetric
    across: int = 0
    left: int = 0

    @property
    def quantized(self) -> bool:
        """True for integers."""
        return self.kind != "float32"


@dataclass(frozen=True)
class Value:
    """The shape of one image's activation, and its elements."""

    channels: int
    height: int = 1
    width: int = 1
    element: Element = field(default=Element(), kw_only=True)


@dataclass(frozen=True)
class Activation:
    """An elementwise function. ``clamp`` takes ``low`` and ``high`` (relu: 0 and infinity; hardtanh: -1 and 1)."""

    kind: str = "none"  # none, clamp, gelu, gelu_tanh, silu, hardswish, hardsigmoid, sigmoid, tanh
    low: float = 0.0
    high: float = float("inf")


@dataclass(frozen=True)
class Epilogue:
    """``y = activation(scale * x + shift + residual_scale * residual)``.

    Each vector is (channels,) float32, or None for 1, 0 and 1. All of it is in the integers of ``x``, ``y`` and the
    residual where they are quantised; a quantised ``y`` is then rounded to the nearest integer, ties to even.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: int | None = None
    residual_scale: Tensor | None = None
    activation: Activation = Activation()


@dataclass(frozen=True)
class Weight:
    """A full weight of the store, by name, and the slice of it that runs (None: the first channels).

    With several groups ``in_index`` says which groups run, each with all its channels, and ``out_index`` is None.
    """

    name: str
    in_index: tuple[int, ...] | None = None
    out_index: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Conv2d:
    """Convolution; ``geometry`` as in :mod:`dynkern.ops.arguments`, ``groups`` the active ones.

    The store's weight is dense (O, I / groups, kh, kw) or a ternary weight of that shape (its scale: see the epilogue),
    or, for a quantised ``x`` and one group, a quantised weight, whose zero points take part in no sum; for bytes whose
    channels are neighbours it is a :class:`~dynkern.engine.quantized_weight.SkippingWeight`.
    """

    x: int
    y: int
    weight: Weight
    geometry: Geometry
    groups: int = 1
    epilogue: Epilogue = Epilogue()


@dataclass(frozen=True)
class Linear:
    """``y = weight x``: features of a (channels, 1, 1) value. The store's weight is dense (O, I) or ternary."""

    x: int
    y: int
    weight: Weight
    epilogue: Epilogue = Epilogue()


@dataclass(frozen=True)
class Pool2d:
    """``max`` or ``average`` over windows; ``padding`` is (top, bottom, left, right)."""

    x: int
    y: int
    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    count_padding: bool = True  # whether an average counts the padding (as torch's count_include_pad)


@dataclass(frozen=True)
class AdaptiveAverage:
    """Adaptive average pooling to the size of ``y``, as in torch; to (1, 1) it is the mean."""

    x: int
    y: int


@dataclass(frozen=True)
class Pointwise:
    """The epilogue alone, on one value: an addition, a batch norm or an activation that no other step took in.

    It also takes floats to integers and back; then without a residual.
    """

    x: int
    y: int
    epilogue: Epilogue = Epilogue()


@dataclass(frozen=True)
class Multiply:
    """``y = x * gate``; the gate is of the shape of ``x`` or (channels, 1, 1)."""

    x: int
    y: int
    gate: int


@dataclass(frozen=True)
class Concat:
    """Channels of several values, one after the other."""

    xs: tuple[int, ...]
    y: int


@dataclass(frozen=True)
class Crop:
    """A window of ``x`` with steps, put into zeros (slicing and zero padding; shortcut A).

    ``y[offset + (c, i, j)] = x[first[0] + c, first[1] + i * step[0], first[2] + j * step[1]]`` for ``count`` channels,
    rows and columns; the rest of ``y`` is zero. ``offset`` is (channel, row, column) in ``y``.
    """

    x: int
    y: int
    first: tuple[int, int, int]
    step: tuple[int, int]
    count: tuple[int, int, int]
    offset: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Flatten:
    """(C, H, W) to (C H W, 1, 1), channels first."""

    x: int
    y: int


@dataclass(frozen=True)
class Softmax:
    """Over the channels of a (channels, 1, 1) value."""

    x: int
    y: int
    log: bool = False


@dataclass(frozen=True)
class Torch:
    """What torch computes; a plan with such steps is cut into programs around them (:mod:`dynkern.engine.segments`).

    The value ``y`` is (0, 0, 0) where it is none that another kind of step can read.
    """

    xs: tuple[int, ...]
    y: int
    node: TorchNode


Step = Conv2d | Linear | Pool2d | AdaptiveAverage | Pointwise | Multiply | Concat | Crop | Flatten | Softmax | Torch


@dataclass
class Plan:
    """The steps of one sub-net at one input size, in the order they run."""

    input: int
    output: int
    output_dims: int  # 2: features, the result is (N, C); 4: it is (N, C, H, W); 0: whatever a torch step gives
    values: list[Value] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
