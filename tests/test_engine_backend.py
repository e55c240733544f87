"""``torch.compile(net, backend="dynkern")``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from engine_models import Function, MobileNet, assert_close, exact, settled, slim_net, subnet_exact
from slim_models import NON_UNIFORM, SAMPLES, randomized
from torch import nn

import dynkern as dk
from dynkern.engine.backend import dynkern as backend
from dynkern.engine.builder import LoweringError

SMALL = (3, 9, 8)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_slim() -> None:
    net = slim_net(SAMPLES["residual"][0](), SMALL)
    compiled_net = torch.compile(net, backend=backend)
    for batch in (1, 3, 4):
        x = torch.randn(batch, *SMALL)
        for key in (0.25, 1.0):
            dk.select(net, key)
            with torch.no_grad():
                assert_close(compiled_net(x), subnet_exact(net, x, key), net)


@pytest.mark.parametrize("name", ["dense", "se", "mlp"])
def test_sizes_taken_from_the_batch(name: str) -> None:
    build, (_, *shape) = SAMPLES[name]
    net = dk.slim(settled(build(), tuple(shape)), (NON_UNIFORM[name], 1.0))
    dk.calibrate_bn(net, [torch.randn(16, *shape)])
    net.eval()
    dk.select(net, "odd")
    compiled_net = torch.compile(net, backend=backend)
    for batch in (3, 5, 6):
        x = torch.randn(batch, *shape)
        with torch.inference_mode():
            assert_close(compiled_net(x), subnet_exact(net, x, "odd"), net)


def test_new_weights_and_sizes() -> None:
    net = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish()), (3, 8, 8))
    compiled_net = torch.compile(net, backend=backend, dynamic=True)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for change in (
            lambda: None,
            lambda: net[0].weight.mul_(2),
            lambda: net[1].running_mean.add_(1),
            lambda: setattr(net[0], "weight", nn.Parameter(torch.randn(4, 3, 3, 3))),
        ):
            change()
            for sample in (x, torch.randn(3, 3, 9, 7)):
                assert_close(compiled_net(sample), exact(net, sample), net)


def test_packed() -> None:
    net = dk.pack(dk.ternarize(settled(MobileNet(), (3, 16, 16)), 0.05))
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert_close(torch.compile(net, backend=backend)(x), exact(net, x), net)


def test_by_name() -> None:
    if "dynkern" not in torch._dynamo.list_backends():  # the package is not installed, only on the path
        torch._dynamo.register_backend(backend, name="dynkern")
    net = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).eval().requires_grad_(False)
    x = torch.randn(2, 3, 8, 8)
    assert_close(torch.compile(net, backend="dynkern")(x), exact(net, x), net)


def test_refuses_gradients() -> None:
    net = torch.compile(settled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), (3, 4, 4)), backend=backend)
    with pytest.raises(RuntimeError, match=r"does not compute gradients.*no_grad"):
        net(torch.randn(1, 3, 4, 4))


def test_refuses_operator() -> None:
    net = torch.compile(nn.Sequential(nn.ReLU(), nn.Sequential(Function(torch.exp))), backend=backend)
    with pytest.raises(LoweringError, match=r"aten\.exp in module '.*' \(Function\)"), torch.no_grad():
        net(torch.randn(1, 3, 4, 4))


def test_refuses_dtype() -> None:
    net = torch.compile(nn.ReLU(), backend=backend)
    with pytest.raises(ValueError, match=r"torch\.float32 on the CPU, got \(1, 3, 4, 4\) of torch\.float64"):
        net(torch.randn(1, 3, 4, 4, dtype=torch.float64))


def test_refuses_two_inputs() -> None:
    with pytest.raises(RuntimeError, match="expected a graph with one input, got 2"):
        torch.compile(torch.add, backend=backend)(torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4))
