"""The packed ternary weight: the codec of format 1, its figures, and what it refuses."""

from __future__ import annotations

import gc
import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynkern.ops import TernaryWeight, ternary_linear
from dynkern.ops import ternary_weight as module


def random_signs(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def of_counts(minus: int, zero: int, plus: int, rows: int) -> TernaryWeight:
    signs = torch.cat([torch.full((n,), s) for n, s in ((minus, -1.0), (zero, 0.0), (plus, 1.0))])
    return TernaryWeight.pack(signs[torch.randperm(len(signs))].reshape(rows, -1))


shapes = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 40)),
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
)


@given(shape=shapes, seed=st.integers(0, 2**32 - 1))
def test_pack_and_unpack_are_inverse(shape: tuple[int, ...], seed: int) -> None:
    signs = random_signs(shape, seed)
    weight = TernaryWeight.pack(signs)
    assert weight.scale is None
    assert weight.shape == shape
    assert weight.packed.shape == (shape[0], math.ceil(math.prod(shape[1:]) / 4))
    assert torch.equal(weight.signs(), signs)
    assert torch.equal(weight.unpack(), signs.float())
    assert torch.equal(TernaryWeight.pack(weight.unpack()).packed, weight.packed)


@given(shape=shapes, seed=st.integers(0, 2**32 - 1))
def test_pack_finds_the_scales(shape: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(shape[0], generator=generator) + 0.5
    dense = random_signs(shape, seed).float() * scale.reshape(-1, *[1] * (len(shape) - 1))
    weight = TernaryWeight.pack(dense)
    assert torch.equal(weight.unpack(), dense)


valid_bytes = [sum(code << 2 * i for i, code in enumerate(codes)) for codes in product(range(3), repeat=4)]


@given(packed=st.lists(st.sampled_from(valid_bytes), min_size=1, max_size=8))
def test_every_valid_row_of_bytes_comes_back(packed: list[int]) -> None:
    weight = TernaryWeight(torch.tensor([packed], dtype=torch.uint8), (1, 4 * len(packed)))
    assert TernaryWeight.pack(weight.unpack()).packed.flatten().tolist() == packed


def test_golden_bytes_of_format_1() -> None:
    # Row 0: + 0 - + | - : codes 01 00 10 01, then 10 and padding; low bits first: 0b01_10_00_01, 0b00_00_00_10.
    # Row 1: 0 - - - | + : codes 00 10 10 10, then 01 and padding:                  0b10_10_10_00, 0b00_00_00_01.
    dense = torch.tensor([[1.0, 0, -1, 1, -1], [0, -1, -1, -1, 1]])
    weight = TernaryWeight.pack(dense)
    assert weight.packed.tolist() == [[0b01100001, 0b00000010], [0b10101000, 0b00000001]]
    assert weight.packed.tolist() == [[0x61, 0x02], [0xA8, 0x01]]
    # The reduction axis of a convolution is (input, row, column), the last running fastest.
    conv = torch.tensor([[[[1.0, -1]], [[0, 1]], [[-1, 0]]]])
    assert TernaryWeight.pack(conv).packed.tolist() == [[0b01001001, 0b00000010]]


def test_golden_bytes_are_read() -> None:
    weight = TernaryWeight(torch.tensor([[0x61, 0x02]], dtype=torch.uint8), (1, 5), torch.tensor([0.5]))
    assert weight.unpack().tolist() == [[0.5, 0.0, -0.5, 0.5, -0.5]]


@pytest.mark.parametrize(("zeros", "sparsity", "bits"), [(35_900, 0.8975, 0.5794), (33_700, 0.8425, 0.7858)])
def test_figures_at_the_papers_sparsities(zeros: int, sparsity: float, bits: float) -> None:
    """Table 2 of Dordoni et al. has 0.57 and 0.78 bits, cut to two digits; 40,000 weights make its sparsities exact."""
    rest = (40_000 - zeros) // 2
    weight = of_counts(rest, zeros, rest, rows=100)
    assert weight.counts == (rest, zeros, rest)
    assert weight.nonzeros == 2 * rest
    assert weight.sparsity == sparsity
    assert round(weight.entropy, 4) == bits


@pytest.mark.parametrize(
    ("counts", "bits"), [((1, 1, 1), math.log2(3)), ((50, 0, 50), 1), ((1, 2, 1), 1.5), ((0, 3, 1), 0.8112781244591328)]
)
def test_entropy_of_known_sources(counts: tuple[int, int, int], bits: float) -> None:
    assert of_counts(*counts, rows=1).entropy == pytest.approx(bits, rel=1e-15)


def test_all_zeros_have_entropy_plus_zero() -> None:
    assert math.copysign(1, TernaryWeight.pack(torch.zeros(2, 3)).entropy) == 1


def test_nbytes_and_repr() -> None:
    weight = TernaryWeight.pack(torch.tensor([[1.0, 0, -1, 1, -1], [0, -2, -2, -2, 2]]))
    assert weight.nbytes == 2 * 2 + 2 * 4
    assert repr(weight) == "TernaryWeight(shape=(2, 5), sparsity=0.2000, nbytes=12)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_from_float_follows_equation_5(dtype: torch.dtype) -> None:
    delta = 0.25
    above = torch.nextafter(torch.tensor(delta, dtype=dtype), torch.tensor(1.0, dtype=dtype)).item()
    values = [above, delta, -delta, -above, 0.0, -0.0, 1.0, -1.0, 7.0, -7.0, math.inf, -math.inf]
    weight = TernaryWeight.from_float(torch.tensor([values], dtype=dtype), delta)
    assert weight.signs().flatten().tolist() == [1, 0, 0, -1, 0, 0, 1, -1, 1, -1, 1, -1]


def test_from_float_keeps_a_scale_and_takes_delta_zero() -> None:
    weight = TernaryWeight.from_float(torch.tensor([[1e-30, -1e-30], [0.0, 2.0]]), 0, torch.tensor([2.0, 3.0]))
    assert weight.unpack().tolist() == [[2.0, -2.0], [0.0, 3.0]]


@pytest.mark.parametrize("delta", [-0.1, 1, 1.5, math.nan, math.inf])
def test_from_float_refuses_a_delta_out_of_range(delta: float) -> None:
    with pytest.raises(ValueError, match="delta: expected 0 <= delta < 1"):
        TernaryWeight.from_float(torch.ones(2, 2), delta)


@pytest.mark.parametrize("delta", ["0.1", None, True, torch.tensor(0.1)])
def test_from_float_refuses_a_delta_that_is_no_number(delta: object) -> None:
    with pytest.raises(TypeError, match="delta: expected a number"):
        TernaryWeight.from_float(torch.ones(2, 2), delta)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (3,), (), (2, 0, 3, 3), (0, 1, 1, 1)])
def test_empty_and_flat_weights_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two or more dimensions, none empty"):
        TernaryWeight.pack(torch.zeros(shape))
    with pytest.raises(ValueError, match="two or more dimensions, none empty"):
        TernaryWeight.from_float(torch.zeros(shape), 0.1)
    with pytest.raises(ValueError, match="shape: expected"):
        TernaryWeight(torch.zeros(1, 1, dtype=torch.uint8), shape)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_pack_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="dense: expected finite"):
        TernaryWeight.pack(torch.tensor([[1.0, bad]]))


def test_from_float_refuses_nan() -> None:
    with pytest.raises(ValueError, match="weight: expected numbers, got NaN"):
        TernaryWeight.from_float(torch.tensor([[1.0, math.nan]]), 0.1)


@pytest.mark.parametrize("dense", [torch.tensor([[1.0, 0.5]]), torch.tensor([[1.0, 1 + 1e-12]], dtype=torch.float64)])
def test_pack_refuses_two_magnitudes_in_a_row(dense: Tensor) -> None:
    with pytest.raises(ValueError, match="dense: row 0 holds more than one magnitude"):
        TernaryWeight.pack(dense)


@pytest.mark.parametrize("dense", [[[1.0]], torch.ones(2, 2, dtype=torch.int64), None])
def test_pack_refuses_other_types(dense: object) -> None:
    with pytest.raises(TypeError, match="dense: expected a floating-point or int8 tensor"):
        TernaryWeight.pack(dense)  # type: ignore[arg-type]


@pytest.mark.parametrize("position", range(4))
def test_the_invalid_code_is_refused(position: int) -> None:
    packed = torch.tensor([[0b01100001, 3 << 2 * position]], dtype=torch.uint8)
    with pytest.raises(ValueError, match="invalid code 11"):
        TernaryWeight(packed, (1, 8))


def test_padding_that_is_not_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="padding at the end of a row is not zero"):
        TernaryWeight(torch.tensor([[0b01000000]], dtype=torch.uint8), (1, 3))


@pytest.mark.parametrize(
    ("packed", "scale", "error", "message"),
    [
        (torch.zeros(2, 2, dtype=torch.int8), None, TypeError, "packed: expected a uint8 tensor, got torch.int8"),
        ([[0, 0], [0, 0]], None, TypeError, "packed: expected a uint8 tensor"),
        (torch.zeros(2, 3, dtype=torch.uint8), None, ValueError, r"packed: expected shape \(2, 2\)"),
        (torch.zeros(2, 2, dtype=torch.uint8), torch.ones(3), ValueError, r"scale: expected shape \(2,\), got \(3,\)"),
        (torch.zeros(2, 2, dtype=torch.uint8), torch.ones(2).double(), TypeError, "scale: expected a float32 tensor"),
        (torch.zeros(2, 2, dtype=torch.uint8), torch.tensor([1, math.nan]), ValueError, "scale: expected finite"),
        (torch.zeros(2, 2, dtype=torch.uint8), torch.ones(2, device="meta"), ValueError, "scale: expected on cpu"),
    ],
)
def test_parts_that_do_not_fit_are_refused(packed: Tensor, scale: Tensor, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        TernaryWeight(packed, (2, 5), scale)


def test_a_written_weight_is_read_anew() -> None:
    weight = TernaryWeight.pack(torch.tensor([[1.0, 0, 0, 0]]))
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert ternary_linear(x, weight).item() == 1
    weight.packed.copy_(TernaryWeight.pack(torch.tensor([[0, -1.0, 0, 0]])).packed)
    assert ternary_linear(x, weight).item() == -2
    weight.packed.fill_(0xFF)
    with pytest.raises(ValueError, match="invalid code 11"):
        ternary_linear(x, weight)


def test_one_packed_tensor_may_stand_for_two_shapes() -> None:
    packed = torch.tensor([[0b00000101]], dtype=torch.uint8)
    for inputs in (3, 4, 2):
        assert ternary_linear(torch.ones(1, inputs), TernaryWeight(packed, (1, inputs))).item() == 2


def test_lists_are_kept_once_and_dropped_with_the_weight() -> None:
    weight = TernaryWeight.pack(random_signs((3, 5), 0))
    gc.collect()  # what other tests left
    before = len(module._lists)
    lists = module.lists_of(weight.packed, weight.shape)
    assert module.lists_of(weight.packed, weight.shape) is lists
    assert len(module._lists) == before + 1
    del weight, lists
    gc.collect()
    assert len(module._lists) == before


def test_a_weight_made_in_inference_mode_is_a_normal_one() -> None:
    with torch.inference_mode():
        weight = TernaryWeight.pack(torch.tensor([[1.0, -2.0], [2.0, 0.0]]).sign() * torch.tensor([[3.0], [1.0]]))
    assert not weight.packed.is_inference()
    assert weight.scale is not None
    assert not weight.scale.is_inference()
    x = torch.ones(1, 2, requires_grad=True)
    ternary_linear(x, weight).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, weight.unpack().sum(0, keepdim=True))


def test_lists_of_an_inference_tensor_follow_its_writes() -> None:
    with torch.inference_mode():
        packed = torch.tensor([[0b01]], dtype=torch.uint8)
        x = torch.ones(1, 1)
        assert torch.ops.dynkern.ternary_linear(x, packed, None, None, 1, None, None, None).item() == 1
        packed.fill_(0b10)
        assert torch.ops.dynkern.ternary_linear(x, packed, None, None, 1, None, None, None).item() == -1
