"""Every Triton kernel with every shipped configuration, compiled for GPUs that are not there."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton")

import ahead  # noqa: E402
import ptx  # noqa: E402
from graph_nodes import Made  # noqa: E402

from dynkern.ops import TernaryWeight  # noqa: E402
from dynkern.ops.gpu import configs, quantized  # noqa: E402
from dynkern.ops.quantize import Activation  # noqa: E402
from dynkern.ops.sliced_conv2d import triton as sliced  # noqa: E402
from dynkern.ops.sliced_linear import triton as sliced_linear  # noqa: E402
from dynkern.ops.ternary_conv2d import triton as ternary  # noqa: E402
from dynkern.ops.ternary_conv2d import triton_kernels as kernels  # noqa: E402
from dynkern.ops.ternary_linear import triton as ternary_linear  # noqa: E402

# By default one of the half precisions for each device, which CI has the time for; "all" also compiles the other one
# and, for cards that have no table, what the rule gives (some ten minutes).
ALL = os.environ.get("DYNKERN_AHEAD") == "all"
OTHERS = ((8, 9), (9, 0), (12, 0))
CASES = {str(case): case for case in ahead.shipped_cases(both_halves=ALL)}
CASES |= {str(case): case for capability in OTHERS if ALL for case in ahead.ruled_cases(capability)}
# What a block may use, by compute capability.
SHARED = {(8, 0): 166912, (8, 9): 101376, (9, 0): 232448, (10, 0): 232448, (12, 0): 101376}
SM_90 = (9, 0)
# The compiler whose use of registers is judged; others use other ones.
JUDGED = triton.__version__.startswith("3.6.")


def build(case: Any) -> Any:
    """In a worker; an error comes back as its text."""
    try:
        return ahead.build(case)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.fixture(scope="module")
def built() -> Mapping[str, Any]:
    """All cases, compiled by two processes: a compilation uses one core."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as pool:
        return dict(zip(CASES, pool.map(build, CASES.values()), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_it_compiles_well(built: Mapping[str, Any], name: str) -> None:
    """It compiles, spills nothing, fits the shared memory and uses tensor cores, Hopper's own where tiles allow."""
    case, made = CASES[name], built[name]
    assert not isinstance(made, str), made
    assert made.stack == 0 or not JUDGED, f"{made.registers} registers and {made.stack} bytes of stack"
    assert made.shared <= SHARED[case.capability]
    if case.op == configs.DEPTHWISE:
        assert not made.tensor_core()
        return
    assert made.tensor_core()
    first_factor = case.config.block_o if case.op.startswith("ternary") else case.config.block_p
    if case.capability == SM_90 and first_factor >= 64:
        assert "wgmma" in made.tensor_core()
    direct = case.op.startswith("ternary") and case.dtype != "float32" and case.last and case.width == "wide"
    if direct and case.capability == SM_90 and first_factor >= 64:
        # Decoded weights go from registers into the tensor core: only the epilogue writes to shared memory.
        loop = made.ptx[: made.ptx.rindex("wgmma.mma_async")]
        assert "st.shared" not in loop


def test_every_row_of_the_tables_is_compiled() -> None:
    """Every kernel, configuration, layout and dtype of every table, a half precision standing for the other."""
    for table in configs.shipped():
        halves = {d for c in CASES.values() if c.capability == table.capability for d in (c.dtype,)} & {
            "float16", "bfloat16",
        }  # fmt: skip
        assert halves
        for row in table.rows:
            for dtype in {d if d in ("float32", "int8") else max(halves) for d in row.dtypes}:
                for last in (True, False) if row.last is None else (row.last,):
                    for width in ("wide", "narrow"):
                        config, taps = getattr(row, width), 1 if row.op == "ternary_linear" else 9
                        case = ahead.Case(row.op, dtype, last, width, config, table.capability, taps)
                        assert config is None or str(case) in CASES


@pytest.mark.parametrize("row", [200, 20000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_quantising_compiles(dtype: torch.dtype, row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row in one piece is one launch, a longer one two; nothing spills, and divisions are rounded as on the CPU."""
    recorders = {name: ahead.Recorder(getattr(quantized, name)) for name in ("greatest_kernel", "quantize_kernel")}
    for name, recorder in recorders.items():
        monkeypatch.setattr(quantized, name, recorder)
    quantized.quantize_rows(torch.zeros(2, row, dtype=dtype), Activation(True))
    launched = [recorder for recorder in recorders.values() if recorder.options]
    assert len(launched) == (1 if row <= quantized.PIECE else 2)
    for recorder in launched:
        made = ahead.build_launch(recorder.kernel, recorder.args, recorder.options, SM_90)
        assert made.stack == 0
        if recorder is recorders["quantize_kernel"]:
            assert recorder.options["enable_fp_fusion"] is False
            assert "div.rn.f32" in made.ptx
            assert "fma" not in made.ptx


def variants(call: Callable[[], Any], module: Any, name: str) -> tuple[Any, ...]:
    """What Triton would compile anew for: everything of a launch but the numbers that are not specialised."""
    recorder = ahead.Recorder(getattr(module, name))
    with mock.patch.object(module, name, recorder):
        call()
    assert recorder.options, "nothing was launched"
    for parameter, value in zip(recorder.kernel.params, recorder.args, strict=False):
        if isinstance(value, (int, float)):
            assert parameter.do_not_specialize
    tensors = tuple(None if t is None else str(t.dtype) for t in recorder.args if not isinstance(t, (int, float)))
    return tensors, tuple(sorted(recorder.options.items()))


LAYERS = [(16, 3, 3), (16, 16, 3), (64, 64, 3), (96, 24, 1), (128, 64, 3), (320, 320, 3), (512, 2048, 1)]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("pixels", [(1, 4), (8, 48)])
def test_two_variants_at_most_over_all_widths(layer: tuple[int, int, int], last: bool, pixels: tuple[int, int]) -> None:
    """Every number of channels, also odd ones, of every layer, for every kind of weight."""
    outputs, inputs, side = layer
    form = torch.channels_last if last else torch.contiguous_format
    weight = torch.zeros(outputs, inputs, side, side, dtype=torch.float16).contiguous(memory_format=form)
    packed = TernaryWeight.pack(weight.float())
    pad = side // 2
    geometry = (1, 1, pad, pad, pad, pad, 1, 1)
    seen: dict[str, set[Any]] = {"dense": set(), "ternary": set(), "int8": set(), "quantise": set()}
    widths = sorted({*range(1, 10), *(max(1, round(i * 0.05 * outputs)) for i in range(1, 21))})
    for width in (w for w in widths if w <= outputs):
        active = max(1, round(inputs * width / outputs))
        x = torch.zeros(pixels[0], active, pixels[1], pixels[1], dtype=torch.float16).contiguous(memory_format=form)
        if last and active == 1:
            continue  # one channel has no order in memory
        where = (geometry, 1, width, None, None)
        dense = lambda x=x, where=where: sliced.run(x, weight, None, *where)  # noqa: E731
        seen["dense"].add(variants(dense, sliced, "conv_kernel"))
        if outputs * inputs < 2**17:
            args = (x, packed.packed, packed.scale, None, packed.shape, *where)
            small = lambda args=args: ternary.run(*args)  # noqa: E731
            seen["ternary"].add(variants(small, ternary, "ternary_kernel"))
            whole = lambda args=args: ternary.run(*args, Activation(True))  # noqa: E731
            with mock.patch.object(quantized, "greatest_kernel", ahead.Recorder(quantized.greatest_kernel)):
                with mock.patch.object(quantized, "quantize_kernel", ahead.Recorder(quantized.quantize_kernel)):
                    seen["int8"].add(variants(whole, ternary, "ternary_kernel"))
                with mock.patch.object(ternary, "ternary_kernel", ahead.Recorder(ternary.ternary_kernel)):
                    seen["quantise"].add(variants(whole, quantized, "quantize_kernel"))
    assert max(map(len, seen.values())) <= 2


def calls() -> dict[str, tuple[Callable[[], Any], int]]:
    """A call of each kind, and how many launches it is."""
    weight = torch.zeros(32, 16, 3, 3, dtype=torch.float16)
    packed = TernaryWeight.pack(weight.float())
    matrix = TernaryWeight.pack(torch.zeros(32, 64))
    x, rows = torch.zeros(2, 16, 8, 8, dtype=torch.float16), torch.zeros(5, 64, dtype=torch.float16)
    last, geometry = x.contiguous(memory_format=torch.channels_last), (1, 1, 1, 1, 1, 1, 1, 1)
    bias, index, few = torch.zeros(32, dtype=torch.float16), torch.arange(16), torch.arange(8)
    single, dense = torch.zeros(16, 1, 3, 3, dtype=torch.float16), torch.zeros(32, 16, dtype=torch.float16)
    where = (geometry, 1, 24, None, None)
    conv = (packed.packed, packed.scale, bias, packed.shape, *where)
    linear = (rows, matrix.packed, None, bias, 64, None, None, None)
    return {
        "sliced conv": (lambda: sliced.run(x, weight, bias, *where), 1),
        "sliced conv, channels last": (lambda: sliced.run(last, weight, bias, *where), 1),
        "sliced conv, index set": (lambda: sliced.run(x, weight, bias, geometry, 1, None, index, None), 1),
        "depthwise": (lambda: sliced.run(last, single, None, geometry, 16, None, None, None), 1),
        "sliced linear, index set": (lambda: sliced_linear.run(x[0, 0], dense, bias, None, few, None), 1),
        "ternary conv": (lambda: ternary.run(last, *conv), 1),
        "ternary linear": (lambda: ternary_linear.run(*linear), 1),
        "ternary conv, int8": (lambda: ternary.run(last, *conv, Activation(True)), 2),
        "ternary linear, int8": (lambda: ternary_linear.run(*linear, Activation(True)), 2),
        "ternary linear, int8, one scale": (lambda: ternary_linear.run(*linear, Activation(True, None, False)), 3),
    }  # fmt: skip


@pytest.mark.parametrize("name", calls())
def test_a_layer_is_one_node_of_a_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once what follows from the weight is there: one launch and nothing by PyTorch; quantising is a launch or two."""
    call, expected = calls()[name]
    recorders = []
    for module, kernels_of in (
        (sliced, ("conv_kernel", "depthwise_kernel")), (ternary, ("ternary_kernel",)),
        (quantized, ("greatest_kernel", "quantize_kernel")),
    ):  # fmt: skip
        for kernel in kernels_of:
            recorders.append(ahead.Recorder(getattr(module, kernel)))
            monkeypatch.setattr(module, kernel, recorders[-1])
    call()
    assert sum(r.launches for r in recorders) == expected
    with Made() as made:
        call()
    assert sum(r.launches for r in recorders) == 2 * expected
    assert made.nodes == []


@pytest.mark.parametrize("pack", [2, 4])
@pytest.mark.parametrize("kind", ["BF16", "FP16"])
def test_half_precision_decoding(kind: str, pack: int) -> None:
    """The PTX, carried out here, on every byte in every place."""
    dtype = torch.bfloat16 if kind == "BF16" else torch.float16
    text = getattr(kernels, f"{kind}_PTX{pack}").value
    decoded = {0: 0, 1: 1, 2: -2, 3: -1}  # two's complement; 2 does not occur
    for place, byte in itertools.product(range(pack), range(256)):
        if any(byte >> 2 * quarter & 3 == 2 for quarter in range(4)):
            continue
        word = 0x4D1CC731 & ((1 << 8 * pack) - 1) & ~(0xFF << 8 * place) | byte << 8 * place
        registers = ptx.run(text, [word], 2 * pack)
        for quarter in range(4):
            part = registers[quarter * pack // 2 : (quarter + 1) * pack // 2]
            got = [float(v) for register in part for v in ptx.halves(register, dtype)]
            assert got == [decoded[word >> 8 * i + 2 * quarter & 3] for i in range(pack)]


def test_int8_decoding() -> None:
    """The PTX, carried out here, on every byte in every place."""
    for place, byte in itertools.product(range(4), range(256)):
        word = 0x4D1CC731 & ~(0xFF << 8 * place) | byte << 8 * place
        for quarter, register in enumerate(ptx.run(kernels.INT8_PTX.value, [word], 4)):
            got = [v - 256 if v > 127 else v for v in register.to_bytes(4, "little")]
            assert got == [{0: 0, 1: 1, 2: -2, 3: -1}[word >> 8 * i + 2 * quarter & 3] for i in range(4)]
