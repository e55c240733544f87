"""The many ways to write what happens between two layers, each against the masked whole network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from slim_models import assert_same, masked
from torch import Tensor, nn

from dynkern import subnets as dk


class Net(nn.Module):
    """Layers on 6x6 images, put together by ``middle``."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.one = nn.Conv2d(8, 1, 1)
        self.line = nn.Conv2d(8, 3, 1)
        self.vector, self.vectors = nn.Linear(8, 3), nn.Linear(16, 3)
        self.pixels, self.both = nn.Linear(8 * 36, 3), nn.Linear(8 * 36 + 8, 3)
        self.gate, self.joint = nn.Linear(8, 8), nn.Conv2d(16, 3, 1)
        self.with_input = nn.Conv2d(11, 3, 1)
        self.fourth = nn.Linear(8 * 9, 3)
        self.gate_joint = nn.Conv2d(16, 16, 1)
        self.norm = nn.BatchNorm1d(16)
        self.deep = nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.bias = nn.Parameter(torch.randn(1, 1, 6, 6))
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(self, x)


def _pair(m: Any, x: Tensor) -> Tensor:
    return torch.cat([F.relu(m.a(x)), F.relu(m.c(x))], 1)


def _unpacked(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.a(x))
    n, c, h, w = x.shape
    gate = torch.sigmoid(m.gate(x.mean(3).mean(2)))
    return m.line((x * gate.reshape(n, c, 1, 1)).view(n, c, h * w).view(n, c, h, w))


def _first_size(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.a(x))
    return m.vector(F.avg_pool2d(y, y.size()[3]).view(y.size(0), -1))


def _in_place(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.a(x))
    y += m.b(y)
    return m.line(y.mul_(0.5).clamp_(0, 3))


def _gate_on_cat(m: Any, x: Tensor) -> Tensor:
    y = _pair(m, x)
    return m.joint(torch.sigmoid(m.gate_joint(y.mean((2, 3), keepdim=True))) * y)


ACCEPTED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "flatten method": lambda m, x: m.pixels(m.a(x).flatten(1)),
    "flatten named": lambda m, x: m.pixels(torch.flatten(m.a(x), start_dim=1, end_dim=-1)),
    "flatten twice": lambda m, x: m.pixels(m.a(x).flatten(1).flatten(1)),
    "flatten last axes": lambda m, x: m.vector(m.a(x).flatten(2).sum(-1)),
    "flatten known sizes": lambda m, x: m.both(
        torch.cat([F.relu(m.a(x)).flatten(1), F.adaptive_avg_pool2d(F.relu(m.c(x)), 1).flatten(1)], 1)
    ),
    "flatten 3x3": lambda m, x: m.fourth(F.adaptive_max_pool2d(F.relu(m.a(x)), (3, 3)).flatten(1)),
    "flatten a concatenation": lambda m, x: m.vectors(F.avg_pool2d(_pair(m, x), 6).flatten(1)),
    "view first -1": lambda m, x: m.vector(m.a(x).mean((2, 3)).view(-1, m.a(x).size(1))),
    "view tuple": lambda m, x: m.pixels(m.a(x).reshape((x.size(0), -1))),
    "view shape": lambda m, x: m.pixels(m.a(x).view(x.shape[0], -1)),
    "view function": lambda m, x: m.pixels(torch.reshape(m.a(x), (x.shape[0], -1))),
    "view back": lambda m, x: m.line(m.a(x).mean((2, 3)).view(x.size(0), -1, 1, 1)),
    "unpacked shape": _unpacked,
    "size of the picture": _first_size,
    "in place": _in_place,
    "mean dims": lambda m, x: m.vector(m.a(x).mean(dim=[-2, -1])),
    "mean kept": lambda m, x: m.line(torch.mean(m.a(x), (2, 3), True)),
    "mean one by one": lambda m, x: m.vector(m.a(x).sum(dim=2).amax(-1)),
    "squeeze": lambda m, x: m.vector(F.adaptive_avg_pool2d(m.a(x), 1).squeeze(-1).squeeze(2)),
    "squeeze all": lambda m, x: m.vector(F.adaptive_avg_pool2d(m.a(x), 1).squeeze()),
    "squeeze several": lambda m, x: m.vector(torch.squeeze(m.a(x).mean((2, 3), keepdim=True), (2, 3))),
    "unsqueeze": lambda m, x: m.line(m.a(x).mean((2, 3)).unsqueeze(-1).unsqueeze(3)),
    "index": lambda m, x: m.vector(m.a(x)[:, :, 0, -1]),
    "index slices": lambda m, x: m.line(m.a(x)[..., 1::2, :3]),
    "index new axes": lambda m, x: m.line(m.a(x).mean((2, 3))[:, :, None, None]),
    "index batch": lambda m, x: m.line(m.a(x)[:1]),
    "one channel broadcasts": lambda m, x: m.line(F.relu(m.a(x)) * torch.sigmoid(m.one(F.relu(m.c(x))))),
    "mean over channels": lambda m, x: m.line(F.relu(m.a(x)) * F.relu(m.c(x)).sum(1, keepdim=True)),
    "picture of one's own": lambda m, x: m.line(F.relu(m.a(x)) * m.bias),
    "number": lambda m, x: m.line(2 * F.relu(m.a(x)) / x.size(2) ** 0.5),
    "cat along height": lambda m, x: m.line(torch.cat([m.a(x), m.c(x)], dim=2)),
    "cat with itself": lambda m, x: m.joint((lambda y: torch.cat((y, y), 1))(F.relu(m.a(x)))),
    "cat with the input": lambda m, x: m.with_input(torch.cat([F.relu(m.a(x)), x], 1)),
    "cat added to cat": lambda m, x: m.joint(_pair(m, x) + torch.cat([m.c(x), m.a(x)], 1).relu()),
    "gate on cat": lambda m, x: m.joint(
        torch.sigmoid(m.gate_joint(_pair(m, x).mean((2, 3), keepdim=True))) * _pair(m, x)
    ),
    "norm of pooled cat": lambda m, x: m.vectors(m.norm(F.adaptive_avg_pool2d(_pair(m, x), 1).flatten(1))),
    "pools": lambda m, x: m.line(F.max_pool2d(F.avg_pool2d(F.relu(m.a(x)), 2), 2, ceil_mode=True)),
    "pool 1d": lambda m, x: m.vector(m.deep(F.relu(m.a(x)))),
    "interpolate": lambda m, x: m.line(F.interpolate(F.relu(m.a(x)), scale_factor=2.0)),
    "pad": lambda m, x: m.line(F.pad(F.relu(m.a(x)), (1, 2, 0, 1))),
    "dtype": lambda m, x: m.line(F.relu(m.a(x)).float().to(x.dtype).type_as(x)),
    "softmax of pictures": lambda m, x: m.vector(
        (F.relu(m.a(x)).flatten(2).softmax(-1)).amax(-1) * m.a(x).mean((2, 3))
    ),
    "stop": lambda m, x: m.line(F.relu(m.a(x)).detach().contiguous() + F.dropout(F.relu(m.c(x)), 0.5, m.training)),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_sub_net_equals_masked_network(case: str) -> None:
    torch.manual_seed(0)
    plain = Net(ACCEPTED[case]).double().eval()
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    plain(x)
    odd = dk.SubNet("odd", {"a": [6, 2, 5]})
    specs: dict[Any, Any] = {0.3: 0.3, 0.5: 0.5, "odd": odd, 1.0: 1.0}
    net = dk.slim(copy.deepcopy(plain), specs.values())
    dk.calibrate_bn(net, [x])
    assert net.a.slices[0.5].outputs == 4
    for key, spec in specs.items():
        dk.select(net, key)
        y = net(x)
        assert_same(y, masked(plain, net, key, spec)(x), plain)
        assert_same(y, dk.extract(net, key)(x), plain)


def test_coupled_layers_have_the_same_channels_and_others_do_not() -> None:
    net = dk.slim(Net(lambda m, x: m.line(m.a(x) + m.c(x) * m.b(m.a(x)))), (dk.SubNet("odd", {"c": [7, 1]}),))
    for name in ("a", "b", "c"):
        index = net.get_submodule(name).slices["odd"].out_index
        assert index is not None
        assert index.tolist() == [7, 1]


def test_channels_added_to_the_input_are_not_sliced() -> None:
    net = dk.slim(Net(lambda m, x: m.line(F.relu(m.a(x + m.line(m.b(m.a(x))))))), (0.5,))
    assert net.line.slices[0.5].outputs == 3
    assert net.a.slices[0.5].outputs == 4
