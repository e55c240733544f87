"""Batch norm statistics of sub-nets that were not trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from slim_models import assert_same, sample
from torch import Tensor, nn

from dynkern import subnets as dk


def statistics(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items() if "running" in k or "tracked" in k}


def test_statistics_are_the_average_over_the_batches() -> None:
    model, x = sample("mobile")
    net: Any = dk.slim(model, (0.5, 1.0)).eval()
    loader = [x, 3 * x + 1, x.flip(0) - 2]
    dk.calibrate_bn(net, loader)
    plain = dk.extract(net, 0.5).train()
    for bn in (m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)):
        bn.reset_running_stats()
        bn.momentum = None
    for batch in loader:
        plain(batch)
    dk.select(net, 0.5)
    assert_same(net(x), plain.eval()(x), plain)
    mean = torch.stack([net.stem[0](b).mean((0, 2, 3)) for b in loader]).mean(0)
    assert_same(net.stem[1].member(0.5).running_mean, mean, net)
    assert net.stem[1].member(0.5).num_batches_tracked == 3


def test_everything_else_stays_what_it_was() -> None:
    model, x = sample("residual")
    model.drop = nn.Dropout(0.5)
    net: Any = dk.slim(model, (0.25, 0.5, 1.0))
    net.train()
    net.b_bn.eval()
    flags = {n: m.training for n, m in net.named_modules()}
    parameters = {n: p.clone() for n, p in net.named_parameters()}
    before = statistics(net)
    dk.select(net, 0.25)
    dk.calibrate_bn(net, [(x, torch.zeros(3))], subnets=[0.5])
    assert dk.active(net) == 0.25
    assert {n: m.training for n, m in net.named_modules()} == flags
    assert all(torch.equal(p, parameters[n]) for n, p in net.named_parameters())
    assert all(p.grad is None for p in net.parameters())
    assert net.b_bn.member(0.5).momentum == 0.1
    for name, value in statistics(net).items():
        assert torch.equal(value, before[name]) == (".bn.1." not in name)
    net.eval()
    dk.select(net, 0.5)
    net(x)
    dk.select(net, 0.25)
    with pytest.raises(RuntimeError, match="calibrate_bn"):
        net(x)


def test_the_whole_network_keeps_the_statistics_it_came_with_unless_asked() -> None:
    model, x = sample("residual")
    net = dk.slim(model, (0.5, 1.0)).eval()
    y = net(x)
    dk.calibrate_bn(net, [x])
    assert torch.equal(net(x), y)
    dk.calibrate_bn(net, [x], subnets=[1.0])
    assert not torch.equal(net(x), y)


def test_loader_is_read_once_and_no_further_than_asked() -> None:
    model, x = sample("mlp")
    net = dk.slim(model, (0.25, 0.5)).eval()
    read = []

    def loader() -> Iterator[list[Tensor]]:
        for i in range(5):
            read.append(i)
            yield [x + i]

    dk.calibrate_bn(net, loader(), batches=2)
    assert read == [0, 1]
    assert net.bn.member(0.25).num_batches_tracked == 2
    assert net.bn.member(0.5).num_batches_tracked == 2


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (([],), ValueError, "loader: expected at least one batch, got none"),
        ((iter(()),), ValueError, "loader: expected at least one batch"),
        ((["x"],), TypeError, "loader: expected tensors, .* got str"),
        (([()],), TypeError, "loader: expected tensors, .* got tuple"),
        (([{"x": 1}],), TypeError, "loader: expected tensors, .* got dict"),
        ((None, [0.3]), ValueError, "subnet: expected one of"),
        ((None, []), ValueError, "subnets: expected at least one"),
        ((None, None, 0), ValueError, "batches: expected an integer of at least 1, got 0"),
        ((None, None, 1.5), ValueError, "batches"),
        ((None, None, True), ValueError, "batches"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], error: type[Exception], says: str) -> None:
    model, x = sample("residual")
    net = dk.slim(model, (0.5, 1.0))
    before = statistics(net)
    loader, *rest = arguments
    with pytest.raises(error, match=says):
        dk.calibrate_bn(net, [x] if loader is None else loader, *rest)
    assert all(torch.equal(v, before[k]) for k, v in statistics(net).items())


def test_an_error_on_the_way_gives_the_statistics_back() -> None:
    model, x = sample("residual")
    net = dk.slim(model, (0.5, 1.0)).train()
    dk.calibrate_bn(net, [x])
    before = statistics(net)
    with pytest.raises(ValueError, match="x: expected 3 channels"):
        dk.calibrate_bn(net, [x + 1, x[:, :2]])
    assert all(torch.equal(v, before[k]) for k, v in statistics(net).items())
    assert all(m.training for m in net.modules())
    assert net.stem_bn.member(0.5).momentum == 0.1


def test_batch_norms_without_statistics_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 2))
    net = dk.slim(model, (0.5,)).eval()
    dk.calibrate_bn(net, [torch.randn(4, 3)])
    assert net(torch.randn(4, 3)).shape == (4, 2)


def test_batch_norms_that_do_not_run_keep_what_they_have() -> None:
    class Aux(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn, self.b = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.bn(self.a(x)) if self.training else self.a(x))

    net: Any = dk.slim(Aux(), (0.5,)).train()
    net(torch.randn(4, 3))
    mean = net.bn.member(0.5).running_mean.clone()
    dk.calibrate_bn(net, [torch.randn(4, 3)])
    assert torch.equal(net.bn.member(0.5).running_mean, mean)
