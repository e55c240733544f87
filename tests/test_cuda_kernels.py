"""The CUDA kernels, played on the host thread by thread (tests/simt), against the reference in float64.

Shared memory and results start as NaN, memory that is not a buffer's faults, undefined behaviour traps, and every call
runs twice, blocks and warps in opposite orders, with the same bits as a result.
"""

from __future__ import annotations

import ctypes

import pytest
import torch
from cuda_emulator import Plan, emulator, linear
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynkern.ops.ternary_weight import pack_signs

INT8, BFLOAT16, FLOAT16, FLOAT32 = torch.int8, torch.bfloat16, torch.float16, torch.float32
EPS = {dtype: torch.finfo(dtype).eps for dtype in (BFLOAT16, FLOAT16, FLOAT32)}
slow = settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def machine() -> ctypes.CDLL:
    return emulator()


@st.composite
def cases(draw: st.DrawFn, rows: st.SearchStrategy[int], dtypes: tuple[torch.dtype, ...]) -> dict:
    full = (draw(st.integers(1, 150)), draw(st.sampled_from([1, 7, 63, 64, 120, 121, 128, 200, 300, 515])))
    return {
        "rows": draw(rows),
        "full": full,
        "outputs": draw(st.integers(1, full[0])),
        "inputs": draw(st.integers(1, full[1])),
        "dtype": draw(st.sampled_from(dtypes)),
        "zeros": draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
        "layout": draw(st.sampled_from(["aligned", "odd", "shifted"])),
        "scaled": draw(st.booleans()),
        "bias": draw(st.sampled_from([None, BFLOAT16, FLOAT16, FLOAT32])),
        "y_type": draw(st.sampled_from([BFLOAT16, FLOAT16, FLOAT32])),
        "multiprocessors": draw(st.sampled_from([1, 4])),
        "seed": draw(st.integers(0, 2**16)),
    }


def ternary(shape: tuple[int, int], zeros: float, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return torch.where(torch.rand(shape, generator=generator) < zeros, 0, signs).to(torch.int8)


def activations(rows: int, inputs: int, dtype: torch.dtype, layout: str, generator: torch.Generator) -> Tensor:
    """Values at which float32 sums round, in a buffer that ends with them; aligned to 16 bytes or not."""
    pitch = {"aligned": -(-inputs // 16) * 16, "odd": inputs, "shifted": inputs + 3}[layout]
    offset = 1 if layout == "shifted" else 0
    count = offset + (rows - 1) * pitch + inputs
    if dtype == INT8:
        buffer = torch.randint(-128, 128, (count,), generator=generator).to(INT8)
    else:
        buffer = torch.randn(count, generator=generator).to(dtype)
    return buffer.as_strided((rows, inputs), (pitch, 1), offset)


def check(machine: ctypes.CDLL, form: str, case: dict) -> Plan:
    generator = torch.Generator().manual_seed(case["seed"])
    full, outputs, inputs, rows = case["full"], case["outputs"], case["inputs"], case["rows"]
    weight = ternary(full, case["zeros"], generator)
    x = activations(rows, inputs, case["dtype"], case["layout"], generator)
    options: dict = {}
    if case["scaled"]:
        options["scale"] = torch.rand(full[0], generator=generator) + 0.5
        options["row_scale"] = torch.rand(rows, generator=generator) + 0.5
    if case["bias"] is not None:
        options["bias"] = torch.randn(full[0], generator=generator).to(case["bias"])
    options |= {"y_type": case["y_type"], "multiprocessors": case["multiprocessors"]}
    y, plan = linear(machine, form, x, pack_signs(weight), full, outputs, **options)
    again, _ = linear(machine, form, x, pack_signs(weight), full, outputs, reversed=True, **options)
    assert torch.equal(y.view(torch.uint8), again.view(torch.uint8))

    active = weight[:outputs, :inputs].double()
    if case["dtype"] == INT8:
        sums = (x.double() @ active.t()).float()
        if case["scaled"]:
            sums = sums * (options["row_scale"][:, None] * options["scale"][:outputs])
        if case["bias"] is not None:
            sums = sums + options["bias"][:outputs]
        assert torch.equal(y, sums.to(case["y_type"])), "int8 results are not the bits that the CPU gives"
        return plan
    factor = torch.ones(rows, outputs, dtype=torch.float64)
    if case["scaled"]:
        factor = options["row_scale"].double()[:, None] * options["scale"].double()[None, :outputs]
    shift = options["bias"].double()[:outputs] if case["bias"] is not None else torch.zeros(outputs).double()
    expected = x.double() @ active.t() * factor + shift
    magnitude = x.double().abs() @ active.abs().t() * factor + shift.abs()
    # Any order of float32 sums is within this.
    bound = ((inputs + 7) * EPS[FLOAT32]) * magnitude + EPS[case["y_type"]] * expected.abs() + torch.finfo(FLOAT16).tiny
    worst = ((y.double() - expected).abs() / bound).max()
    assert worst <= 1, f"error is {worst:.3g} times the bound"
    return plan


FEW, MANY = st.integers(1, 64), st.integers(65, 140)
ALL = (INT8, BFLOAT16, FLOAT16)


@slow
@given(cases(FEW, ALL))
def test_few_rows_dense(machine: ctypes.CDLL, case: dict) -> None:
    assert check(machine, "dense", case).columns in (8, 16, 32)


@slow
@given(cases(st.integers(1, 6), ALL))
def test_few_rows_lists(machine: ctypes.CDLL, case: dict) -> None:
    assert check(machine, "lists", case).columns in (1, 2, 4)


@slow
@given(cases(MANY, ALL))
def test_many_rows_dense(machine: ctypes.CDLL, case: dict) -> None:
    assert check(machine, "dense", case).columns == 128


@slow
@given(cases(st.integers(1, 140), (INT8,)))
def test_sparse_int8(machine: ctypes.CDLL, case: dict) -> None:
    check(machine, "sparse8", case)


@slow
@given(cases(st.integers(1, 140), (BFLOAT16, FLOAT16)))
def test_sparse_16(machine: ctypes.CDLL, case: dict) -> None:
    check(machine, "sparse16", case)


LONG = {"outputs": 33, "inputs": 2000, "full": (40, 2100), "zeros": 0.9, "layout": "odd", "scaled": True, "seed": 1}
LONG |= {"bias": FLOAT32, "y_type": FLOAT32, "multiprocessors": 8}


@pytest.mark.parametrize(
    ("form", "rows", "dtype"),
    [("dense", 1, INT8), ("dense", 11, BFLOAT16), ("dense", 40, BFLOAT16), ("dense", 70, FLOAT16), ("lists", 2, INT8),
     ("sparse8", 40, INT8), ("sparse16", 40, BFLOAT16)],
)  # fmt: skip
def test_splits_of_a_long_reduction(machine: ctypes.CDLL, form: str, rows: int, dtype: torch.dtype) -> None:
    """Blocks that share a result add up in one order, and leave the counters at zero (which the host checks)."""
    assert check(machine, form, {**LONG, "rows": rows, "dtype": dtype}).splits > 1


@pytest.mark.parametrize(("form", "rows"), [("dense", 2), ("dense", 70), ("lists", 2), ("sparse8", 40)])
def test_more_outputs_than_are_packed_at_once(machine: ctypes.CDLL, form: str, rows: int) -> None:
    """The packer works through 256 outputs at a time."""
    check(machine, form, {**LONG, "rows": rows, "dtype": INT8, "outputs": 530, "full": (600, 300), "inputs": 290})


def test_int8_sums_that_nearly_overflow(machine: ctypes.CDLL) -> None:
    """The largest sum of so many int8 products, times the 64 that a decoded weight is."""
    inputs = 3000
    x = torch.full((1, inputs), -128, dtype=INT8)
    for form in ("dense", "lists", "sparse8"):
        y, _ = linear(machine, form, x, pack_signs(torch.ones(2, inputs, dtype=INT8)), (2, inputs), 2)
        assert y.tolist() == [[-128.0 * inputs] * 2]


def test_a_zero_is_not_visited(machine: ctypes.CDLL) -> None:
    """The list form reads no activation under a zero: infinities there do not show."""
    weight = torch.zeros(3, 50, dtype=INT8)
    weight[:, 7], weight[1, 9] = 1, -1
    x = torch.full((1, 50), float("inf"), dtype=BFLOAT16)
    x[0, 7], x[0, 9] = 2, 3
    y, _ = linear(machine, "lists", x, pack_signs(weight), (3, 50), 3)
    assert y.tolist() == [[2.0, -1.0, 2.0]]


@pytest.mark.parametrize(
    ("which", "found"),
    [(0, "outside"), (1, "outside"), (2, "barrier"), (3, "different instructions"), (4, "undefined"), (5, "undefined"),
     (6, "not in order"), (7, "written beside")],
)  # fmt: skip
def test_the_machine_finds_mistakes(machine: ctypes.CDLL, which: int, found: str) -> None:
    assert found in machine.emulate_mistake(which).decode()


def test_the_machine_shows_races(machine: ctypes.CDLL) -> None:
    """What a missing barrier leaves open differs between the two orders that every test runs in."""
    assert machine.emulate_race(0) != machine.emulate_race(1)


def test_refused_types(machine: ctypes.CDLL) -> None:
    for form, dtype in (("sparse8", BFLOAT16), ("sparse16", INT8)):
        with pytest.raises(RuntimeError, match="x: this form"):
            linear(machine, form, torch.ones(40, 8).to(dtype), pack_signs(torch.ones(4, 8, dtype=INT8)), (4, 8), 4)


SHAPES = [(1, 28672, 8192), (1, 4096, 4096), (16, 28672, 8192), (256, 28672, 8192), (1, 100, 10), (33, 5000, 64)]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("form", ["dense", "sparse8"])
def test_no_split_is_without_work(machine: ctypes.CDLL, form: str, rows: int, inputs: int, outputs: int) -> None:
    step, warps = (128, 2) if form == "dense" and rows <= 64 else (128, 1)
    splits = machine.splits_of({"dense": 0, "sparse8": 2}[form], 0, rows, inputs, outputs, 132)
    steps = -(-inputs // step)
    share = -(-steps // (splits * warps))
    assert 1 <= splits <= 64
    assert (splits - 1) * warps * share < steps
