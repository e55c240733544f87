"""Small networks that together have every way in which channels flow, and what sub-nets must equal."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynkern.nn import ChannelPad
from dynkern.nn.batchnorm import SwitchableBatchNorm
from dynkern.nn.selection import Key
from dynkern.subnets.choice import choose
from dynkern.subnets.spec import SubNet
from dynkern.subnets.walk import flow_of


class Residual(nn.Module):
    """Identity, projection and zero-padding shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(8)
        self.a = nn.Conv2d(8, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 8, 1, bias=False)
        self.b_bn = nn.BatchNorm2d(8)
        self.c = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12))
        self.d = nn.Conv2d(12, 20, 3, padding="same", dilation=2)
        self.pad = ChannelPad(12, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(x)))
        x = F.relu(self.b_bn(self.b(torch.relu(self.a(x)))) + x)
        y = self.c(x)
        y += self.shortcut(x)
        x = F.relu(y)
        x = (self.d(x) + self.pad(x)).relu()
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Dense(nn.Module):
    """Concatenation before batch norm, convolution and, with its pixels, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 3, padding=1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(14), nn.Conv2d(14, 10, 1, bias=False)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear((10 + 14) * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for bn, conv in ((self.bn1, self.conv1), (self.bn2, self.conv2)):
            features.append(conv(F.relu(bn(torch.cat(features, 1)))))
        x = F.relu(self.bn3(torch.cat(features, dim=1)))
        x = self.pool(torch.cat((self.conv3(x), x), -3))
        return self.head(x.view(x.size(0), -1))


class Mobile(nn.Module):
    """Inverted residuals with depthwise convolutions, one of them over a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.block = nn.Sequential(
            nn.Conv2d(8, 16, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(inplace=True),
            nn.Conv2d(16, 16, 3, padding=1, groups=16, padding_mode="reflect"),
            nn.BatchNorm2d(16),
            nn.ReLU6(inplace=True),
            nn.Conv2d(16, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.joined = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.joined(torch.cat([x, x + self.block(x)], 1))
        return self.head(x.mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Gates on channels, written in the two usual ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.gate = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.Sigmoid())
        self.conv2 = nn.Conv2d(8, 12, 3)
        self.down, self.up = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 12, 1)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        b, c, _, _ = x.size()
        gate = self.gate(self.pool(x).view(b, c)).view(b, c, 1, 1)
        x = F.relu(self.conv2(x * gate.expand_as(x))) * self.scale
        return self.head(x * torch.sigmoid(self.up(F.relu(self.down(x.mean([2, 3], keepdim=True))))))


class Mlp(nn.Module):
    """Linear layers, batch norm of vectors, a residual and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(7, 10)
        self.bn = nn.BatchNorm1d(10)
        self.hidden = nn.Linear(10, 10, bias=False)
        self.bn2 = nn.BatchNorm1d(20)
        self.out = nn.Linear(20, 4)
        self.last = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.inp(x.flatten(1))))
        y = x + F.relu(self.hidden(x))
        return self.last(self.out(F.relu(self.bn2(torch.cat([y, x], dim=1)))))


class Encoder(nn.Module):
    """Down and up again, with the image itself joined in; cut and padded on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.middle = nn.Sequential(nn.Conv2d(6, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU())
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.joint = nn.Conv2d(6 + 10 + 2, 8, 3)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        small = self.down(x)
        large = F.interpolate(self.up(self.middle(small)), size=x.shape[2:])
        small = F.interpolate(small, size=x.shape[-2:])
        joined = torch.cat([x, small, large], dim=1)
        joined = F.pad(joined[:, :, 1:, ::1], (0, 0, 1, 0))
        return self.out(F.relu(self.joint(joined)))


class Tied(nn.Module):
    """One convolution used twice, and two that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.other = nn.Conv2d(8, 8, 3, padding=1)
        self.other.weight = self.twice.weight
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(F.relu(self.twice(F.relu(self.stem(x)))))
        return self.head(self.other(F.relu(x)).amax(dim=(-2, -1)))


SAMPLES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (3, 3, 9, 8)),
    "dense": (Dense, (3, 2, 5, 4)),
    "mobile": (Mobile, (3, 3, 7, 6)),
    "se": (SqueezeExcite, (3, 3, 6, 5)),
    "mlp": (Mlp, (6, 7)),
    "encoder": (Encoder, (2, 2, 8, 8)),
    "tied": (Tied, (2, 2, 5, 5)),
}

NON_UNIFORM: dict[str, SubNet] = {
    "residual": SubNet("odd", {"stem": [1, 6, 2], "b": [1, 6, 2], "a": 2, "c": [11, 0, 5, 7], "d": [2, 3, 9, 19, 4]}),
    "dense": SubNet("odd", {"stem": [5, 2], "conv1": [3], "conv3": [0, 9, 4]}),
    "mobile": SubNet("odd", {"stem.0": [7, 1], "block.0": [3, 9, 15, 2]}),
    "se": SubNet("odd", {"conv": [1, 2, 5], "gate.0": [3], "up": [11, 3], "down": 2}),
    "mlp": SubNet("odd", {"inp": [9, 0, 4]}),
    "encoder": SubNet("odd", {"down.0": [1, 5], "middle.0": [0, 9, 3], "joint": [7]}),
    "tied": SubNet("odd", {"stem": [6, 1, 3]}),
}


def sample(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network with random parameters, and an argument for it."""
    torch.manual_seed(seed)
    build, shape = SAMPLES[name]
    return randomized(build()).to(dtype), torch.randn(shape, dtype=dtype)


def randomized(model: nn.Module) -> nn.Module:
    """``model`` with batch norms that do something."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def tolerance(model: nn.Module, y: Tensor) -> float:
    """Bound of the difference of two ways to compute ``y``: every sum of k terms may be off by k eps."""
    terms = sum(m.weight[0].numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    return torch.finfo(y.dtype).eps * (terms + 10) * max(1.0, float(y.detach().abs().max()))


def assert_same(y: Tensor, expected: Tensor, model: nn.Module) -> None:
    """``y`` is ``expected`` up to rounding."""
    torch.testing.assert_close(y, expected, rtol=0, atol=tolerance(model, expected))


def masked(plain: nn.Module, net: nn.Module, key: Key, spec: float | SubNet, divisor: int = 1) -> nn.Module:
    """The whole network ``plain`` with zeros for all that sub-net ``key`` does not run (W . M of equation 5).

    Without paddings of channels, and with activations that keep zero, it computes what the sub-net does.
    """
    flow = flow_of(plain)
    active = choose(flow, spec, divisor)
    full = copy.deepcopy(plain)
    with torch.no_grad():
        for name, ports in flow.layers.items():
            layer = full.get_submodule(name)
            kept = active.entries(ports.outputs)
            off = torch.ones(len(layer.weight), dtype=torch.bool)
            off[torch.arange(kept) if isinstance(kept, int) else list(kept)] = False
            layer.weight = nn.Parameter(layer.weight.masked_fill(off.view(-1, *[1] * (layer.weight.dim() - 1)), 0))
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias.masked_fill(off, 0))
        for name, ports in flow.norms.items():
            switchable, bn = net.get_submodule(name), full.get_submodule(name)
            assert isinstance(switchable, SwitchableBatchNorm)
            kept = active.entries(ports.inputs)
            index = torch.arange(kept) if isinstance(kept, int) else torch.tensor(kept)
            for part, neutral in (("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
                getattr(bn, part).fill_(neutral)[index] = getattr(switchable.member(key), part)
    return full
