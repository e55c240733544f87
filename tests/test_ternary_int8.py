"""Ternary layers with activations of 8 bits: the same bits as the integer reference, by every kernel on every ISA."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops import conv_case, laid_out, linear_case, selection, ternary
from torch import Tensor
from torch.library import opcheck

from dynkern import _C, ops
from dynkern.ops import break_even, quantize, ternary_conv2d, ternary_linear
from dynkern.ops.ternary_conv2d import int8 as conv_int8
from dynkern.ops.ternary_conv2d import reference as conv_reference
from dynkern.ops.ternary_linear import int8 as linear_int8
from dynkern.ops.ternary_linear import reference as linear_reference
from dynkern.ops.ternary_weight import TernaryWeight, layouts_of

KERNELS = ("ternary_dense", "ternary_lookup", "ternary_short_lists")
ZEROS = st.sampled_from([0.0, 0.5, 0.9, 1.0])
SCALES = st.sampled_from([(None, True), (None, False), (0.03, True)])


def packed_of(dense: Tensor) -> Tensor:
    return TernaryWeight.pack(dense).packed


def vectors(outputs: int, bias: bool, scaled: bool, seed: int) -> tuple[Tensor | None, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(outputs, generator=generator) + 0.5 if scaled else None
    return scale, torch.randn(outputs, generator=generator) if bias else None


@settings(max_examples=40)
@given(linear_case(), ZEROS, st.booleans(), SCALES)
def test_linear(isa: str, case: dict, zeros: float, scaled: bool, how: tuple) -> None:
    dense = ternary(case["weight"], zeros, case["seed"] + 1)
    features, where = selection(case["inputs"], case["outputs"])
    x = torch.randn(*case["rows"], features, generator=torch.Generator().manual_seed(case["seed"]))
    if len(case["rows"]) == 1 and case["seed"] % 2:
        x = x.t().contiguous().t()
    scale, bias = vectors(dense.shape[0], case["bias"], scaled, case["seed"])
    rest = (where.get("out_channels"), where["in_index"], where.get("out_index"), *how)
    args = (x, packed_of(dense), scale, bias, dense.shape[1], *rest)
    expected = linear_reference.ternary_linear_int8(*args)
    for kernel in KERNELS:
        y = linear_int8.run(*args, kernel)
        assert y.is_contiguous()
        assert torch.equal(y, expected), kernel
    assert torch.equal(linear_int8.run(*args), expected)


@settings(max_examples=60)
@given(conv_case(), ZEROS, st.booleans(), SCALES)
def test_conv2d(isa: str, case: dict, zeros: float, scaled: bool, how: tuple) -> None:
    dense = ternary(case["weight"], zeros, case["seed"] + 1)
    channels, where = selection(case["inputs"], case["outputs"])
    generator = torch.Generator().manual_seed(case["seed"])
    x = laid_out(torch.randn(case["batch"], channels, *case["size"], generator=generator), case["layout"])
    scale, bias = vectors(dense.shape[0], case["bias"], scaled, case["seed"])
    options = case["options"]
    (top, bottom), (left, right) = options["padding"]
    geometry = (*options["stride"], top, bottom, left, right, *options["dilation"])
    rest = (options["groups"], where.get("out_channels"), where["in_index"], where.get("out_index"), *how)
    args = (x, packed_of(dense), scale, bias, dense.shape, geometry, *rest)
    expected = conv_reference.ternary_conv2d_int8(*args)
    for kernel in KERNELS:
        y = conv_int8.run(*args, kernel)
        assert y.is_contiguous()
        assert torch.equal(y, expected), kernel
    assert torch.equal(conv_int8.run(*args), expected)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 16, 17, 65])
@pytest.mark.parametrize("outputs", [1, 15, 16, 17, 513])
def test_edges_of_tiles(isa: str, rows: int, outputs: int) -> None:
    dense, x = ternary((outputs, 127), 0.8, rows), torch.randn(rows, 127)
    args = (x, packed_of(dense), None, None, 127, None, None, None, None, True)
    expected = linear_reference.ternary_linear_int8(*args)
    for kernel in KERNELS:
        assert torch.equal(linear_int8.run(*args, kernel), expected), kernel


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [258, 259, 4096, 65_536, 70_000])
def test_sums_that_would_overflow_shorter_integers(isa: str, kernel: str, size: int) -> None:
    dense = torch.zeros(20, size)
    dense[0], dense[1], dense[2, size // 2], dense[3, size - 1] = 1, -1, 1, -1
    dense[5, ::2], dense[5, 1::2] = 1, -1
    dense[6, : size // 2], dense[6, size // 2 :] = 1, -1
    x = torch.stack([torch.full((size,), 127.0), torch.full((size,), -127.0), torch.zeros(size)])
    x = torch.cat([x, torch.where(torch.arange(size) % 2 == 0, 127.0, -127.0)[None]])
    args = (x, packed_of(dense), None, None, size, None, None, None, 1.0, True)
    y = linear_int8.run(*args, kernel)
    assert torch.equal(y, (x.double() @ dense.double().t()).float())
    assert y[0, 0] == 127 * size
    assert torch.equal(y[:, 4], torch.zeros(4))  # an empty row
    assert torch.equal(y[2], torch.zeros(20))


def test_the_same_input_twice(isa: str) -> None:
    """An index set may name an input twice; its sums are of two inputs."""
    dense, x = ternary((7, 9), 0.3, 0), torch.randn(4, 5)
    index = torch.tensor([3, 3, 8, 0, 3])
    args = (x, packed_of(dense), None, None, 9, None, index, None, None, True)
    assert torch.equal(linear_int8.run(*args), linear_reference.ternary_linear_int8(*args))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_not_finite_is_not_hidden(isa: str, kernel: str, bad: float) -> None:
    x = torch.randn(3, 20)
    x[1, 7] = bad
    packed = packed_of(ternary((5, 20), 0.5, 0))
    for how in ((None, True), (None, False), (0.1, True)):
        args = (x, packed, None, None, 20, None, None, None, *how)
        y = linear_int8.run(*args, kernel)
        expected = linear_reference.ternary_linear_int8(*args)
        assert torch.equal(y.nan_to_num(nan=1e9), expected.nan_to_num(nan=1e9))
        if how[0] is None or bad != bad:
            assert y[1].isnan().all()
        if how[1]:
            assert y[0].isfinite().all()


def test_tiny_rows_count_as_zeros(isa: str) -> None:
    x = torch.tensor([[1e-40, -1e-38], [1e-20, 0.0]])
    y = ternary_linear(x, TernaryWeight.pack(torch.tensor([[1.0, 1.0]])), activation="int8")
    assert y[0].item() == 0
    assert y[1].item() == pytest.approx(1e-20)


def test_error_of_quantising() -> None:
    """Half a step for each input that is not skipped."""
    x, weight = torch.randn(6, 300), TernaryWeight.pack(ternary((40, 300), 0.9, 0))
    exact = x.double() @ weight.unpack().double().t()
    bound = weight.signs().abs().sum(1) * x.abs().amax(1, keepdim=True) / 127 / 2
    assert ((ternary_linear(x, weight, activation="int8") - exact).abs() <= bound * (1 + 1e-5)).all()


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_give_the_same_bits(isa: str, threads: int) -> None:
    before = torch.get_num_threads()
    matrix, conv = (TernaryWeight.pack(ternary(s, 0.8, 0)) for s in ((600, 700), (48, 24, 3, 3)))
    inputs = [torch.randn(1, 700), torch.randn(40, 700)], [torch.randn(1, 24, 40, 40), torch.randn(5, 24, 12, 12)]

    def everything() -> list[Tensor]:
        rows = [
            ternary_linear(x, matrix, activation="int8", activation_scale=s)
            for x in inputs[0]
            for s in ("row", "tensor")
        ]
        return rows + [ternary_conv2d(x, conv, padding=1, activation="int8") for x in inputs[1]]

    try:
        torch.set_num_threads(1)
        expected = everything()
        torch.set_num_threads(threads)
        for got, want in zip(everything(), expected, strict=True):
            assert torch.equal(got, want)
    finally:
        torch.set_num_threads(before)


def test_rows_do_not_depend_on_each_other() -> None:
    x, weight = torch.randn(9, 50), TernaryWeight.pack(ternary((30, 50), 0.9, 0))
    together = ternary_linear(x, weight, activation="int8")
    assert torch.equal(together, torch.cat([ternary_linear(row[None], weight, activation="int8") for row in x]))


def test_opcheck() -> None:
    scale, bias = torch.rand(6, requires_grad=True), torch.randn(6, requires_grad=True)
    packed = packed_of(ternary((6, 5), 0.4, 0))
    x = torch.randn(3, 5, requires_grad=True)
    opcheck(torch.ops.dynkern.ternary_linear_int8.default, (x, packed, scale, bias, 5, None, None, None, None, True))
    shape = (6, 4, 3, 3)
    image, packed = torch.randn(2, 4, 5, 5, requires_grad=True), packed_of(ternary(shape, 0.4, 0))
    args = (image, packed, scale, bias, shape, (1, 1, 1, 1, 1, 1, 1, 1), 1, None, None, None, 0.1, True)
    opcheck(torch.ops.dynkern.ternary_conv2d_int8.default, args)


def test_the_gradient_passes_rounding() -> None:
    weight = TernaryWeight.pack(ternary((6, 5), 0.4, 0))
    x = torch.randn(3, 5, requires_grad=True)
    ternary_linear(x, weight, activation="int8").sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.unpack().sum(0).expand(3, 5))


def test_other_dtypes_run_the_reference() -> None:
    weight, x = TernaryWeight.pack(ternary((6, 5), 0.4, 0)), torch.randn(3, 5, dtype=torch.float64)
    y = ternary_linear(x, weight, activation="int8")
    assert y.dtype == torch.float64
    assert torch.equal(y.float(), ternary_linear(x.float(), weight, activation="int8"))


def test_memory_at_90_percent_zeros() -> None:
    """The layout that runs takes at most the 2 bits a weight that the packed form takes."""
    for shape in ((512, 1024), (80, 80, 3, 3), (320, 320, 3, 3)):
        packed = packed_of(ternary(shape, 0.9, 0))
        layouts = layouts_of(packed, shape)
        assert layouts.nbytes == 0
        if len(shape) == 2:
            linear_int8.run(
                torch.randn(8, 1024), packed, None, None, 1024, None, None, None, None, True, "ternary_lookup"
            )
        else:
            geometry = (1, 1, 1, 1, 1, 1, 1, 1)
            x = torch.randn(1, shape[1], 8, 8)
            rest = (1, None, None, None, None, True, "ternary_lookup")
            conv_int8.run(x, packed, None, None, shape, geometry, *rest)
        assert 0 < layouts.nbytes <= packed.nbytes


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"activation": "int4"}, ValueError, "activation: expected 'float32' or 'int8', got 'int4'"),
        (
            {"activation_scale": "rows"},
            ValueError,
            "activation_scale: expected 'row', 'tensor' or a number, got 'rows'",
        ),
        ({"activation_scale": None}, TypeError, "activation_scale: .* got NoneType"),
        ({"activation_scale": True}, TypeError, "activation_scale: .* got bool"),
        ({"activation_scale": 0.0}, ValueError, "activation_scale: expected a number from"),
        ({"activation_scale": -1.0}, ValueError, "activation_scale: expected a number from"),
        ({"activation_scale": float("nan")}, ValueError, "activation_scale: expected a number from"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    weight = TernaryWeight.pack(ternary((6, 5), 0.4, 0))
    with pytest.raises(error, match=message):
        ternary_linear(torch.randn(2, 5), weight, **{"activation": "int8"} | arguments)
    weight = TernaryWeight.pack(ternary((6, 5, 1, 1), 0.4, 0))
    with pytest.raises(error, match=message):
        ternary_conv2d(torch.randn(2, 5, 4, 4), weight, **{"activation": "int8"} | arguments)


def test_wrong_shapes_are_named() -> None:
    weight = TernaryWeight.pack(ternary((6, 5), 0.4, 0))
    with pytest.raises(ValueError, match="x: "):
        ternary_linear(torch.randn(2, 6), weight, activation="int8")
    with pytest.raises(ValueError, match="bias: expected 6 elements"):
        ternary_linear(torch.randn(2, 5), weight, torch.zeros(5), activation="int8")


def test_rows_that_are_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of at most 4194304 entries"):
        quantize.check_length((1 << 22) + 1)


def test_a_kernel_that_does_not_exist() -> None:
    packed = packed_of(ternary((6, 5), 0.4, 0))
    with pytest.raises(ValueError, match="kernel: expected ternary_dense"):
        linear_int8.run(torch.randn(2, 5), packed, None, None, 5, None, None, None, None, True, "nothing")


def test_the_table_chooses(isa: str) -> None:
    table = break_even.TABLES[isa]
    assert {row["kernel"] for row in table} <= set(KERNELS)
    for row in table:
        expected = [r for r in table if r["rows"] <= row["rows"] and r["weights"] <= row["weights"]][-1]
        kernel = break_even.kernel_for(row["rows"], row["weights"], 0.9)
        assert kernel == (expected["kernel"] if expected["zeros"] <= 0.9 else "ternary_dense")
    assert break_even.kernel_for(64, 1 << 20, 0.0) == "ternary_dense"


def test_the_table_is_for_every_isa() -> None:
    tables = json.loads(break_even.FILE.read_text())
    assert set(_C.isas()) <= set(tables)
    for table in tables.values():
        assert all(0 < row["zeros"] <= 1 for row in table)


def test_the_names_are_public() -> None:
    assert ops.ternary_linear is ternary_linear


def structured(kind: str, outputs: int, inputs: int) -> Tensor:
    """Masks of a quarter nonzeros or fewer that are not random."""
    dense = ternary((outputs, inputs), 0.5, 3)
    if kind == "empty outputs":
        dense[torch.randperm(outputs)[: outputs // 2]] = 0
    elif kind == "empty inputs":
        dense[:, torch.randperm(inputs)[: inputs // 2]] = 0
    else:
        dense[torch.rand(outputs, inputs) < torch.rand(outputs, 1)] = 0
    return dense


@pytest.mark.parametrize("kind", ["empty outputs", "empty inputs", "uneven outputs"])
def test_structured_masks(isa: str, kind: str) -> None:
    """Outputs of very different density run in an order of their own, sliced or not."""
    dense, x = structured(kind, 1050, 140), torch.randn(18, 140)
    packed, index = packed_of(dense), torch.randperm(1050)[:300]
    for where in ((None, None, None), (700, None, None), (None, None, index), (530, torch.randperm(140), None)):
        args = (x, packed, torch.rand(1050) + 0.5, torch.randn(1050), 140, *where, None, True)
        expected = linear_reference.ternary_linear_int8(*args)
        for kernel in KERNELS:
            assert torch.equal(linear_int8.run(*args, kernel), expected), kernel
    shape = (60, 20, 3, 3)
    filters = packed_of(structured(kind, 60, 180).view(shape))
    rest = (2, None, None, None, None, True)
    conv = (torch.randn(2, 40, 6, 6), filters, None, None, shape, (1, 1, 1, 1, 1, 1, 1, 1), *rest)
    expected = conv_reference.ternary_conv2d_int8(*conv)
    for kernel in KERNELS:
        assert torch.equal(conv_int8.run(*conv, kernel), expected), kernel
