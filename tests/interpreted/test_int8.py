"""int8 activations in the interpreter: the same bits as the reference, hence as every CPU kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynkern.ops import TernaryWeight, quantize
from dynkern.ops.gpu import quantized
from dynkern.ops.gpu.configs import Config
from dynkern.ops.quantize import Activation
from dynkern.ops.ternary_conv2d import reference as conv_reference
from dynkern.ops.ternary_conv2d import triton as conv
from dynkern.ops.ternary_linear import reference as linear_reference
from dynkern.ops.ternary_linear import triton as linear

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
HOW = st.sampled_from([Activation(True), Activation(True, None, False), Activation(True, 0.03), Activation(True, 7.0)])
ODD = [0.0, 1e-31, 1e-30, 3e38, 127.5, 0.5, 1.5, -2.5]


@settings(max_examples=40)
@given(rows=st.integers(1, 5), row=st.integers(1, 300), dtype=DTYPES, how=HOW, odd=st.booleans(), cut=st.booleans())
def test_quantised_as_on_the_cpu(
    rows: int, row: int, dtype: torch.dtype, how: Activation, odd: bool, cut: bool
) -> None:
    """Ties, zeros, numbers too small for a scale, and rows in one piece or in many."""
    x = torch.randn(rows, row) * 10 ** torch.randint(-6, 4, (rows, 1))
    if odd:
        x[0, :] = torch.tensor(ODD).repeat(-(-row // len(ODD)))[:row]
        x[-1, row // 2] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0])[row % 4]
    x = x.to(dtype)
    whole = quantized.PIECE
    try:
        quantized.PIECE = 64 if cut else whole
        values, scale = quantized.quantize_rows(x, how)
    finally:
        quantized.PIECE = whole
    q, s = quantize.quantize(x, how.scale, how.per_row)
    assert torch.equal(values.double(), q)
    torch.testing.assert_close(scale, s, rtol=0, atol=0, equal_nan=True)


def test_without_triton_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 6, 5, 4).contiguous(memory_format=torch.channels_last)
    kernels = quantized.quantize_rows(x, Activation(True))
    monkeypatch.setattr(quantized, "quantize_kernel", None)
    plain = quantized.quantize_rows(x, Activation(True))
    assert all(torch.equal(a, b) for a, b in zip(kernels, plain, strict=True))
    assert kernels[0].is_contiguous(memory_format=torch.channels_last)


def weight_of(shape: tuple[int, ...], scaled: bool) -> tuple[Tensor, Tensor | None]:
    packed = TernaryWeight.pack(torch.randint(-1, 2, shape).float()).packed
    return packed, torch.rand(shape[0]) + 0.5 if scaled else None


def same(y: Tensor, reference: Any, args: tuple[Any, ...], how: Activation) -> bool:
    """Whether the bits are those of the reference; to bfloat16 the interpreter cuts numbers off instead of rounding."""
    if y.dtype != torch.bfloat16:
        return torch.equal(y, reference(*args, how.scale, how.per_row))
    whole = reference(args[0].float(), *args[1:], how.scale, how.per_row)
    return torch.equal(y.float().view(torch.int32), whole.view(torch.int32) & -65536)


@settings(max_examples=25)
@given(
    rows=st.integers(1, 20), full=st.integers(1, 150), outputs=st.integers(1, 20), dtype=DTYPES, how=HOW,
    scaled=st.booleans(), biased=st.booleans(), data=st.data(),
)  # fmt: skip
def test_ternary_linear(
    rows: int, full: int, outputs: int, dtype: torch.dtype, how: Activation, scaled: bool, biased: bool,
    data: st.DataObject,
) -> None:  # fmt: skip
    packed, scale = weight_of((outputs, full), scaled)
    x = torch.randn(rows, data.draw(st.integers(1, full))).to(dtype)
    bias = torch.randn(outputs).to(dtype) if biased else None
    args = (x, packed, scale, bias, full, data.draw(st.integers(1, outputs)), None, None)
    y = linear.run(*args, how, config=(Config(16, 16, 128), 0))
    assert same(y, linear_reference.ternary_linear_int8, args, how)


@settings(max_examples=25)
@given(
    images=st.integers(1, 2), size=st.integers(3, 6), channels=st.integers(1, 20), outputs=st.integers(1, 20),
    dtype=DTYPES, how=HOW, last=st.booleans(), index=st.booleans(), data=st.data(),
)  # fmt: skip
def test_ternary_conv2d(
    images: int, size: int, channels: int, outputs: int, dtype: torch.dtype, how: Activation, last: bool, index: bool,
    data: st.DataObject,
) -> None:  # fmt: skip
    shape = (outputs, channels, 3, 3)
    packed, scale = weight_of(shape, True)
    active = data.draw(st.integers(1, channels))
    in_index = torch.randperm(channels)[:active] if index else None
    x = torch.randn(images, active, size, size).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    where: Any = (1, None if index else data.draw(st.integers(1, outputs)), in_index, None)
    args = (x, packed, scale, torch.randn(outputs).to(dtype), shape, (2, 1, 1, 0, 1, 2, 1, 1), *where)
    y = conv.run(*args, how, config=(Config(16, 16, 64), 0))
    assert same(y.contiguous(), conv_reference.ternary_conv2d_int8, args, how)
