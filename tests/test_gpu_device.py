"""The operators on a real GPU: every kernel against float64, with every configuration, in graphs and modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dynkern as dk
from dynkern import ops
from dynkern.ops import quantize
from dynkern.ops.gpu import configs
from dynkern.ops.gpu.configs import Config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
pytest.importorskip("triton")

from dynkern.ops.quantize import Activation  # noqa: E402
from dynkern.ops.sliced_conv2d import reference as sliced_reference  # noqa: E402
from dynkern.ops.sliced_conv2d import triton as sliced  # noqa: E402
from dynkern.ops.ternary_conv2d import reference as ternary_reference  # noqa: E402
from dynkern.ops.ternary_conv2d import triton as ternary  # noqa: E402
from dynkern.ops.ternary_linear import reference as linear_reference  # noqa: E402
from dynkern.ops.ternary_linear import triton as ternary_linear  # noqa: E402

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
GEOMETRY = (2, 1, 1, 0, 1, 2, 1, 2)
# Of what one product loses: TF32 keeps 10 bits of each factor; float32 sums lose a bit per doubling at worst.
TF32 = 2**-10


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may quietly run in PyTorch."""
    monkeypatch.setenv("DYNKERN_STRICT", "1")


def double(values: tuple[Any, ...], absolute: bool = False) -> tuple[Any, ...]:
    found = [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]
    return tuple(v.abs() if absolute and isinstance(v, Tensor) and v.is_floating_point() else v for v in found)


def close(y: Tensor, want: Tensor, magnitude: Tensor, terms: int, tf32: bool = False) -> None:
    eps = torch.finfo(y.dtype).eps
    allowed = eps * want.abs() + ((terms + 8) * 2**-23 + (2 * TF32 if tf32 else 0)) * magnitude
    assert ((y.double() - want).abs() <= allowed).all()


def tiles(op: str, dtype: torch.dtype, last: bool) -> list[tuple[Config, int]]:
    """The configurations that tables for this device have for such layers, each with its alignment."""
    device = configs._device(0)
    name = str(dtype).removeprefix("torch.")
    rows = [r for t in configs.tables(device) for r in t.rows if r.op == op and name in r.dtypes]
    rows = [r for r in rows if r.last in (None, last) and r.wide is not None]
    layer = configs.Layer(op, name, 64, 64, 9, 5000, last)
    rows.append(configs.by_rule(device, layer))
    return list(dict.fromkeys(pair for r in rows for pair in ((r.wide, 8), (r.narrow, 0))))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("warps", [None, 8])
def test_sliced_conv2d(dtype: torch.dtype, last: bool, warps: int | None) -> None:
    """Every configuration, and the same with eight warps, at which a kernel of this kind was once silently wrong."""
    form = torch.channels_last if last else torch.contiguous_format
    weight = torch.randn(96, 80, 3, 3, device="cuda", dtype=dtype).contiguous(memory_format=form)
    bias = torch.randn(96, device="cuda", dtype=dtype)
    for config, align in tiles("sliced_conv2d", dtype, last):
        tile = config if warps is None else Config(**{**vars(config), "warps": warps})
        for channels, outputs in ((40, 72), (80, 96)) if align else ((3, 5), (40, 72), (77, 91)):
            x = torch.randn(3, channels, 15, 17, device="cuda", dtype=dtype).contiguous(memory_format=form)
            args = (x, weight, bias, GEOMETRY, 1, outputs, None, None)
            y = sliced.run(*args, config=(tile, align))
            want, magnitude = (sliced_reference.sliced_conv2d(*double(args, a)) for a in (False, True))
            close(y, want, magnitude, 9 * channels, dtype == torch.float32)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_depthwise_and_groups(dtype: torch.dtype, last: bool) -> None:
    form = torch.channels_last if last else torch.contiguous_format
    for shape, groups, channels in (((48, 1, 3, 3), 24, 17), ((64, 1, 5, 5), 64, 64), ((96, 16, 3, 3), 6, 48)):
        weight = torch.randn(shape, device="cuda", dtype=dtype)
        x = torch.randn(2, channels, 14, 15, device="cuda", dtype=dtype).contiguous(memory_format=form)
        args = (x, weight, None, GEOMETRY, groups, None, None, None)
        y = ops.sliced_conv2d(x, weight, None, (2, 1), ((1, 0), (1, 2)), (1, 2), groups)
        want, magnitude = (sliced_reference.sliced_conv2d(*double(args, a)) for a in (False, True))
        close(y, want, magnitude, weight[0].numel(), dtype == torch.float32)
        assert y.is_contiguous(memory_format=form)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ternary_conv2d(dtype: torch.dtype, last: bool) -> None:
    form = torch.channels_last if last else torch.contiguous_format
    signs = torch.randint(-1, 2, (96, 80, 3, 3), device="cuda").float()
    scale, bias = torch.rand(96, device="cuda"), torch.randn(96, device="cuda", dtype=dtype)
    packed = ops.TernaryWeight.pack(signs).packed
    absolute = ops.TernaryWeight.pack(signs.abs()).packed
    for config, align in tiles("ternary_conv2d", dtype, last):
        for channels, outputs in ((40, 72), (80, 96)) if align else ((3, 5), (77, 91)):
            x = torch.randn(3, channels, 15, 17, device="cuda", dtype=dtype).contiguous(memory_format=form)
            rest = (signs.shape, GEOMETRY, 1, outputs, None, None)
            y = ternary.run(x, packed, scale, bias, *rest, config=(config, align))
            want = ternary_reference.ternary_conv2d(*double((x, packed, scale, bias, *rest)))
            magnitude = ternary_reference.ternary_conv2d(*double((x, absolute, scale, bias, *rest), True))
            close(y, want, magnitude, 9 * channels)


@pytest.mark.parametrize("rows", [1, 16, 64, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ternary_linear(dtype: torch.dtype, rows: int) -> None:
    """Float activations within rounding; int8 ones the bits of the CPU."""
    signs = torch.randint(-1, 2, (200, 1000), device="cuda").float()
    scale = torch.rand(200, device="cuda")
    weight = ops.TernaryWeight(ops.TernaryWeight.pack(signs).packed, signs.shape, scale)
    for features in (1000, 333):
        x = torch.randn(rows, features, device="cuda", dtype=dtype)
        dense = signs[:, :features].double() * scale.double()[:, None]
        want, magnitude = x.double() @ dense.t(), x.double().abs() @ dense.abs().t()
        close(ops.ternary_linear(x, weight), want, magnitude, features)
        args = (x, weight.packed, scale, None, 1000, None, None, None)
        want = linear_reference.ternary_linear_int8(
            *(a.cpu() if isinstance(a, Tensor) else a for a in args), None, True
        )
        assert torch.equal(ternary_linear.run(*args, Activation(True)).cpu(), want)
        assert torch.equal(ops.ternary_linear(x, weight, activation="int8").cpu(), want)


@pytest.mark.parametrize("scale", ["row", "tensor", 0.02])
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_activations_have_the_bits_of_the_cpu(dtype: torch.dtype, scale: str | float) -> None:
    """Layers and convolutions, from the public functions, for few and many rows, rows in one piece and in many."""
    how: dict[str, Any] = {"activation": "int8", "activation_scale": scale}
    of = quantize.read("int8", scale)[1:]
    for rows, features in ((1, 300), (7, 40000), (200, 515)):
        weight = ops.TernaryWeight.pack(torch.randint(-1, 2, (60, features)).float())
        x = torch.randn(rows, features).to(dtype)
        y = ops.ternary_linear(x.cuda(), cuda_weight(weight), **how)
        want = linear_reference.ternary_linear_int8(x, weight.packed, None, None, features, None, None, None, *of)
        assert torch.equal(y.cpu(), want)
    weight = ops.TernaryWeight.pack(torch.randint(-1, 2, (40, 24, 3, 3)).float())
    for form in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(3, 17, 60, 50).to(dtype).contiguous(memory_format=form)
        y = ops.ternary_conv2d(x.cuda(), cuda_weight(weight), padding=1, **how)
        assert y.is_contiguous(memory_format=form)
        where = (weight.shape, (1, 1, 1, 1, 1, 1, 1, 1), 1, None, None, None)
        want = ternary_reference.ternary_conv2d_int8(x, weight.packed, None, None, *where, *of)
        assert torch.equal(y.cpu(), want)


def cuda_weight(weight: ops.TernaryWeight) -> ops.TernaryWeight:
    return ops.TernaryWeight(weight.packed.cuda(), weight.shape)


def test_index_sets_of_linear_layers() -> None:
    weight = torch.randn(64, 96, device="cuda", dtype=torch.float16)
    runs = torch.cat([torch.arange(32, 48), torch.arange(0, 24)]).cuda()
    for index in (runs, torch.randperm(96, device="cuda")[:37]):
        x = torch.randn(5, 7, len(index), device="cuda", dtype=torch.float16)
        want = x.double() @ weight[:, index].double().t()
        y = ops.sliced_linear(x, weight, in_index=index)
        close(y, want, x.double().abs() @ weight[:, index].double().abs().t(), len(index))


def test_gradients_are_those_of_the_cpu() -> None:
    x, weight = torch.randn(2, 8, 9, 9), torch.randn(16, 8, 3, 3)
    grads = []
    for device in ("cpu", "cuda"):
        a, w = (t.to(device).requires_grad_() for t in (x, weight))
        ops.sliced_conv2d(a, w, padding=1, out_channels=8).square().sum().backward()
        grads.append((a.grad.cpu(), w.grad.cpu()))
    for got, want in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2 * float(want.abs().max()))


def layers() -> dict[str, tuple[torch.nn.Module, Tensor, int]]:
    """A layer of each kind, an input, and how many nodes of a graph it is: quantising is one of its own."""
    last = torch.channels_last
    image = torch.randn(8, 32, 28, 28, device="cuda", dtype=torch.float16).contiguous(memory_format=last)
    sliced = dk.nn.SlicedConv2d(64, 64, 3, padding=1, bias=True).cuda().half().to(memory_format=last)
    conv = dk.nn.PackedTernaryConv2d(
        ops.TernaryWeight.pack(torch.randint(-1, 2, (64, 32, 3, 3)).float()), torch.randn(64), padding=1
    )
    mostly_zero = torch.where(torch.rand(512, 4096) < 0.95, 0, torch.randint(0, 2, (512, 4096)) * 2 - 1).float()
    linear = dk.nn.PackedTernaryLinear(ops.TernaryWeight.pack(mostly_zero), torch.randn(512)).cuda().half()
    eight = dk.nn.PackedTernaryLinear(ops.TernaryWeight.pack(mostly_zero), torch.randn(512)).cuda().half()
    eight.activation = "int8"
    rows = {n: torch.randn(n, 4096, device="cuda", dtype=torch.float16) for n in (1, 16, 64)}
    return {
        "sliced conv": (sliced, image, 1),
        "ternary conv": (conv.cuda().half(), image, 1),
        **{f"ternary linear, {n} rows": (linear, x, 1) for n, x in rows.items()},
        "ternary linear, int8": (eight, rows[16], 2),
    }


@pytest.mark.parametrize("name", ["sliced conv", "ternary conv", *(f"ternary linear, {n} rows" for n in (1, 16, 64)),
                                  "ternary linear, int8"])  # fmt: skip
def test_a_graph_of_one_node_per_layer(name: str) -> None:
    """A captured layer replays right, for a new input and a width that was warmed up before."""
    layer, x, expected = layers()[name]
    with torch.no_grad():
        layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph):
            y = layer(x)
        x.copy_(torch.randn_like(x))
        graph.instantiate()
        graph.replay()
        torch.testing.assert_close(y, layer(x))
    assert nodes(graph) == expected


def nodes(graph: torch.cuda.CUDAGraph) -> int:
    """How many nodes a captured graph has, by the CUDA driver."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    error, _, count = runtime.cudaGraphGetNodes(runtime.cudaGraph_t(graph.raw_cuda_graph()))
    assert int(error) == 0
    return int(count)


@pytest.mark.parametrize("width", [0.25, 1.0])
def test_a_slim_network_moves_to_the_gpu(width: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """``net.cuda()`` is all: the same outputs as on the CPU, up to TF32."""
    monkeypatch.delenv("DYNKERN_STRICT")  # cuBLAS runs the classifier, whose slice it reads where it lies
    net = dk.slim(dk.models.resnet20(), subnets=(0.25, 0.5, 1.0))
    dk.calibrate_bn(net, [torch.randn(64, 3, 32, 32)])
    net.eval()
    dk.select(net, width)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        want = net(x)
        y = net.cuda()(x.cuda()).cpu()
    assert (y - want).abs().max() <= 0.02 * want.abs().max()
