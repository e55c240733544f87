"""The CUDA kernels on a card, against the reference in float64. Skipped, with the reason, where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynkern import _C, ops
from dynkern.nn.packed import PackedTernaryLinear
from dynkern.ops import TernaryWeight
from dynkern.ops.quantize import Activation
from dynkern.ops.ternary_linear import cuda, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(_C.cuda_architectures is None, reason="this build has no CUDA kernels (no nvcc)"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SHAPES = [(1, 4096, 4096), (2, 515, 130), (7, 1000, 300), (16, 4096, 1024), (32, 2048, 96), (33, 640, 200)]
SHAPES += [(256, 2048, 1024), (300, 1030, 77)]


def weight_of(outputs: int, inputs: int, zeros: float = 0.9) -> TernaryWeight:
    signs = torch.randint(0, 2, (outputs, inputs)) * 2.0 - 1
    dense = torch.where(torch.rand(outputs, inputs) < zeros, 0.0, signs)
    packed = TernaryWeight.pack(dense)
    return TernaryWeight(packed.packed.cuda(), packed.shape, (torch.rand(outputs) + 0.5).cuda())


def run(x: Tensor, weight: TernaryWeight, bias: Tensor | None = None, outputs: int | None = None, **options) -> Tensor:
    return cuda.run(x, weight.packed, weight.scale, bias, weight.shape[1], outputs, None, None, **options)


def assert_right(y: Tensor, x: Tensor, weight: TernaryWeight, bias: Tensor | None) -> None:
    dense = weight.unpack().double()[: y.shape[-1], : x.shape[-1]]
    shift = 0 if bias is None else bias.double()[: y.shape[-1]]
    expected = x.double() @ dense.t() + shift
    magnitude = x.double().abs() @ dense.abs().t() + (0 if bias is None else shift.abs())
    bound = (x.shape[-1] + 7) * torch.finfo(torch.float32).eps * magnitude
    bound += torch.finfo(y.dtype).eps * expected.abs() + torch.finfo(torch.float16).tiny
    assert ((y.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_against_float64(dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> None:
    weight = weight_of(outputs, inputs)
    x = torch.randn(rows, inputs, device="cuda").to(dtype)
    bias = torch.randn(outputs, device="cuda").to(dtype)
    for form in ("dense", "lists", "sparse16"):
        y = run(x, weight, bias, form=form)
        assert_right(y, x, weight, bias)
        assert torch.equal(y, run(x, weight, bias, form=form)), "the same call gave other bits"
    if cuda.why_not(x, weight.packed, weight.scale, bias, inputs, None, None, None) is None:
        assert_right(ops.ternary_linear(x, weight, bias), x, weight, bias)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_int8_is_exact(rows: int, inputs: int, outputs: int) -> None:
    weight = weight_of(outputs, inputs)
    x = torch.randint(-128, 128, (rows, inputs), device="cuda").to(torch.int8)
    expected = (x.double() @ weight.signs().double().t()).float()
    for form in ("dense", "lists", "sparse8"):
        y = torch.full((rows, outputs), float("nan"), device="cuda")
        cuda.run_rows(x, weight.packed, None, None, inputs, y, form=form)
        assert torch.equal(y, expected)


def test_narrower_and_unaligned() -> None:
    weight = weight_of(300, 1000)
    wide = torch.randn(5, 1003, device="cuda").to(torch.bfloat16)
    for x in (wide[:, :640], wide[:, 1:641], wide[:, 3:1002]):
        assert_right(run(x, weight, None, 123), x, weight, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_activation_int8(dtype: torch.dtype) -> None:
    """Every form gives the bits of the CPU."""
    weight = weight_of(256, 512)
    for rows in (1, 9, 70):
        x, bias = torch.randn(rows, 512).to(dtype), torch.randn(256).to(dtype)
        args = (x, weight.packed.cpu(), weight.scale.cpu(), bias, 512, None, None, None)
        expected = reference.ternary_linear_int8(*args, None, True)
        for form in ("dense", "lists", "sparse8"):
            y = run(x.cuda(), weight, bias.cuda(), activation=Activation(True), form=form)
            assert torch.equal(y.cpu(), expected)


@pytest.mark.parametrize("rows", [1, 16, 64])
def test_a_graph_replays(rows: int) -> None:
    weight = weight_of(512, 4096)
    x = torch.randn(rows, 4096, device="cuda").to(torch.bfloat16)
    run(x, weight)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run(x, weight)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        y.fill_(float("nan"))
        graph.replay()
        assert_right(y, x, weight, None)


def test_a_capture_without_the_form_says_so() -> None:
    weight = weight_of(64, 256)
    x = torch.randn(1, 256, device="cuda").to(torch.bfloat16)
    run(x, weight, form="dense")
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="before the capture"), torch.cuda.graph(graph):
        run(x, weight, form="lists")


def test_streams_side_by_side() -> None:
    """Calls on several streams at once, each with blocks that share results, do not count each other's."""
    weight = weight_of(64, 8192)
    xs = [torch.randn(1, 8192, device="cuda").to(torch.bfloat16) for _ in range(4)]
    run(xs[0], weight)
    streams = [torch.cuda.Stream() for _ in xs]
    torch.cuda.synchronize()
    ys: list[Tensor] = []
    for _ in range(50):
        for x, stream in zip(xs, streams, strict=True):
            with torch.cuda.stream(stream):
                ys.append(run(x, weight))
    torch.cuda.synchronize()
    for i, y in enumerate(ys):
        assert_right(y, xs[i % 4], weight, None)


def test_a_module_is_ready_when_it_is_moved() -> None:
    """`.cuda()` derives what a captured call of one row needs; nothing of it is saved."""
    dense = torch.randint(-1, 2, (128, 256)).float()
    layer = PackedTernaryLinear(TernaryWeight.pack(dense), torch.randn(128))
    keys = set(layer.state_dict())
    layer = layer.cuda().bfloat16()
    assert set(layer.state_dict()) == keys
    x = torch.randn(1, 256, device="cuda").to(torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run(x, layer.weight, layer.bias)
    graph.replay()
    assert_right(y, x, layer.weight, layer.bias)
