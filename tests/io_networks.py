"""Networks for the tests of files, and when two of them are equal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynkern import ternary
from dynkern.subnets import SubNet, keys, select, slim
from dynkern.ternary import Growth


class Net(nn.Module):
    """A residual block with batch norms: enough for sub-nets, ternary layers and coupled channels."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = x + self.block(x)
        return self.fc(torch.flatten(self.pool(x), 1))


IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def used(net: nn.Module) -> nn.Module:
    """``net`` with batch norm statistics of its own, in eval mode."""
    net.train()
    for key in keys(net) if hasattr(net, "_dynkern") else (None,):
        if key is not None:
            select(net, key)
        net(IMAGES)
    return net.eval()


def packed() -> nn.Module:
    return ternary.pack(used(ternary.ternarize(Net(), 0.05, skip=["fc"])))


def latent() -> nn.Module:
    return used(ternary.ternarize(Net(), Growth("linear", delta0=0.05, m=0.5), skip=["stem"]))


def slimmed() -> nn.Module:
    return used(slim(Net(), (0.5, SubNet("odd", {"stem": [1, 3, 5]}), 1.0)))


def slim_and_packed() -> nn.Module:
    # 0.4 of 8 channels is 3 without the divisor.
    return ternary.pack(used(ternary.ternarize(slim(Net(), (0.4, 1.0), divisor=4), 0.05)))


def packed_then_slim() -> nn.Module:
    return used(slim(packed(), (0.5, 1.0)))


def nested() -> nn.Module:
    return nn.Sequential(slimmed(), nn.Linear(5, 2))


makers = [lambda: used(Net()), packed, latent, slimmed, slim_and_packed, packed_then_slim, nested]
names = ["plain", "packed", "latent", "slim", "slim and packed", "packed then slim", "nested"]


def outputs(net: nn.Module) -> list[Tensor]:
    """Of every sub-net, the selected one first."""
    root = net[0] if isinstance(net, nn.Sequential) else net
    with torch.no_grad():
        if not hasattr(root, "_dynkern"):
            return [net(IMAGES)]
        current = root._dynkern.current
        found = [net(IMAGES)]
        for key in keys(root):
            select(root, key)
            found.append(net(IMAGES))
        select(root, current)
    return found


def plain_like(net: nn.Module) -> nn.Module:
    return nn.Sequential(Net(), nn.Linear(5, 2)) if isinstance(net, nn.Sequential) else Net()


def assert_equal_networks(a: nn.Module, b: nn.Module) -> None:
    assert [(n, type(m)) for n, m in a.named_modules()] == [(n, type(m)) for n, m in b.named_modules()]
    states = a.state_dict(), b.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for x, y in zip(outputs(a), outputs(b), strict=True):
        assert torch.equal(x, y)
