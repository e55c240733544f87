"""What the engine refuses, and that it says what and where."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine_models import SHAPE, Function
from torch import Tensor, nn

import dynkern as dk
from dynkern.engine import Compiled
from dynkern.engine.builder import LoweringError


class Block(nn.Module):
    """A function somewhere inside a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.odd = Function(function)

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(x)


def compile_inside(function: Callable[[Tensor], Tensor]) -> Compiled:
    return dk.compile(nn.Sequential(nn.ReLU(), Block(function)), torch.randn(2, *SHAPE))


def autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return F.linear(x.flatten(1), torch.ones(4, 480))


UNSUPPORTED: dict[str, tuple[Callable[[Tensor], Any], str, str]] = {
    "unknown": (torch.exp, "aten.exp", "no step"),
    "upsampling": (lambda x: F.interpolate(x, scale_factor=2), "aten.upsample_nearest2d", "no step"),
    "transposed convolution": (
        lambda x: F.conv_transpose2d(x, torch.ones(6, 2, 2, 2)),
        "aten.conv_transpose2d",
        "no step",
    ),
    "transposed, written generally": (
        lambda x: torch.convolution(x, torch.ones(6, 2, 2, 2), None, (1, 1), (0, 0), (1, 1), True, (0, 0), 1),
        "aten.convolution",
        "transposed",
    ),
    "computed weight": (
        lambda x: F.conv2d(x, torch.ones(2, 6, 1, 1) * x.mean((2, 3))[:1, :1, None, None]),
        "aten.",
        "",
    ),
    "reflected padding": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "aten.pad", "'reflect'"),
    "padding with ones": (lambda x: F.pad(x, (1, 1), value=1.0), "aten.pad", "zeros"),
    "nothing but padding": (lambda x: F.pad(x, (-10, 3)), "aten.pad", "nothing"),
    "training statistics": (lambda x: F.batch_norm(x, None, None, training=True), "aten.batch_norm", "statistics"),
    "dropout in training": (lambda x: F.dropout(x, training=True), "aten.dropout", "at random"),
    "channel steps": (lambda x: x[:, ::2], "aten.slice", "without steps"),
    "cut batch": (lambda x: x[:, 0], "aten.select", "no step"),
    "pool dilation": (lambda x: F.max_pool2d(x, 2, dilation=2), "aten.max_pool2d", "dilation"),
    "average rounded up": (lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True), "aten.avg_pool2d", "ceil_mode"),
    "average divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "aten.avg_pool2d", "divisor_override"),
    "mean of channels": (lambda x: x.mean(1, keepdim=True), "aten.mean", "rows and columns"),
    "mean of rows": (lambda x: x.mean(2, keepdim=True), "aten.mean", "rows and columns"),
    "mean of the batch": (lambda x: x - x.mean(0, keepdim=True), "aten.mean", "batch"),
    "channel shuffle": (lambda x: x.view(-1, 2, 3, 8, 10).transpose(1, 2).flatten(1, 2), "aten.view", "moves entries"),
    "permutation": (lambda x: x.permute(0, 2, 3, 1), "aten.permute", "no step"),
    "softmax of images": (lambda x: x.softmax(1), "aten.softmax", "features"),
    "softmax of columns": (lambda x: x.softmax(-1), "aten.softmax", "features"),
    "broadcast addition": (lambda x: x + x.mean((2, 3), keepdim=True), "aten.add", "one shape"),
    "broadcast over channels": (lambda x: x * x[:, :1], "aten.mul", "gate"),
    "constant image": (lambda x: x + torch.arange(10.0), "aten.add", "one for each channel"),
    "division": (lambda x: 1 / (x.sigmoid() + 1), "aten.", "no step"),
    "division by activations": (lambda x: x / (x.sigmoid() + 1), "aten.div", "divisor"),
    "bounds that are tensors": (lambda x: torch.clamp(x, torch.zeros(())), "aten.clamp", "tensor"),
    "concatenated rows": (lambda x: torch.cat([x, x], 2), "aten.cat", "channels"),
    "linear over rows": (lambda x: F.linear(x, torch.ones(4, 10)), "aten.linear", "(N, features)"),
    "another dtype": (lambda x: x.double().relu().float(), "aten.", "torch.float64"),
    "other precision": (autocast, "wrap_with_autocast", "no ATen operator"),
    "random": (lambda x: x + torch.rand(6, 1, 1), "aten.rand", "random"),
    "of the batch size": (lambda x: x + torch.zeros(x.shape[0], 1, 1, 1), "aten.zeros", "batch size"),
    "batch in the features": (lambda x: x.reshape(1, -1), "aten.", "batch"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_operator_and_module_are_named(name: str) -> None:
    function, op, why = UNSUPPORTED[name]
    with pytest.raises(LoweringError) as caught:
        compile_inside(function)
    text = str(caught.value)
    assert f"cannot lower {op}" in text
    assert "in module '1.odd' (Function)" in text
    assert why in text


def test_in_the_network_itself() -> None:
    with pytest.raises(ValueError, match=re.escape("cannot lower aten.exp in the network itself (Function)")):
        dk.compile(Function(torch.exp), torch.randn(1, 3, 4, 4))


class TestNetwork:
    @pytest.mark.parametrize(
        ("function", "why"),
        [
            (lambda x: (x, x), "returns one tensor"),
            (lambda x: {"y": x}, "returns one tensor"),
            (lambda x: x.flatten(2), r"\(N, features\) or \(N, C, H, W\)"),
            (lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4), r"\(N, features\) or \(N, C, H, W\)"),
            (lambda x: torch.ones(2, 3), "does not depend on the input"),
            (lambda x: x if x.sum() > 0 else -x, "cannot capture"),
            (lambda x: x[:2] + x[2:], "cannot capture"),
        ],
    )
    def test_refused(self, function: Callable[[Tensor], Any], why: str) -> None:
        with pytest.raises(ValueError, match=why):
            dk.compile(Function(function), torch.randn(2, 6, 4, 4))

    def test_two_arguments(self) -> None:
        class Two(nn.Module):
            def forward(self, x: Tensor, y: Tensor) -> Tensor:
                return x + y

        with pytest.raises(ValueError, match="cannot capture Two"):
            dk.compile(Two(), torch.randn(1, 3, 4, 4))

    def test_a_buffer_that_counts(self) -> None:
        class Counting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("calls", torch.zeros(1))

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                return x + self.calls

        net = Counting()
        with pytest.raises(ValueError, match="'calls'"):
            dk.compile(net, torch.randn(1, 3, 4, 4))
        assert net.calls.item() == 0

    def test_no_module(self) -> None:
        with pytest.raises(TypeError, match="net: expected a module, got builtin_function_or_method"):
            dk.compile(torch.relu, torch.randn(1, 3, 4, 4))  # type: ignore[arg-type]

    def test_another_dtype(self) -> None:
        with pytest.raises(ValueError, match="cannot capture Conv2d"):
            dk.compile(nn.Conv2d(3, 3, 1).double(), torch.randn(1, 3, 4, 4))

    def test_no_statistics(self) -> None:
        net = dk.slim(dk.models.resnet20(), (0.5, 1.0))
        with pytest.raises(RuntimeError, match=r"'bn1' has no statistics for sub-net 0\.5.*calibrate_bn"):
            dk.compile(net, torch.randn(1, 3, 16, 16))

    def test_two_slim_networks(self) -> None:
        parts = [dk.slim(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)), (0.5, 1.0)) for _ in range(2)]
        with pytest.raises(ValueError, match="one slim network, got 2"):
            dk.compile(nn.Sequential(*parts), torch.randn(1, 3, 4, 4))


class TestExample:
    @pytest.mark.parametrize(
        ("example", "error", "text"),
        [
            ([1.0], TypeError, "expected a tensor, got list"),
            (torch.ones(1, 3, 4, 4, dtype=torch.float64), TypeError, "torch.float32, got torch.float64"),
            (torch.ones(1, 3, 4, 4, dtype=torch.int64), TypeError, "torch.float32, got torch.int64"),
            (torch.ones(3, 4, 4), ValueError, r"got shape \(3, 4, 4\)"),
            (torch.ones(1, 3, 4, 4, device="meta"), ValueError, "on the CPU"),
            (torch.ones(1, 3, 4, 4).to_sparse(), ValueError, "dense"),
        ],
    )
    def test_refused(self, example: Any, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=f"example_input: .*{text}"):
            dk.compile(nn.ReLU(), example)

    @pytest.mark.parametrize(
        ("threads", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
    )
    def test_threads(self, threads: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="threads"):
            dk.compile(nn.ReLU(), torch.randn(1, 3, 4, 4), threads=threads)

    def test_too_small(self) -> None:
        with pytest.raises(ValueError, match=r"\('N', 3, 2, 2\)"):
            dk.compile(nn.Conv2d(3, 3, 5), torch.randn(1, 3, 2, 2))


@pytest.fixture(scope="module")
def run() -> Compiled:
    return dk.compile(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8))


class TestCall:
    @pytest.mark.parametrize(
        ("x", "error", "text"),
        [
            (None, TypeError, "expected a tensor, got NoneType"),
            (torch.ones(1, 3, 8, 8, dtype=torch.float16), TypeError, "torch.float32, got torch.float16"),
            (torch.ones(1, 4, 8, 8), ValueError, r"\(N, 3, H, W\).*got \(1, 4, 8, 8\)"),
            (torch.ones(3, 8, 8), ValueError, r"got shape \(3, 8, 8\)"),
            (torch.ones(1, 3), ValueError, r"\(N, 3, H, W\).*got \(1, 3\)"),
            (torch.ones(1, 3, 8, 8, device="meta"), ValueError, "on the CPU"),
        ],
    )
    def test_input(self, run: Compiled, x: Any, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=f"x: .*{text}"):
            run(x)

    def test_too_small_for_the_network(self, run: Compiled) -> None:
        with pytest.raises(ValueError, match=r"\('N', 3, 2, 8\)"):
            run(torch.ones(1, 3, 2, 8))

    def test_features(self) -> None:
        run = dk.compile(nn.Linear(5, 2), torch.randn(1, 5))
        with pytest.raises(ValueError, match=r"x: expected shape \(N, 5\) as in the example, got \(2, 6\)"):
            run(torch.ones(2, 6))

    def test_gradient(self, run: Compiled) -> None:
        with pytest.raises(RuntimeError, match=r"x: .*gradient.*no_grad"):
            run(torch.ones(1, 3, 8, 8, requires_grad=True))

    def test_unknown_subnet(self, run: Compiled) -> None:
        net = dk.slim(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)), (0.5, 1.0))
        x = torch.randn(1, 3, 4, 4)
        slim = dk.compile(net, x)
        for key in (0.3, "wide", [0.5]):
            text = re.escape(f"subnet: expected one of [0.5, 1.0], got {key!r}")
            for use in (lambda key=key: slim(x, subnet=key), lambda key=key: slim.select(key)):
                with pytest.raises(ValueError, match=text):
                    use()
            with pytest.raises(ValueError, match=text):
                slim.describe(key)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"subnet: expected None, since the network is plain, got 0\.5"):
            run(torch.ones(1, 3, 8, 8), subnet=0.5)


class TestChangedNetwork:
    def test_gone(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 1))
        run = dk.compile(net, torch.randn(1, 3, 4, 4))
        net[0] = nn.Identity()
        with pytest.raises(ValueError, match=r"'0\.weight' is gone.*compile it again"):
            run.refresh()

    def test_new_weights_for_a_new_size(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 1))
        run = dk.compile(net, torch.randn(1, 3, 4, 4))
        net.append(nn.Conv2d(4, 5, 1))
        with pytest.raises((RuntimeError, ValueError), match=r"1\.weight.*compile it again"):
            run(torch.randn(1, 3, 5, 5))
