"""Every operator on every instruction set against its reference in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynkern import _C, ops
from dynkern.ops.sliced_conv2d.reference import sliced_conv2d as conv_reference
from dynkern.ops.sliced_linear.reference import sliced_linear as linear_reference

EPS = torch.finfo(torch.float32).eps


def assert_close(y: Tensor, expected: Tensor, magnitude: Tensor, terms: int) -> None:
    """|y - expected| within the rounding of a float32 sum of ``terms`` products whose absolute values add to magnitude.

    Any order of summation is within (terms + 1) eps / 2 of it to first order; FMA and the bias only make it smaller.
    """
    assert y.dtype == torch.float32
    assert y.shape == expected.shape
    assert y.is_contiguous()
    bound = (terms + 2) * EPS * magnitude + torch.finfo(torch.float32).tiny
    worst = ((y.double() - expected).abs() / bound).max() if y.numel() else torch.tensor(0.0)
    assert worst <= 1, f"error is {worst:.3g} times the bound"


@st.composite
def slices(draw: st.DrawFn, full: int, active: int | None = None) -> Tensor | int:
    """A number of first channels, or an index set in any order."""
    count = draw(st.integers(1, full)) if active is None else active
    if draw(st.booleans()):
        return torch.tensor(draw(st.permutations(range(full)))[:count])
    return count


SIZES = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 32, 33]))
CHANNELS = st.one_of(st.integers(1, 8), st.sampled_from([12, 13, 17, 25]))


@st.composite
def conv_case(draw: st.DrawFn) -> dict:
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
    padding = ((draw(st.integers(0, 3)), draw(st.integers(0, 3))), (draw(st.integers(0, 3)), draw(st.integers(0, 3))))
    least = [max(1, d * (k - 1) + 1 - sum(p)) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [max(n, draw(SIZES)) for n in least]
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 5]))
    if groups == 1:
        full_in, full_out = draw(CHANNELS), draw(CHANNELS)
        inputs, outputs = draw(slices(full_in)), draw(slices(full_out))
        per_group = full_in
    else:
        per_group, multiplier = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        full_in, full_out = groups * per_group, groups * multiplier
        active = draw(st.integers(1, groups))
        inputs = draw(slices(groups, active)) if per_group == 1 else active * per_group
        outputs = None
    return {
        "batch": draw(st.integers(0, 3)),
        "size": size,
        "weight": (full_out, per_group, *kernel),
        "inputs": inputs,
        "outputs": outputs,
        "bias": draw(st.booleans()),
        "layout": draw(st.sampled_from(["contiguous", "channels_last", "sliced"])),
        "weight_layout": draw(st.sampled_from(["contiguous", "channels_last", "transposed"])),
        "options": {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
        "seed": draw(st.integers(0, 2**16)),
    }


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "sliced":
        return torch.nn.functional.pad(x, (1, 2, 1, 0))[:, :, 1:, 1:-2]
    return x


def selection(inputs: Tensor | int, outputs: Tensor | int | None) -> tuple[int, dict]:
    count = inputs if isinstance(inputs, int) else len(inputs)
    where = {"in_index": None if isinstance(inputs, int) else inputs}
    if isinstance(outputs, int):
        where["out_channels"] = outputs
    else:
        where["out_index"] = outputs
    return count, where


def check_conv(case: dict, dense: Tensor, run, scale: Tensor | None = None) -> None:
    generator = torch.Generator().manual_seed(case["seed"])
    channels, where = selection(case["inputs"], case["outputs"])
    x = laid_out(torch.randn(case["batch"], channels, *case["size"], generator=generator), case["layout"])
    bias = torch.randn(dense.shape[0], generator=generator) if case["bias"] else None
    y = run(x, bias, where)
    options = case["options"]
    (top, bottom), (left, right) = options["padding"]
    geometry = (*options["stride"], top, bottom, left, right, *options["dilation"])
    arguments = (geometry, options["groups"])
    full = (where.get("out_channels"), where["in_index"], where.get("out_index"))
    wide = dense.double() if scale is None else dense.double() * scale.double()[:, None, None, None]
    expected = conv_reference(x.double(), wide, None if bias is None else bias.double(), *arguments, *full)
    magnitude = conv_reference(
        x.double().abs(), wide.abs(), None if bias is None else bias.double().abs(), *arguments, *full
    )
    assert_close(y, expected, magnitude, channels * dense.shape[2] * dense.shape[3] + 2)


@settings(max_examples=200)
@given(conv_case())
def test_sliced_conv2d(isa: str, case: dict) -> None:
    weight = torch.randn(case["weight"], generator=torch.Generator().manual_seed(case["seed"] + 1))

    def run(x: Tensor, bias: Tensor | None, where: dict) -> Tensor:
        return ops.sliced_conv2d(x, laid_out(weight, case["weight_layout"]), bias, **case["options"], **where)

    check_conv(case, weight, run)


@st.composite
def depthwise_case(draw: st.DrawFn) -> dict:
    """What the depthwise kernel has code of its own for, around the sizes of its vectors and blocks of rows."""
    case = draw(conv_case())
    groups, multiplier = draw(st.integers(2, 6)), draw(st.integers(1, 2))
    k, stride = draw(st.sampled_from([(3, 3), (3, 3), (5, 5), (1, 1), (7, 3), (2, 4)])), draw(st.integers(1, 2))
    case["options"] |= {"groups": groups, "stride": (stride, stride)}
    case["weight"], case["outputs"] = (groups * multiplier, 1, *k), None
    case["inputs"] = draw(slices(groups, draw(st.integers(1, groups))))
    if draw(st.booleans()):
        case["options"]["dilation"] = (1, 1)
    sizes = st.one_of(st.integers(1, 19), st.sampled_from([30, 31, 32, 33, 34, 35, 47, 63, 64, 65, 67]))
    dilation, padding = case["options"]["dilation"], case["options"]["padding"]
    least = [max(1, d * (n - 1) + 1 - sum(p)) for n, d, p in zip(k, dilation, padding, strict=True)]
    case["size"] = [max(n, draw(sizes)) for n in least]
    return case


@settings(max_examples=200)
@given(depthwise_case())
def test_depthwise_conv2d(isa: str, case: dict) -> None:
    weight = torch.randn(case["weight"], generator=torch.Generator().manual_seed(case["seed"] + 1))

    def run(x: Tensor, bias: Tensor | None, where: dict) -> Tensor:
        return ops.sliced_conv2d(x, laid_out(weight, case["weight_layout"]), bias, **case["options"], **where)

    check_conv(case, weight, run)


def test_depthwise_conv2d_in_bands_and_threads(isa: str) -> None:
    # A plane larger than a band of rows, and work enough for several threads.
    x, weight = torch.randn(2, 3, 500, 331), torch.randn(3, 1, 3, 3)
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), None, 2, 1, 1, 3)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            y = ops.sliced_conv2d(x, weight, None, 2, 1, 1, 3)
        finally:
            torch.set_num_threads(1)
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=11 * EPS * 9 * 25)


def ternary(shape: tuple[int, ...], sparsity: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1
    return torch.where(torch.rand(shape, generator=generator) < sparsity, 0.0, signs)


@settings(max_examples=200)
@given(conv_case(), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.booleans())
def test_ternary_conv2d(isa: str, case: dict, sparsity: float, scaled: bool) -> None:
    dense = ternary(case["weight"], sparsity, case["seed"] + 1)
    scale = torch.rand(dense.shape[0]) + 0.5 if scaled else None
    weight = ops.TernaryWeight(ops.TernaryWeight.pack(dense).packed, dense.shape, scale)
    check_conv(
        case, dense, lambda x, bias, where: ops.ternary_conv2d(x, weight, bias, **case["options"], **where), scale
    )


@st.composite
def linear_case(draw: st.DrawFn) -> dict:
    full_in, full_out = draw(SIZES), draw(SIZES)
    return {
        "rows": draw(st.sampled_from([(), (0,), (1,), (3,), (2, 5), (65,), (300,)])),
        "weight": (full_out, full_in),
        "inputs": draw(slices(full_in)),
        "outputs": draw(slices(full_out)),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


def check_linear(case: dict, dense: Tensor, run, scale: Tensor | None = None) -> None:
    generator = torch.Generator().manual_seed(case["seed"])
    features, where = selection(case["inputs"], case["outputs"])
    if "out_channels" in where:
        where["out_features"] = where.pop("out_channels")
    x = torch.randn(*case["rows"], features, generator=generator)
    if len(case["rows"]) == 1 and case["seed"] % 2:
        x = x.t().contiguous().t()
    bias = torch.randn(dense.shape[0], generator=generator) if case["bias"] else None
    y = run(x, bias, where)
    full = (where.get("out_features"), where["in_index"], where.get("out_index"))
    wide = dense.double() if scale is None else dense.double() * scale.double()[:, None]
    expected = linear_reference(x.double(), wide, None if bias is None else bias.double(), *full)
    magnitude = linear_reference(x.double().abs(), wide.abs(), None if bias is None else bias.double().abs(), *full)
    assert_close(y, expected, magnitude, features + 2)


@settings(max_examples=100)
@given(linear_case())
def test_sliced_linear(isa: str, case: dict) -> None:
    weight = torch.randn(case["weight"], generator=torch.Generator().manual_seed(case["seed"] + 1))
    check_linear(case, weight, lambda x, bias, where: ops.sliced_linear(x, weight, bias, **where))


@settings(max_examples=100)
@given(linear_case(), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.booleans())
def test_ternary_linear(isa: str, case: dict, sparsity: float, scaled: bool) -> None:
    dense = ternary(case["weight"], sparsity, case["seed"] + 1)
    scale = torch.rand(dense.shape[0]) + 0.5 if scaled else None
    weight = ops.TernaryWeight(ops.TernaryWeight.pack(dense).packed, dense.shape, scale)
    check_linear(case, dense, lambda x, bias, where: ops.ternary_linear(x, weight, bias, **where), scale)


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 100_000])
def test_long_reduction(isa: str, size: int) -> None:
    """Past 65,536 inputs the lists hold wider entries."""
    dense = ternary((3, size), 0.9, 1)
    x = torch.randn(2, size)
    y = ops.ternary_linear(x, ops.TernaryWeight.pack(dense))
    assert_close(y, x.double() @ dense.double().t(), x.double().abs() @ dense.double().abs().t(), size)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_give_the_same_result(isa: str, threads: int) -> None:
    """Pieces are cut along pixels and outputs, never along the reduction: the same but for rounding."""
    before = torch.get_num_threads()
    x, w = torch.randn(1, 24, 40, 40), torch.randn(48, 24, 3, 3)
    small = torch.randn(1, 24, 6, 6)
    packed = ops.TernaryWeight.pack(ternary((48, 24, 3, 3), 0.8, 0))
    rows, matrix = torch.randn(200, 96), ops.TernaryWeight.pack(ternary((128, 96), 0.8, 0))

    def everything() -> list[Tensor]:
        return [
            ops.sliced_conv2d(x, w, padding=1),
            ops.sliced_conv2d(small, w, padding=1),
            ops.ternary_conv2d(x, packed, padding=1),
            ops.ternary_conv2d(small, packed, padding=1),
            ops.sliced_linear(rows, torch.ones(128, 96)),
            ops.ternary_linear(rows, matrix),
        ]

    try:
        torch.set_num_threads(1)
        expected = everything()
        torch.set_num_threads(threads)
        for got, want in zip(everything(), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
    finally:
        torch.set_num_threads(before)


def test_every_isa_is_tested(isa: str) -> None:
    assert _C.isa() == isa
    assert math.isclose(ops.sliced_linear(torch.ones(1, 3), torch.ones(1, 3)).item(), 3.0)
