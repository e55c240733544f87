"""Every Triton kernel in the interpreter against the reference in float64, on shapes drawn by hypothesis."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynkern.ops import TernaryWeight
from dynkern.ops.gpu.blocks import INTERPRETED
from dynkern.ops.gpu.configs import Config
from dynkern.ops.gpu.epilogue import KINDS, Epilogue
from dynkern.ops.gpu.layout import last
from dynkern.ops.gpu.ternary_codes import encode
from dynkern.ops.quantize import Activation
from dynkern.ops.sliced_conv2d import reference as sliced_reference
from dynkern.ops.sliced_conv2d import triton as sliced
from dynkern.ops.sliced_linear import reference as linear_reference
from dynkern.ops.sliced_linear import triton as linear
from dynkern.ops.ternary_conv2d import reference as ternary_reference
from dynkern.ops.ternary_conv2d import triton as ternary
from dynkern.ops.ternary_linear import triton as ternary_linear

EXAMPLES = settings(max_examples=25)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
SMALL = Config(16, 16, 16)
TERNARY = Config(16, 16, 64)
INT8 = Activation(True)


def test_this_is_the_interpreter() -> None:
    assert INTERPRETED


def form(t: Tensor, last: bool) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if last else t


def double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def close(y: Tensor, want: Tensor, magnitude: Tensor, terms: int) -> None:
    """``y`` is as near as rounding ``terms`` float32 sums, and the result to its dtype, allows."""
    eps = torch.finfo(y.dtype).eps
    allowed = eps * want.abs() + (terms + 8) * 2**-23 * magnitude + torch.finfo(y.dtype).tiny
    assert ((y.double() - want).abs() <= allowed).all(), ((y.double() - want).abs() / allowed).max()


@st.composite
def images(draw: st.DrawFn, multiples: bool | None = None) -> dict[str, Any]:
    """A convolution: the full layer's sizes, those that run, and a geometry that gives at least one pixel."""
    eight = draw(st.booleans()) if multiples is None else multiples
    channels = st.sampled_from([8, 16, 24, 40]) if eight else st.integers(1, 21)
    full_in, full_out = draw(channels), draw(channels)
    some = (lambda n: st.sampled_from(range(8, n + 1, 8))) if eight else (lambda n: st.integers(1, n))
    kh, kw = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dil = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    size = draw(st.integers(dil[0] * (kh - 1) + 1, 7)), draw(st.integers(dil[1] * (kw - 1) + 1, 7))
    pads = [draw(st.integers(0, 2)) for _ in range(4)]
    return {
        "full": (full_out, full_in, kh, kw),
        "active": (draw(some(full_out)), draw(some(full_in))),
        "x": (draw(st.integers(1, 2)), *size),
        "geometry": (draw(st.integers(1, 3)), draw(st.integers(1, 3)), *pads, *dil),
        "last": draw(st.booleans()),
        "weight_last": draw(st.booleans()),
        "align": 8 if eight and draw(st.booleans()) else 0,
    }


def tensors(case: dict[str, Any], dtype: torch.dtype, channels: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    images, tall, wide = case["x"]
    x = torch.randn(images, channels or case["active"][1], tall, wide).to(dtype)
    weight, bias = torch.randn(case["full"]).to(dtype), torch.randn(case["full"][0]).to(dtype)
    return form(x, case["last"]), form(weight, case["weight_last"]), bias


@EXAMPLES
@given(case=images(), dtype=DTYPES, bias=st.booleans())
def test_sliced_conv2d(case: dict[str, Any], dtype: torch.dtype, bias: bool) -> None:
    x, weight, b = tensors(case, dtype)
    args = (x, weight, b if bias else None, case["geometry"], 1, case["active"][0], None, None)
    y = sliced.run(*args, config=(SMALL, case["align"]))
    want = sliced_reference.sliced_conv2d(*map(double, args))
    magnitude = sliced_reference.sliced_conv2d(*(a.abs() if isinstance(a, Tensor) else a for a in map(double, args)))
    close(y, want, magnitude, weight[0].numel())
    assert y.is_contiguous(memory_format=torch.channels_last if last(x) else torch.contiguous_format)


@EXAMPLES
@given(case=images(), runs=st.booleans(), data=st.data())
def test_index_sets(case: dict[str, Any], runs: bool, data: st.DataObject) -> None:
    """Any channels, also repeated, and runs of eight, which are read as such."""
    full_out, full_in = case["full"][:2]
    if runs and full_in % 8 == 0:
        starts = data.draw(st.lists(st.integers(0, full_in // 8 - 1), min_size=1, max_size=3))
        entries = [8 * s + i for s in starts for i in range(8)]
    else:
        entries = data.draw(st.lists(st.integers(0, full_in - 1), min_size=1, max_size=full_in))
    in_index = torch.tensor(entries)
    out_index = torch.tensor(data.draw(st.lists(st.integers(0, full_out - 1), min_size=1, max_size=20)))
    align = 8 if case["align"] and len(entries) % 8 == 0 and len(out_index) % 8 == 0 else 0
    x, weight, b = tensors(case, torch.float32, len(in_index[:full_in]))
    args = (x, weight, b, case["geometry"], 1, None, in_index[:full_in], out_index[:full_out])
    y = sliced.run(*args, config=(SMALL, align))
    want = sliced_reference.sliced_conv2d(*map(double, args))
    magnitude = sliced_reference.sliced_conv2d(*(a.abs() if isinstance(a, Tensor) else a for a in map(double, args)))
    close(y, want, magnitude, weight[0].numel())


@EXAMPLES
@given(case=images(), each=st.integers(1, 3), index=st.booleans(), dtype=DTYPES, data=st.data())
def test_depthwise(case: dict[str, Any], each: int, index: bool, dtype: torch.dtype, data: st.DataObject) -> None:
    groups, active = max(2, case["full"][1]), case["active"][1]
    weight = form(torch.randn(groups * each, 1, *case["full"][2:]).to(dtype), case["weight_last"])
    x, _, _ = tensors(case, dtype)
    in_index = None
    if index:
        in_index = torch.tensor(data.draw(st.lists(st.integers(0, groups - 1), min_size=active, max_size=active)))
    args = (x, weight, torch.randn(groups * each).to(dtype), case["geometry"], groups, None, in_index, None)
    tile = Config(16, 16, 0)
    y = sliced.run(*args, config=(tile, case["align"]))
    want = sliced_reference.sliced_conv2d(*map(double, args))
    magnitude = sliced_reference.sliced_conv2d(*(a.abs() if isinstance(a, Tensor) else a for a in map(double, args)))
    close(y, want, magnitude, weight[0].numel())


@EXAMPLES
@given(case=images(), groups=st.integers(2, 3))
def test_groups(case: dict[str, Any], groups: int) -> None:
    full_out, full_in, *kernel = case["full"]
    if full_in == 1:
        full_in = 2
    weight = torch.randn(groups * full_out, full_in, *kernel)
    x, _, _ = tensors(case, torch.float32, (groups - 1) * full_in)
    args = (x, form(weight, case["weight_last"]), None, case["geometry"], groups, None, None, None)
    y = sliced.run(*args, config=(SMALL, case["align"]))
    want = sliced_reference.sliced_conv2d(*map(double, args))
    magnitude = sliced_reference.sliced_conv2d(*(a.abs() if isinstance(a, Tensor) else a for a in map(double, args)))
    close(y, want, magnitude, weight[0].numel())


def after(e: Epilogue, sums: Tensor) -> Tensor:
    """The epilogue in plain PyTorch, in float64."""
    y = sums * e.scale.double()[:, None, None] + e.shift.double()[:, None, None] + e.residual.double()
    plain = {"none": lambda y: y, "clamp": lambda y: y.clamp(e.low, e.high)}
    others = {"gelu_tanh": lambda y: F.gelu(y, approximate="tanh"), "sigmoid": torch.sigmoid, "tanh": torch.tanh}
    named = {name: getattr(F, name) for name in ("gelu", "silu", "hardswish", "hardsigmoid")}
    return (plain | others | named)[e.kind](y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("op", ["sliced", "depthwise", "ternary"])
def test_epilogue(kind: str, channels_last: bool, op: str) -> None:
    x, weight = form(torch.randn(2, 16, 5, 4), channels_last), torch.randn(16, 16, 3, 3) / 12
    e = Epilogue(torch.rand(16), torch.randn(16), torch.randn(2, 16, 5, 4), kind, -0.5, 1.5)
    geometry, bias = (1, 1, 1, 1, 1, 1, 1, 1), torch.randn(16)
    if op == "ternary":
        packed = TernaryWeight.pack(weight.sign())
        args: tuple[Any, ...] = (x, packed.packed, None, bias, packed.shape, geometry, 1, None, None, None)
        y = ternary.run(*args, epilogue=e, config=(TERNARY, 8))
        sums = ternary_reference.ternary_conv2d(*map(double, args))
    else:
        groups = 16 if op == "depthwise" else 1
        args = (x, weight[:, : 16 // groups], bias, geometry, groups, None, None, None)
        y = sliced.run(*args, epilogue=e, config=(SMALL, 8))
        sums = sliced_reference.sliced_conv2d(*map(double, args))
    torch.testing.assert_close(y.double(), after(e, sums), rtol=2e-5, atol=2e-5)


@EXAMPLES
@given(
    rows=st.integers(1, 20), full=st.integers(1, 40), outputs=st.integers(1, 20), dtype=DTYPES, data=st.data(),
    lead=st.sampled_from([(), (1,), (2,)]),
)  # fmt: skip
def test_sliced_linear(
    rows: int, full: int, outputs: int, dtype: torch.dtype, data: st.DataObject, lead: tuple[int, ...]
) -> None:
    weight, bias = torch.randn(outputs, full).to(dtype), torch.randn(outputs).to(dtype)
    in_index = torch.tensor(data.draw(st.lists(st.integers(0, full - 1), min_size=1, max_size=full)))
    x = torch.randn(*lead, rows, len(in_index)).to(dtype)
    args = (x, weight, bias, None, in_index, torch.arange(outputs).flip(0))
    y = linear.run(*args, config=(SMALL, 0))
    want = linear_reference.sliced_linear(*map(double, args))
    magnitude = linear_reference.sliced_linear(*(a.abs() if i < 3 else a for i, a in enumerate(map(double, args))))
    close(y, want, magnitude, full)
    assert y.is_contiguous()


@EXAMPLES
@given(case=images(), dtype=DTYPES, scaled=st.booleans(), index=st.booleans(), data=st.data())
def test_ternary_conv2d(
    case: dict[str, Any], dtype: torch.dtype, scaled: bool, index: bool, data: st.DataObject
) -> None:
    full_out, full_in = case["full"][:2]
    in_index = out_index = None
    if index:
        in_index = torch.tensor(data.draw(st.lists(st.integers(0, full_in - 1), min_size=1, max_size=full_in)))
        out_index = torch.tensor(data.draw(st.lists(st.integers(0, full_out - 1), min_size=1, max_size=full_out)))
    x, _, bias = tensors(case, dtype, None if in_index is None else len(in_index))
    signs = torch.randint(-1, 2, case["full"])
    packed = TernaryWeight.pack(signs.float()).packed
    scale = torch.rand(full_out) if scaled else None
    where = (1, None if index else case["active"][0], in_index, out_index)
    args = (x, packed, scale, bias, case["full"], case["geometry"], *where)
    y = ternary.run(*args, config=(TERNARY, 0 if index else case["align"]))
    want = ternary_reference.ternary_conv2d(*map(double, args))
    absolute = TernaryWeight.pack(signs.abs().float()).packed
    magnitude = ternary_reference.ternary_conv2d(
        x.double().abs(), absolute, scale, bias.double().abs(), case["full"], case["geometry"], *where
    )
    close(y, want, magnitude, signs[0].numel())
    assert y.is_contiguous(memory_format=torch.channels_last if last(x) else torch.contiguous_format)


@EXAMPLES
@given(rows=st.integers(1, 20), full=st.integers(1, 150), outputs=st.integers(1, 20), dtype=DTYPES, data=st.data())
def test_ternary_linear(rows: int, full: int, outputs: int, dtype: torch.dtype, data: st.DataObject) -> None:
    """As near as rounding allows."""
    active = data.draw(st.integers(1, full))
    signs = torch.randint(-1, 2, (outputs, full))
    packed, scale = TernaryWeight.pack(signs.float()).packed, torch.rand(outputs)
    x, bias = torch.randn(rows, active).to(dtype), torch.randn(outputs).to(dtype)
    args = (x, packed, scale, bias, full, None, None, None)
    y = ternary_linear.run(*args, config=(TERNARY, 0))
    weight = signs[:, :active].double() * scale.double()[:, None]
    want = x.double() @ weight.t() + bias.double()
    close(y, want, x.double().abs() @ weight.abs().t() + bias.double().abs(), active)


def test_the_largest_sums_of_int8_are_exact() -> None:
    """All 127 times +1: no partial sum may wrap."""
    signs = torch.ones(16, 4096)
    x = torch.full((2, 4096), 127.0)
    y = ternary_linear.run(
        x, TernaryWeight.pack(signs).packed, None, None, 4096, None, None, None,
        INT8, config=(Config(16, 16, 256), 0),
    )  # fmt: skip
    assert (y == 127.0 * 4096).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_shows(value: float) -> None:
    """float32 cut into three parts, and int8, give NaN or infinity where float64 does, and nowhere else."""
    x = torch.randn(3, 64)
    x[1, 5] = value
    signs = torch.ones(16, 64)
    args = (x, TernaryWeight.pack(signs).packed, None, None, 64, None, None, None)
    y = ternary_linear.run(*args, config=(TERNARY, 8))
    torch.testing.assert_close(y, (x.double() @ signs.t().double()).float(), equal_nan=True)
    whole = ternary_linear.run(*args, INT8, config=(Config(16, 16, 128), 8))
    assert whole[1].isnan().all()
    assert whole[[0, 2]].isfinite().all()


def test_float32_keeps_all_its_bits() -> None:
    """Three parts of eight bits each are the whole number, from the smallest normal to the largest."""
    x = torch.tensor([[1 + 2**-23, 3.4028234e38, 2.0**-100 * (1 + 2**-23), -1.9999999]])
    signs = torch.eye(4)
    y = ternary_linear.run(
        x, TernaryWeight.pack(signs).packed, None, None, 4, None, None, None, config=(TERNARY, 0)
    )  # fmt: skip
    assert torch.equal(y, x)


def test_nothing_is_read_beyond_the_slice() -> None:
    """NaN in all weights and biases that are not active, and around x, leaves no trace."""
    for channels_last in (False, True):
        whole = form(torch.full((2, 12, 6, 6), torch.nan), channels_last)
        x = whole[:, :5]
        x[:] = 1
        weight, bias = torch.full((9, 12, 3, 3), torch.nan), torch.full((9,), torch.nan)
        weight[:4, :5], bias[:4] = 1, 1
        args = (x, weight, bias, (1, 1, 1, 1, 1, 1, 1, 1), 1, 4, None, None)
        y = sliced.run(*args, config=(SMALL, 0))
        assert torch.equal(y, sliced_reference.sliced_conv2d(*args))


def test_codes_follow_weights() -> None:
    """The layout as its module describes it, spelt out by a slow reading."""
    signs = torch.randint(-1, 2, (5, 70, 3, 2), dtype=torch.int8)
    codes = encode(signs, 16)
    assert codes.shape == (6, 2, 5, 16)
    for tap, block, o, byte in ((0, 0, 0, 0), (5, 1, 4, 15), (3, 0, 2, 7), (2, 1, 1, 1)):
        for quarter in range(4):
            code = int(codes[tap, block, o, byte]) >> 2 * quarter & 3
            channel = 64 * block + 16 * quarter + byte
            want = int(signs[o, channel].flatten()[tap]) if channel < 70 else 0
            assert {0: 0, 1: 1, 3: -1}[code] == want
