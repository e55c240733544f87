"""Arguments of the public operators: normalised and checked, so that an error names the argument."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]
Geometry = tuple[int, int, int, int, int, int, int, int]


def pair(name: str, value: int | Sequence[int], least: int) -> Pair:
    """``value`` as (vertical, horizontal); an integer stands for both."""
    if isinstance(value, (int, torch.SymInt)):
        values: tuple[int, ...] = (value, value)
    else:
        values = tuple(value) if isinstance(value, Sequence) else ()
    if len(values) == 1:
        values = values * 2
    if len(values) != 2 or not all(isinstance(v, (int, torch.SymInt)) for v in values):
        raise ValueError(f"{name}: expected an integer or two of them, got {value!r}")
    if any(v < least for v in values):
        raise ValueError(f"{name}: expected at least {least}, got {value!r}")
    return values


def sides(padding: Any, kernel: Sequence[int], stride: Pair, dilation: Pair) -> Sides:
    """Padding as (top, bottom, left, right).

    Takes what :func:`torch.nn.functional.conv2d` takes (an integer, two integers, ``"same"``, ``"valid"``)
    and, per side, ``((top, bottom), (left, right))``.
    """
    if isinstance(padding, str):
        if padding == "valid":
            return 0, 0, 0, 0
        if padding != "same":
            raise ValueError(f"padding: expected 'same', 'valid' or integers, got {padding!r}")
        if stride != (1, 1):
            raise ValueError(f"padding: 'same' needs stride 1, got stride {stride}")
        tall, wide = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return tall // 2, tall - tall // 2, wide // 2, wide - wide // 2
    if not isinstance(padding, (int, torch.SymInt)) and any(isinstance(p, Sequence) for p in padding):
        if len(padding) != 2 or not all(isinstance(p, Sequence) for p in padding):
            raise ValueError(f"padding: expected ((top, bottom), (left, right)), got {padding!r}")
        (top, bottom), (left, right) = (pair("padding", p, 0) for p in padding)
        return top, bottom, left, right
    tall, wide = pair("padding", padding, 0)
    return tall, tall, wide, wide


def geometry(stride: Any, padding: Any, dilation: Any, kernel: Sequence[int]) -> Geometry:
    """Vertical and horizontal stride; top, bottom, left, right padding; vertical and horizontal dilation."""
    if torch.compiler.is_compiling():
        return _geometry(stride, padding, dilation, kernel)
    try:
        return _known_geometry(stride, padding, dilation, kernel)
    except TypeError:  # a list cannot be looked up
        return _geometry(stride, padding, dilation, kernel)


def _geometry(stride: Any, padding: Any, dilation: Any, kernel: Sequence[int]) -> Geometry:
    steps, spread = pair("stride", stride, 1), pair("dilation", dilation, 1)
    return *steps, *sides(padding, tuple(kernel), steps, spread), *spread


_known_geometry = lru_cache(maxsize=1024)(_geometry)


def count(name: str, value: int | None, limit: int, where: str) -> int:
    """A number of active channels: ``value``, or all of them when it is None."""
    if value is None:
        return limit
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if not 0 < value <= limit:
        raise ValueError(f"{name}: expected 1 to {limit} ({where}), got {value}")
    return value


def check_index(name: str, index: Tensor | None, like: Tensor) -> None:
    """An index set is a non-empty 1-D int64 tensor on the device of ``like``."""
    if index is None:
        return
    if not isinstance(index, Tensor):
        raise TypeError(f"{name}: expected an int64 tensor, got {type(index).__name__}")
    if index.dtype != torch.int64 or index.dim() != 1:
        raise ValueError(f"{name}: expected a 1-D int64 tensor, got {index.dim()}-D {index.dtype}")
    if index.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one channel, got none")
    if index.device != like.device:
        raise ValueError(f"{name}: expected on {like.device} as x is, got on {index.device}")


def check_tensor(name: str, value: Any, dim: int | None, like: Tensor | None = None) -> None:
    """``value`` is a floating-point tensor of ``dim`` dimensions, of the dtype and device of ``like``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if dim is not None and value.dim() != dim:
        raise ValueError(f"{name}: expected {dim} dimensions, got shape {tuple(value.shape)}")
    if value.layout != torch.strided:
        raise ValueError(f"{name}: expected a dense (strided) tensor, got layout {value.layout}")
    if like is None:
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point dtype, got {value.dtype}")
        return
    if value.dtype != like.dtype:
        raise TypeError(f"{name}: expected {like.dtype} as x is, got {value.dtype}")
    if value.device != like.device:
        raise ValueError(f"{name}: expected on {like.device} as x is, got on {value.device}")


def check_vector(name: str, value: Tensor | None, size: int, like: Tensor) -> None:
    """``value`` is None or holds one number per output channel of the full weight."""
    if value is None:
        return
    check_tensor(name, value, 1, like)
    if value.shape[0] != size:
        raise ValueError(f"{name}: expected {size} elements (one per output channel), got {value.shape[0]}")
