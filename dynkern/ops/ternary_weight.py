"""The packed ternary weight, format 1: 2 bits a weight, and the codec that defines it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from dynkern import _C

FORMAT_VERSION = 1
PER_BYTE = 4
_SHIFTS = (0, 2, 4, 6)
# Code 0 is a zero, 1 is +1, 2 is -1; 3 is invalid.
_INVALID = 3
# The bits of the four codes of a byte that say +1, and those that say -1.
_PLUS, _MINUS = 0b01010101, 0b10101010


class TernaryWeight:
    """Weights in {-1, 0, +1} times an optional scale per output channel, at 2 bits each.

    Codes ``00`` zero, ``01`` +1, ``10`` -1 (``11`` is refused), four to a byte, low bits first, along the reduction
    axis (all axes but the first); each row is padded to whole bytes with zeros. A weight may have another scale for its
    -1 than for its +1, as trained ternary quantization gives; it runs as its two :meth:`parts`.

    Args:
        packed: (O, ceil(K / 4)) uint8, K the product of ``shape[1:]``.
        shape: the shape of the dense weight, output channels first: (O, I) or (O, I / groups, kh, kw).
        scale: (O,) float32, or None for a scale of one.
        scale_minus: (O,) float32, what a -1 stands for, without its sign; None if that is ``scale`` too.

    Raises:
        ValueError, TypeError: the parts do not fit each other, or a code is invalid.
    """

    def __init__(
        self, packed: Tensor, shape: Sequence[int], scale: Tensor | None = None, scale_minus: Tensor | None = None
    ) -> None:
        self.shape = tuple(shape)
        check_packed(packed, self.shape, scale)
        if scale_minus is not None:
            if scale is None:
                raise ValueError("scale_minus: expected none beside a scale of none")
            check_packed(packed, self.shape, scale_minus, "scale_minus")
        self.packed = _tracked(packed)
        self.scale = None if scale is None else _tracked(scale)
        self.scale_minus = None if scale_minus is None else _tracked(scale_minus)
        self._parts: tuple[int, TernaryWeight, TernaryWeight] | None = None
        check_codes(packed, self.shape)
        for name, given in (("scale", scale), ("scale_minus", scale_minus)):
            if given is not None and _readable(given) and not torch.isfinite(given).all():
                raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")

    @classmethod
    def pack(cls, dense: Tensor) -> TernaryWeight:
        """Pack a floating-point tensor whose rows (first axis) hold only -m, 0 and +p, with one p, m > 0 per row.

        A tensor of {-1, 0, +1} gives a weight without scale, one with m = p in each row a weight with one scale.
        """
        if not isinstance(dense, Tensor) or not (dense.is_floating_point() or dense.dtype == torch.int8):
            got = getattr(dense, "dtype", type(dense))
            raise TypeError(f"dense: expected a floating-point or int8 tensor, got {got}")
        if dense.dim() < 2 or dense.numel() == 0:
            raise ValueError(f"dense: expected two or more dimensions, none empty, got shape {tuple(dense.shape)}")
        rows = dense.detach().flatten(1)
        rows = rows if rows.is_floating_point() else rows.float()
        if not torch.isfinite(rows).all():
            raise ValueError("dense: expected finite numbers, got NaN or infinity")
        plus, minus = rows.amax(1).clamp(min=0), (-rows).amax(1).clamp(min=0)
        wrong = (((rows > 0) & (rows != plus[:, None])) | ((rows < 0) & (rows != -minus[:, None]))).any(1).nonzero()
        if len(wrong):
            raise ValueError(
                f"dense: row {wrong[0].item()} holds more than one magnitude of a sign; use TernaryWeight.from_float "
                "to ternarise"
            )
        plus = torch.where(plus == 0, minus, plus)
        minus = torch.where(minus == 0, plus, minus)
        plus, minus = (torch.where(level == 0, 1.0, level) for level in (plus, minus))
        codes = pack_signs(rows.sign().to(torch.int8))
        if not torch.equal(plus, minus):
            return cls(codes, dense.shape, plus.float(), minus.float())
        return cls(codes, dense.shape, None if bool((plus == 1).all()) else plus.float())

    @classmethod
    def from_float(cls, weight: Tensor, delta: float, scale: Tensor | None = None) -> TernaryWeight:
        """Ternarise ``weight`` with the threshold ``delta`` (equation 5 of Dordoni et al., MLSP 2024) and pack it.

        +1 where the weight, clipped to [-1, 1], exceeds ``delta``; -1 where it is below ``-delta``; 0 elsewhere.
        ``delta`` is compared in the dtype of ``weight``; clipping changes nothing, because delta < 1.
        """
        delta = check_delta(delta)
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise TypeError(f"weight: expected a floating-point tensor, got {getattr(weight, 'dtype', type(weight))}")
        if weight.dim() < 2 or weight.numel() == 0:
            raise ValueError(f"weight: expected two or more dimensions, none empty, got shape {tuple(weight.shape)}")
        if torch.isnan(weight).any():
            raise ValueError("weight: expected numbers, got NaN")
        signs = (weight > delta).to(torch.int8) - (weight < -delta).to(torch.int8)
        return cls(pack_signs(signs.flatten(1)), weight.shape, scale)

    def signs(self) -> Tensor:
        """The weights without their scale, int8, of shape ``shape``."""
        return unpack_signs(self.packed, self.shape)

    def unpack(self) -> Tensor:
        """The dense float32 weight, of shape ``shape``."""
        if self.scale_minus is not None:
            plus, minus = self.parts()
            return plus.unpack() + minus.unpack()
        return unpack(self.packed, self.shape, self.scale)

    def parts(self) -> tuple[TernaryWeight, TernaryWeight]:
        """A weight of two scales as two of one scale: its +1 alone and its -1 alone; their sum is this weight.

        Together they have no more ones than this weight, so that two calls do its additions, each once. Made at the
        first call, and again after a write to ``packed``; a part's codes are as large as ``packed``.

        Raises:
            ValueError: the weight has one scale.
        """
        if self.scale_minus is None:
            raise ValueError("weight: expected one with a scale_minus, whose parts differ in scale")
        if not _readable(self.packed):
            return self._split()
        version = self.packed._version
        if self._parts is None or self._parts[0] != version:
            self._parts = version, *self._split()
        return self._parts[1:]

    def _split(self) -> tuple[TernaryWeight, TernaryWeight]:
        scales = ((_PLUS, self.scale), (_MINUS, self.scale_minus))
        plus, minus = (TernaryWeight(self.packed & bits, self.shape, scale) for bits, scale in scales)
        return plus, minus

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many weights are -1, 0 and +1."""
        signs = self.signs()
        minus, plus = int((signs < 0).sum()), int((signs > 0).sum())
        return minus, signs.numel() - minus - plus, plus

    @property
    def nonzeros(self) -> int:
        """How many weights are not zero."""
        return int(self.signs().count_nonzero())

    @property
    def sparsity(self) -> float:
        """The share of weights that are zero."""
        return self.counts[1] / math.prod(self.shape)

    @property
    def entropy(self) -> float:
        """Bits per weight of the empirical distribution of {-1, 0, +1}."""
        return entropy(self.counts)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed codes and the scales."""
        return sum(part.nbytes for part in (self.packed, self.scale, self.scale_minus) if part is not None)

    def __getstate__(self) -> dict[str, object]:
        # A copy's tensors count their writes anew.
        return {**vars(self), "_parts": None}

    def __repr__(self) -> str:
        return f"TernaryWeight(shape={self.shape}, sparsity={self.sparsity:.4f}, nbytes={self.nbytes})"


def entropy(counts: Sequence[int]) -> float:
    """Bits per symbol of a source whose symbols were seen ``counts`` times."""
    total = sum(counts)
    return sum(count / total * math.log2(total / count) for count in counts if count)


def check_delta(delta: float) -> float:
    """``delta`` as a float if 0 <= delta < 1; from 1 on, equation 5 would make every (clipped) weight zero."""
    if isinstance(delta, bool) or not isinstance(delta, Real):
        raise TypeError(f"delta: expected a number, got {type(delta).__name__}")
    if not 0 <= delta < 1:
        raise ValueError(f"delta: expected 0 <= delta < 1, got {delta}")
    return float(delta)


def check_packed(packed: Tensor, shape: Sequence[int], scale: Tensor | None, name: str = "scale") -> None:
    """Check that the parts of a packed weight fit each other; the codes themselves are not read."""
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8:
        raise TypeError(f"packed: expected a uint8 tensor, got {getattr(packed, 'dtype', type(packed))}")
    if len(shape) < 2 or any(s < 1 for s in shape):
        raise ValueError(f"shape: expected two or more positive sizes, got {tuple(shape)}")
    expected = (shape[0], -(-math.prod(shape[1:]) // PER_BYTE))
    if tuple(packed.shape) != expected:
        raise ValueError(f"packed: expected shape {expected} for weights {tuple(shape)}, got {tuple(packed.shape)}")
    if scale is None:
        return
    if not isinstance(scale, Tensor) or scale.dtype != torch.float32:
        raise TypeError(f"{name}: expected a float32 tensor, got {getattr(scale, 'dtype', type(scale))}")
    if tuple(scale.shape) != (shape[0],):
        raise ValueError(f"{name}: expected shape ({shape[0]},), got {tuple(scale.shape)}")
    if scale.device != packed.device:
        raise ValueError(f"{name}: expected on {packed.device} as packed is, got on {scale.device}")


def check_weight(weight: TernaryWeight, dim: int) -> None:
    """Check that ``weight`` is a packed weight of ``dim`` dimensions."""
    if not isinstance(weight, TernaryWeight):
        raise TypeError(f"weight: expected a TernaryWeight, got {type(weight).__name__}")
    if len(weight.shape) != dim:
        raise ValueError(f"weight: expected {dim} dimensions, got shape {weight.shape}")


def pack_signs(signs: Tensor) -> Tensor:
    """(O, K) int8 of {-1, 0, +1} to (O, ceil(K / 4)) uint8 codes."""
    codes = torch.where(signs < 0, 2, signs).to(torch.uint8)
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % PER_BYTE)).unflatten(1, (-1, PER_BYTE))
    return torch.stack([codes[..., i] << shift for i, shift in enumerate(_SHIFTS)]).sum(0, dtype=torch.uint8)


def codes_of(packed: Tensor) -> Tensor:
    """(O, B) bytes to (O, 4 B) codes, the padding included."""
    return torch.stack([packed >> shift & 3 for shift in _SHIFTS], dim=-1).flatten(1)


def check_codes(packed: Tensor, shape: Sequence[int]) -> None:
    """Refuse invalid codes, and a padding that is not zero; what has no values yet (while tracing) passes."""
    if not _readable(packed):
        return
    codes = codes_of(packed)
    if (codes == _INVALID).any():
        raise ValueError("packed: holds the invalid code 11")
    if codes[:, math.prod(shape[1:]) :].any():
        raise ValueError("packed: the padding at the end of a row is not zero")


def _tracked(tensor: Tensor) -> Tensor:
    """``tensor``, or a normal copy of one made in inference mode, which neither counts writes nor serves autograd."""
    if torch.compiler.is_compiling() or not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def _readable(tensor: Tensor) -> bool:
    return not (tensor.is_meta or isinstance(tensor, FakeTensor) or torch.compiler.is_compiling())


def unpack_signs(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """(O, ceil(K / 4)) uint8 codes to int8 of {-1, 0, +1} and of ``shape``."""
    codes = codes_of(packed)[:, : math.prod(shape[1:])].to(torch.int8)
    return ((codes & 1) - (codes >> 1)).reshape(tuple(shape))


def unpack(packed: Tensor, shape: Sequence[int], scale: Tensor | None) -> Tensor:
    """The dense float32 weight of ``shape``."""
    dense = unpack_signs(packed, shape).float()
    return dense if scale is None else dense * scale.reshape(-1, *[1] * (len(shape) - 1))


Derived = TypeVar("Derived", _C.TernaryLists, _C.TernaryLayouts)


class _Derivations(Generic[Derived]):
    """What native code derives from packed codes: made once per tensor, again after a write to it, dropped with it.

    A tensor made in inference mode does not count its writes, so nothing of it is kept; :class:`TernaryWeight` holds no
    such tensor.
    """

    def __init__(self, make: Callable[[Tensor, tuple[int, ...]], Derived]) -> None:
        self._make: Callable[[Tensor, tuple[int, ...]], Derived] = make
        self._known: dict[int, tuple[weakref.ref[Tensor], tuple[int, ...], Derived]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, packed: Tensor, shape: Sequence[int]) -> Derived:
        """What belongs to ``packed`` as a weight of ``shape``."""
        if packed.is_inference():
            return self._derive(packed, shape)
        key, state = id(packed), (packed._version, *shape)
        known = self._known.get(key)
        if known is not None and known[0]() is packed and known[1] == state:
            return known[2]
        derived = self._derive(packed, shape)
        self._known[key] = weakref.ref(packed, lambda _: self._known.pop(key, None)), state, derived
        return derived

    def _derive(self, packed: Tensor, shape: Sequence[int]) -> Derived:
        check_codes(packed, shape)
        return self._make(packed.contiguous(), tuple(shape))


_lists = _Derivations(_C.TernaryLists)
_layouts = _Derivations(_C.TernaryLayouts)


def lists_of(packed: Tensor, shape: Sequence[int]) -> _C.TernaryLists:
    """The index lists that the float32 kernels walk."""
    return _lists.of(packed, shape)


def layouts_of(packed: Tensor, shape: Sequence[int]) -> _C.TernaryLayouts:
    """The layouts that the kernels for activations of 8 bits read; each is made when a call first needs it."""
    return _layouts.of(packed, shape)
