"""Memory layouts of images on a GPU, and what kernels may assume of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Kernels count in 32 bits.
LARGEST = 2**31 - 1


def last(x: Tensor) -> bool:
    """Whether the channels of an image batch (N, C, H, W) are its last axis in memory (torch's channels_last)."""
    return x.shape[1] > 1 and x.stride(1) == 1 and x.stride(3) != 1


def output_format(x: Tensor) -> torch.memory_format:
    """The memory format of a convolution's result: on a GPU as of ``x``, elsewhere always contiguous."""
    return torch.channels_last if x.is_cuda and last(x) else torch.contiguous_format


def too_large(x: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether an offset in ``x`` or in a result of ``shape`` does not fit 32 bits."""
    reach = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return max(reach, math.prod(shape)) > LARGEST


def multiples(number: int, values: tuple[int, ...], tensors: tuple[Tensor, ...]) -> bool:
    """Whether all ``values`` are multiples of ``number``, and all ``tensors`` begin at a multiple of 16 bytes."""
    return all(v % number == 0 for v in values) and all(t.data_ptr() % 16 == 0 for t in tensors)
