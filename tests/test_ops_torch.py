"""The operators as PyTorch sees them: registration, gradients, tracing, threads, memory."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from dynkern import ops


def pick(*entries: int) -> Tensor:
    return torch.tensor(entries)


CONV_SLICES = [
    (None, None, None),
    (5, None, None),
    (5, pick(4, 0, 2, 1), None),
    (None, None, pick(7, 1)),
    (None, pick(4, 0, 2, 1), pick(0, 7, 2)),
]
GEOMETRY = (2, 1, 1, 0, 1, 2, 1, 2)


def conv_arguments(where: tuple, grad: bool, dtype: torch.dtype = torch.float32) -> tuple:
    out_channels, in_index, out_index = where
    x, weight, bias = torch.randn(2, 4, 7, 8), torch.randn(8, 5, 3, 2), torch.randn(8)
    tensors = (t.to(dtype).requires_grad_(grad) for t in (x, weight, bias))
    return *tensors, GEOMETRY, 1, out_channels, in_index, out_index


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("where", CONV_SLICES)
def test_opcheck_sliced_conv2d(where: tuple, grad: bool) -> None:
    opcheck(torch.ops.dynkern.sliced_conv2d.default, conv_arguments(where, grad))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("where", CONV_SLICES)
def test_opcheck_ternary_conv2d(where: tuple, grad: bool) -> None:
    x, weight, bias, geometry, *rest = conv_arguments(where, grad)
    packed = ops.TernaryWeight.from_float(weight.detach(), 0.5)
    scale = torch.rand(8).requires_grad_(grad)
    opcheck(torch.ops.dynkern.ternary_conv2d.default, (x, packed.packed, scale, bias, packed.shape, geometry, *rest))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("where", CONV_SLICES)
def test_opcheck_linear(where: tuple, grad: bool) -> None:
    x, weight = torch.randn(3, 2, 4).requires_grad_(grad), torch.randn(8, 5).requires_grad_(grad)
    bias, scale = torch.randn(8).requires_grad_(grad), torch.rand(8).requires_grad_(grad)
    opcheck(torch.ops.dynkern.sliced_linear.default, (x, weight, bias, *where))
    packed = ops.TernaryWeight.from_float(weight.detach(), 0.5)
    opcheck(torch.ops.dynkern.ternary_linear.default, (x, packed.packed, scale, bias, 5, *where))


@pytest.mark.parametrize("where", CONV_SLICES)
def test_gradients_of_conv(where: tuple) -> None:
    arguments = conv_arguments(where, True, torch.float64)
    run = lambda x, w, b: torch.ops.dynkern.sliced_conv2d(x, w, b, *arguments[3:])  # noqa: E731
    assert torch.autograd.gradcheck(run, arguments[:3])


@pytest.mark.parametrize("where", [(None, None), (5, None), (None, pick(5, 0, 2, 1))])
def test_gradients_of_depthwise(where: tuple) -> None:
    _, in_index = where
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(12, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(12, dtype=torch.float64, requires_grad=True)
    run = lambda x, w, b: ops.sliced_conv2d(x, w, b, padding=1, groups=6, in_index=in_index)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, weight, bias))


@pytest.mark.parametrize("where", CONV_SLICES)
def test_gradients_of_linear(where: tuple) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float64, requires_grad=True)
    run = lambda x, w, b: torch.ops.dynkern.sliced_linear(x, w, b, *where)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, weight, bias))


def test_gradients_of_ternary_ops() -> None:
    """float32 kernels: the gradient of x, of the scale and of the bias against those of the dense layer."""
    dense = torch.randint(-1, 2, (8, 5, 3, 3)).float()
    weight = ops.TernaryWeight(ops.TernaryWeight.pack(dense).packed, dense.shape, torch.rand(8).requires_grad_())
    x, bias = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(8, requires_grad=True)
    y = ops.ternary_conv2d(x, weight, bias, padding=1, out_channels=6)
    grad = torch.randn_like(y)
    got = torch.autograd.grad(y, (x, weight.scale, bias), grad)
    full = dense * weight.scale[:, None, None, None]
    want = torch.autograd.grad(
        torch.nn.functional.conv2d(x, full[:6, :4], bias[:6], padding=1), (x, weight.scale, bias), grad
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_compile_traces_widths_and_gradients() -> None:
    """torch.compile takes the operator whole, with the gradient, and gives what eager gives."""

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return torch.relu(ops.sliced_conv2d(x, weight, padding="same", out_channels=3)).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(8, 5, 3, 3, requires_grad=True)
    torch.testing.assert_close(compiled(x, weight), loss(x, weight))
    (got,), (want,) = (torch.autograd.grad(f(x, weight), weight) for f in (compiled, loss))
    torch.testing.assert_close(got, want)


def test_export() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(8, 5, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return ops.sliced_conv2d(x, self.weight, out_channels=3)

    layer, x = Layer(), torch.randn(2, 4, 6, 6)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert "dynkern.sliced_conv2d" in str(program.graph)
    x = torch.randn(5, 4, 6, 6)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_vmap_and_grad_transforms_do_not_read_wrapped_memory() -> None:
    weight = torch.randn(8, 5)
    x = torch.randn(3, 4)
    got = torch.func.grad(lambda w: ops.sliced_linear(x, w, out_features=3).square().sum())(weight)
    want = torch.func.grad(lambda w: torch.nn.functional.linear(x, w[:3, :4]).square().sum())(weight)
    torch.testing.assert_close(got, want)


def run_after_poison(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Result of ``run`` when the working memory, and what the allocator hands out, were full of NaN before."""
    expected = run(x)
    run(torch.full_like(torch.nn.functional.pad(x, (3, 3)), torch.nan))
    torch.full_like(expected, torch.nan)
    return expected, run(x)


@pytest.mark.parametrize("size", [1, 3, 4, 7, 8, 15, 16, 17, 33])
def test_no_stale_memory_is_read(isa: str, size: int) -> None:
    x, weight = torch.randn(1, 5, size, size), torch.randn(7, 5, 3, 3)
    packed = ops.TernaryWeight.from_float(weight, 0.5)
    for run in (
        lambda x: ops.sliced_conv2d(x, weight, padding=1),
        lambda x: ops.sliced_conv2d(x, weight, padding=2, stride=2),
        lambda x: ops.sliced_conv2d(x, weight[:, :, :1, :1]),
        lambda x: ops.ternary_conv2d(x, packed, padding=1),
    ):
        expected, got = run_after_poison(run, x)
        assert torch.isfinite(got).all()
        assert torch.equal(expected, got)


def test_nan_stays_where_it_belongs(isa: str) -> None:
    """A NaN pixel reaches the pixels under the kernel, and no other."""
    x = torch.zeros(1, 2, 9, 20)
    x[0, 1, 4, 19] = torch.nan
    y = ops.sliced_conv2d(x, torch.ones(3, 2, 3, 3), padding=1)
    where = torch.zeros(9, 20, dtype=torch.bool)
    where[3:6, 18:] = True
    assert torch.equal(torch.isnan(y), where.expand(1, 3, 9, 20))


def test_threads_of_python(isa: str) -> None:
    """Calls from several Python threads share nothing but the weights."""
    weight = torch.randn(16, 12, 3, 3)
    packed = ops.TernaryWeight.from_float(weight, 0.5)
    inputs = [torch.randn(1, channels, 14, 14) for channels in (3, 6, 9, 12)]
    run = lambda x: (ops.sliced_conv2d(x, weight, padding=1), ops.ternary_conv2d(x, packed, padding=1))  # noqa: E731
    expected = [run(x) for x in inputs]
    right = [False] * 4

    def work(i: int) -> None:
        results = [run(inputs[i]) for _ in range(50)]
        right[i] = all(torch.equal(a, b) for pair in results for a, b in zip(pair, expected[i], strict=True))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(right)


def test_weight_is_read_where_it_lies() -> None:
    """A change of the weight shows in the next call, and the lists follow a packed weight that is changed in place."""
    x, weight = torch.ones(1, 3), torch.zeros(2, 3)
    assert ops.sliced_linear(x, weight).sum() == 0
    weight += 1
    assert ops.sliced_linear(x, weight).sum() == 6
    packed = ops.TernaryWeight.pack(torch.ones(2, 3))
    assert ops.ternary_linear(x, packed).sum() == 6
    packed.packed.copy_(ops.TernaryWeight.pack(-torch.ones(2, 3)).packed)
    assert ops.ternary_linear(x, packed).sum() == -6


def test_unbatched_and_channels_last() -> None:
    x, weight = torch.randn(2, 4, 6, 7), torch.randn(8, 5, 3, 3)
    y = ops.sliced_conv2d(x, weight)
    torch.testing.assert_close(ops.sliced_conv2d(x[0], weight), y[0])
    assert torch.equal(ops.sliced_conv2d(x.contiguous(memory_format=torch.channels_last), weight), y)


def test_autocast_computes_in_the_weights_dtype() -> None:
    x, weight, matrix = torch.randn(2, 4, 6, 6), torch.randn(8, 5, 3, 3), torch.randn(8, 5)
    packed = ops.TernaryWeight.pack(weight.sign())
    with torch.autocast("cpu", torch.bfloat16):
        low = torch.nn.functional.conv2d(x, torch.randn(4, 4, 1, 1))
        assert low.dtype == torch.bfloat16
        for y in (
            ops.sliced_conv2d(low, weight),
            ops.ternary_conv2d(low, packed),
            ops.sliced_linear(low[..., :5], matrix),
            ops.ternary_linear(low[..., :5], ops.TernaryWeight.pack(matrix.sign())),
        ):
            assert y.dtype == torch.float32
        torch.testing.assert_close(ops.sliced_conv2d(low, weight), ops.sliced_conv2d(low.float(), weight))
