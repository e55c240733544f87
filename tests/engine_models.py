"""Networks and single operators for the tests of the engine."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from slim_models import randomized
from torch import Tensor, nn

import dynkern as dk
from dynkern.engine.plan import Value
from dynkern.nn import PackedTernaryConv2d, PackedTernaryLinear
from dynkern.nn.selection import Key

WIDTHS = (0.25, 0.5, 0.75, 1.0)


class Function(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class InvertedResidual(nn.Module):
    """As in MobileNetV2 and V3: expand, depthwise, gate, project, add."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle), activation())
        self.depthwise = nn.Sequential(
            nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False), nn.BatchNorm2d(middle), activation()
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Conv2d(middle, 4, 1), nn.ReLU(), nn.Conv2d(4, middle, 1), nn.Hardsigmoid())
        self.project = nn.Sequential(nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = self.project(y * self.gate(self.pool(y)))
        return x + y if self.adds else y


class MobileNet(nn.Module):
    """A small network of the MobileNet family."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True))
        self.blocks = nn.Sequential(
            InvertedResidual(8, 24, 8, 1, nn.ReLU6),
            InvertedResidual(8, 24, 12, 2, nn.Hardswish),
            InvertedResidual(12, 36, 12, 1, nn.SiLU),
        )
        self.last = nn.Sequential(nn.Conv2d(12, 40, 1, bias=False), nn.BatchNorm2d(40), nn.Hardswish(inplace=True))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(40, 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean([2, 3]))


class DenseNet(nn.Module):
    """Concatenations, in a row and after pooling, with batch norm before convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(8 + 4 * i),
                nn.ReLU(inplace=True),
                nn.Conv2d(8 + 4 * i, 8, 1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(inplace=True),
                nn.Conv2d(8, 4, 3, padding=1, bias=False),
            )
            for i in range(3)
        )
        self.transition = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(inplace=True), nn.Conv2d(20, 10, 1, bias=False))
        self.average = nn.AvgPool2d(2)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.pool(self.stem(x))]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        x = F.relu(self.average(self.transition(torch.cat(features, 1))), inplace=True)
        return self.head(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


def settled(net: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """``net`` in eval mode, with the batch norm statistics of random inputs, so that activations keep their size."""
    net = randomized(net).train()
    norms = [m for m in net.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for bn in norms:
        bn.reset_running_stats()
        bn.momentum = None
    with torch.no_grad():
        net(torch.randn(16, *shape))
    return net.eval()


def slim_net(net: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """``net`` with the sub-nets :data:`WIDTHS`, and statistics for each."""
    net = dk.slim(settled(net, shape), WIDTHS)
    dk.calibrate_bn(net, [torch.randn(16, *shape)])
    return net.eval()


def exact(net: nn.Module, x: Tensor) -> Tensor:
    """What ``net`` computes, in float64."""
    with torch.no_grad():
        return copy.deepcopy(net).double()(x.double())


def subnet_exact(net: nn.Module, x: Tensor, key: Key | None) -> Tensor:
    """What sub-net ``key`` of ``net`` computes, in float64."""
    if key is None:
        return exact(net, x)
    double = copy.deepcopy(net).double()
    with torch.no_grad(), dk.using(double, key):
        return double(x.double())


def assert_close(y: Tensor, expected: Tensor, net: nn.Module) -> None:
    """``y`` is the float64 result up to rounding, where every sum of k terms may be off by k eps.

    A float32 result is also within the 1e-4 that the engine promises.
    """
    layers = (nn.Conv2d, nn.Linear, PackedTernaryConv2d, PackedTernaryLinear)
    terms = sum(math.prod(m.weight.shape[1:]) for m in net.modules() if isinstance(m, layers))
    bound = torch.finfo(y.dtype).eps * (terms + 10)
    if y.dtype == torch.float32:
        bound = min(bound, 1e-4)
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=bound * size)


def image(plan_value: Value) -> tuple[int, int, int]:
    """The shape of a value."""
    return plan_value.channels, plan_value.height, plan_value.width


def _parted(x: Tensor) -> Tensor:
    a, b, c = x.chunk(3, dim=1)
    d, e = x[:, :2].split([1, 1], 1)
    return torch.cat([c, a + b, e, d], 1)


_PER_CHANNEL = torch.linspace(-1, 1, 6).view(6, 1, 1)

# Functions of one tensor (N, 6, 8, 10), and of what steps their plan is.
OPERATORS: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "relu": (F.relu, ["Pointwise"]),
    "relu inplace": (lambda x: F.relu(x + 1, inplace=True), ["Pointwise"]),
    "relu6": (F.relu6, ["Pointwise"]),
    "hardtanh": (F.hardtanh, ["Pointwise"]),
    "hardtanh bounds": (lambda x: F.hardtanh(x, -0.5, 0.25), ["Pointwise"]),
    "clamp": (lambda x: x.clamp(-0.3, 0.6), ["Pointwise"]),
    "clamp min": (lambda x: x.clamp(min=-0.1), ["Pointwise"]),
    "clamp max": (lambda x: torch.clamp_max(x, 0.1), ["Pointwise"]),
    "clamp crossed": (lambda x: x.clamp(0.5, -0.5), ["Pointwise"]),
    "clamp twice": (lambda x: F.relu(x.clamp(-0.3, 0.6)).clamp(0.1, 2), ["Pointwise"]),
    "gelu": (F.gelu, ["Pointwise"]),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), ["Pointwise"]),
    "silu": (F.silu, ["Pointwise"]),
    "hardswish": (F.hardswish, ["Pointwise"]),
    "hardsigmoid": (F.hardsigmoid, ["Pointwise"]),
    "sigmoid": (torch.sigmoid, ["Pointwise"]),
    "tanh": (torch.tanh, ["Pointwise"]),
    "add": (lambda x: x.sigmoid() + x, ["Pointwise", "Pointwise"]),
    "add alpha": (lambda x: torch.add(x, x.sigmoid(), alpha=0.5), ["Pointwise", "Pointwise"]),
    "add itself": (lambda x: x + x, ["Pointwise"]),
    "add number": (lambda x: 3 + x, ["Pointwise"]),
    "add channels": (lambda x: x + _PER_CHANNEL.to(x.dtype), ["Pointwise"]),
    "sub": (lambda x: x - x.tanh(), ["Pointwise", "Pointwise"]),
    "sub number": (lambda x: x - 0.5, ["Pointwise"]),
    "rsub": (lambda x: 1 - x, ["Pointwise"]),
    "neg": (lambda x: -x, ["Pointwise"]),
    "mul": (lambda x: x * x.tanh(), ["Pointwise", "Multiply"]),
    "mul number": (lambda x: 2 * x, ["Pointwise"]),
    "mul channels": (lambda x: x * _PER_CHANNEL.to(x.dtype), ["Pointwise"]),
    "div": (lambda x: x / 3, ["Pointwise"]),
    "div channels": (lambda x: x / (2 + _PER_CHANNEL.to(x.dtype)), ["Pointwise"]),
    "affine": (lambda x: F.relu(2 * (x - 1) / 3 + 0.5), ["Pointwise"]),
    "gate": (lambda x: x.mean((2, 3), keepdim=True).sigmoid() * x, ["AdaptiveAverage", "Pointwise", "Multiply"]),
    "gate expanded": (
        lambda x: x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1).expand_as(x)),
        ["AdaptiveAverage", "Pointwise", "Multiply"],
    ),
    "gate viewed": (
        lambda x: x * x.mean((2, 3)).view(x.size(0), x.size(1), 1, 1),
        ["AdaptiveAverage", "Multiply"],
    ),
    "dropout": (lambda x: F.dropout2d(F.dropout(x, 0.5, training=False), training=False) + 1, ["Pointwise"]),
    "nothing": (lambda x: x.contiguous().clone().detach(), ["Pointwise"]),
    "max pool": (lambda x: F.max_pool2d(x, 2), ["Pool2d"]),
    "max pool overlapping": (lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0)), ["Pool2d"]),
    "max pool rounded up": (lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), ["Pool2d"]),
    "max pool rounded up, padded": (lambda x: F.max_pool2d(x, 3, 3, 1, ceil_mode=True), ["Pool2d"]),
    "avg pool": (lambda x: F.avg_pool2d(x, 2), ["Pool2d"]),
    "avg pool padded": (lambda x: F.avg_pool2d(x, 3, 2, 1), ["Pool2d"]),
    "avg pool uncounted": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), ["Pool2d"]),
    "avg pool whole": (lambda x: F.avg_pool2d(x, (8, 10)), ["AdaptiveAverage"]),
    "avg pool of one pixel": (lambda x: F.avg_pool2d(x, 1, 2), ["Crop"]),
    "adaptive pool": (lambda x: F.adaptive_avg_pool2d(x, (3, 4)), ["AdaptiveAverage"]),
    "adaptive pool larger": (lambda x: F.adaptive_avg_pool2d(x, (9, 13)), ["AdaptiveAverage"]),
    "adaptive pool to the same size": (lambda x: F.adaptive_avg_pool2d(x, (8, 10)) + 1, ["Pointwise"]),
    "mean": (lambda x: x.mean((-1, -2)), ["AdaptiveAverage"]),
    "mean keepdim": (lambda x: x.mean([2, 3], keepdim=True), ["AdaptiveAverage"]),
    "mean of flattened": (lambda x: x.flatten(2).mean(2), ["AdaptiveAverage"]),
    "amax": (lambda x: x.amax((2, 3)), ["Pool2d"]),
    "cat": (lambda x: torch.cat([x, x.relu(), x], 1), ["Pointwise", "Concat"]),
    "cat of cat": (lambda x: torch.cat([torch.cat([x, x.relu()], 1), x], 1), ["Pointwise", "Concat"]),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 3)), ["Crop"]),
    "pad channels": (lambda x: F.pad(x, (0, 0, 0, 0, 2, 1)), ["Crop"]),
    "pad negative": (lambda x: F.pad(x, (-1, 2, 3, -2)), ["Crop"]),
    "slice": (lambda x: x[:, 1:5, ::2, 1:-1:3], ["Crop"]),
    "slice and pad": (lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3)), ["Crop"]),
    "pad and slice": (lambda x: F.pad(x, (2, 2, 2, 2))[:, :, 1::3, 1::3], ["Crop"]),
    "narrow": (lambda x: x.narrow(1, 2, 3), ["Crop"]),
    "parts": (_parted, ["Crop"] * 5 + ["Pointwise", "Concat"]),
    "flatten": (lambda x: x.flatten(1), ["Flatten"]),
    "view": (lambda x: x.view(x.size(0), -1), ["Flatten"]),
    "squeeze": (lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1), ["AdaptiveAverage"]),
    "unsqueeze": (lambda x: x.mean((2, 3)).unsqueeze(2)[..., None], ["AdaptiveAverage"]),
    "softmax": (lambda x: x.mean((2, 3)).softmax(1), ["AdaptiveAverage", "Softmax"]),
    "log softmax": (lambda x: F.log_softmax(x.mean((2, 3)), dim=-1), ["AdaptiveAverage", "Softmax"]),
}
SHAPE = (6, 8, 10)
