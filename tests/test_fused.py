"""Fused training and distillation: the gradients of equation 5, and what each rule trains on."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_train import images, network
from torch import Tensor, nn

import dynkern as dk
from dynkern.data import Stream
from dynkern.subnets import GroupLasso, SubNet, nested
from dynkern.train import (
    Recipe,
    Run,
    Snapshot,
    accuracies,
    distillation_loss,
    fit,
    fused,
    multi_path,
    penalised,
    single_path,
)

WIDTHS = (0.25, 0.5, 0.75, 1.0)
X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def slim(subnets: Any = WIDTHS) -> nn.Module:
    net = network()
    net[3] = nn.Identity()  # no dropout: every run sees the same network
    return dk.slim(net.double(), subnets).train()


def gradients(net: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


def separate(net: nn.Module, keys: Any, loss: Any) -> dict[str, Tensor]:
    """The sum of what each sub-net's gradient is alone."""
    total: dict[str, Tensor] = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for key in keys:
        alone = copy.deepcopy(net)
        with dk.using(alone, key):
            loss(key, alone(X).float()).backward()
        for name, p in alone.named_parameters():
            if p.grad is not None:
                total[name] += p.grad
    return total


def assert_gradients(net: nn.Module, expected: dict[str, Tensor]) -> None:
    for name, value in gradients(net).items():
        torch.testing.assert_close(torch.zeros_like(expected[name]) if value is None else value, expected[name])


@pytest.mark.parametrize("subnets", [WIDTHS, (0.5, SubNet("odd", {"0": [4, 1], "4": [0, 7, 3]}), 1.0)])
def test_gradients_are_the_sum_of_those_of_each_sub_net(subnets: Any) -> None:
    net = slim(subnets)
    expected = separate(net, dk.subnets.keys(net), lambda key, logits: F.cross_entropy(logits, Y))
    outcome = fused()(net, X, Y)
    assert_gradients(net, expected)
    alone = copy.deepcopy(net)
    losses = []
    for key in dk.subnets.keys(net):
        with dk.using(alone, key):
            logits = alone(X).float()
        losses.append(F.cross_entropy(logits, Y).item())
    assert float(outcome.loss) == pytest.approx(sum(losses))
    assert int(outcome.correct) == int((logits.argmax(1) == Y).sum())


def test_distillation_is_its_formula() -> None:
    g = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(5, 4, generator=g, dtype=torch.float64) for _ in range(2))
    y = torch.tensor([0, 1, 2, 3, 0])
    p, q = (teacher / 3.0).softmax(1), (logits / 3.0).softmax(1)
    kl = (p * (p / q).log()).sum(1).mean()
    ce = -logits.log_softmax(1)[range(5), y].mean()
    torch.testing.assert_close(distillation_loss(logits, y, teacher, 0.3, 3.0), 0.7 * ce + 0.3 * 9 * kl)
    torch.testing.assert_close(distillation_loss(logits, y, teacher, 0.0), ce)
    torch.testing.assert_close(distillation_loss(logits, y, logits, 1.0), torch.zeros((), dtype=torch.float64))


def test_every_sub_net_learns_from_the_teacher() -> None:
    net, teacher = slim(), network(seed=1).double()
    teacher.train()  # put in eval mode by the step, and not trained
    state = copy.deepcopy(teacher.state_dict())
    expected_teacher = copy.deepcopy(teacher).eval()(X).detach().float()
    expected = separate(net, WIDTHS, lambda key, logits: distillation_loss(logits, Y, expected_teacher, 0.4, 2.0))
    fused(teacher=teacher, alpha=0.4, temperature=2.0)(net, X, Y)
    assert_gradients(net, expected)
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_in_place_distillation_learns_from_the_last_sub_net() -> None:
    net = slim()
    with dk.using(copy.deepcopy(net), 1.0):
        whole = copy.deepcopy(net)
        dk.select(whole, 1.0)
        guide = whole(X).detach().float()

    def loss(key: Any, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, Y) if key == 1.0 else distillation_loss(logits, Y, guide, 1.0, 1.0)

    expected = separate(net, WIDTHS, loss)
    fused(in_place=True, alpha=1.0, temperature=1.0)(net, X, Y)
    assert_gradients(net, expected)


def test_the_sandwich_rule_draws_the_sub_nets_between() -> None:
    widths = tuple(w / 16 for w in range(4, 17))
    net = slim(widths)
    dk.calibrate_bn(net, [X])
    seen: list[float] = []
    net.register_forward_pre_hook(lambda module, args: seen.append(dk.subnets.active(net)))
    torch.manual_seed(0)
    drawn = set()
    for _ in range(20):
        seen.clear()
        fused(sandwich=2)(net, X, Y)
        assert len(seen) == 4
        assert seen == sorted(seen, reverse=True)
        assert (seen[0], seen[-1]) == (1.0, 0.25)
        drawn.update(seen[1:-1])
    assert len(drawn) > 8
    seen.clear()
    fused(subnets=(0.25, 0.5))(net, X, Y)
    assert seen == [0.5, 0.25]


def test_private_batch_norms_and_shared_weights() -> None:
    net = slim()
    fit(net.float(), Stream(images(), batch=8), Recipe(epochs=1, precision="float32"), step=fused())
    norms = net[5]
    means = [norms.member(key).running_mean[:1] for key in WIDTHS]
    assert len({float(m) for m in means}) > 1
    assert set(accuracies(net, images())) == set(WIDTHS)
    assert net.training


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": 1.1}, "alpha"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"sandwich": -1}, "sandwich"),
        ({"subnets": ()}, "subnets"),
    ],
)
def test_bad_options(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        fused(**options)


def test_bad_networks() -> None:
    with pytest.raises(ValueError, match="expected a slim network"):
        fused()(network(), X.float(), Y)
    with pytest.raises(ValueError, match="expected one of"):
        fused(subnets=(0.3,))(slim(), X, Y)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double()
    with pytest.raises(ValueError, match=r"teacher: expected logits of \(6, 3\).*got \(6, 5\)"):
        fused(teacher=teacher)(slim(), X, Y)


def projected() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, bias=False),
        nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


EXAMPLE = torch.zeros(1, 3, 8, 8)
FAST = Recipe(epochs=4, lr=0.02, schedule="constant", precision="float32")


def whole_cost() -> float:
    return float(dk.count(projected(), EXAMPLE).macs)


def test_single_path_takes_nested_sub_nets_by_size_and_epoch(tmp_path: Any) -> None:
    data, cost = Stream(images(48), batch=8), whole_cost()
    snapshots = [Snapshot("large", size=0.7 * cost), Snapshot("early", epoch=1), Snapshot("small", size=0.2 * cost)]

    def run(**options: Any) -> Any:
        net = projected()
        return net, single_path(net, data, FAST, GroupLasso(net, 5.0), snapshots, EXAMPLE, **options)

    net, found = run()
    assert [s.name for s in found.subnets] == ["large", "early", "small"]
    assert nested(projected(), found.subnets)
    assert found.reached["early"] == 1
    assert 0 < found.reached["large"] < found.reached["small"] <= 4
    slim = dk.slim(projected(), [*found.subnets, 1.0])
    costs = dk.count(slim, EXAMPLE)
    assert costs["large"].macs <= 0.7 * cost
    assert costs["small"].macs <= 0.2 * cost
    # Once the last one is taken nothing is pruned any more, and what is out stays out.
    assert found.history[-1]["macs"] == pytest.approx(costs["small"].macs)
    # Broken off after the second epoch, it ends the same.

    class Stop(Exception):
        pass

    class Told(dk.train.Silent):
        def epoch(self, record: Any) -> None:
            if record["epoch"] == 3:
                raise Stop

    with pytest.raises(Stop):
        run(checkpoint=tmp_path / "run.pt", progress=Told())
    other, again = run(checkpoint=tmp_path / "run.pt")
    assert again.subnets == found.subnets
    assert again.reached == found.reached
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_size_that_is_not_reached_is_cut_at_the_end() -> None:
    net, cost = projected(), whole_cost()
    found = single_path(
        net, Stream(images(16), batch=8), FAST, GroupLasso(net, 0.0), [Snapshot("s", size=cost / 2)], EXAMPLE, least=0.3
    )
    assert found.reached == {"s": None}
    slim = dk.slim(projected(), [*found.subnets, 1.0])
    assert dk.count(slim, EXAMPLE)["s"].macs <= cost / 2
    assert len(found.subnets[0].channels["0"] if isinstance(found.subnets[0].channels["0"], tuple) else range(
        found.subnets[0].channels["0"])) >= 3  # fmt: skip


def test_multi_path_is_a_run_for_each_setting(tmp_path: Any) -> None:
    data, cost = Stream(images(24), batch=8), whole_cost()
    runs = [Run("a", 3.0, None, 0.5 * cost), Run("b", 6.0, 0.95)]
    found = multi_path(projected, data, FAST, runs, EXAMPLE, folder=tmp_path)
    assert [s.name for s in found.subnets] == ["a", "b"]
    assert [r["path"] for r in found.history] == ["a"] * 4 + ["b"] * 4
    for run, subnet in zip(runs, found.subnets, strict=True):
        net = projected()
        stop = Snapshot(run.name, size=run.size) if run.size else Snapshot(run.name, epoch=4)
        alone = single_path(net, data, FAST, GroupLasso(net, run.strength, run.beta), [stop], EXAMPLE)
        assert alone.subnets == [subnet]
    assert found.subnets[0].channels != found.subnets[1].channels


def test_the_penalty_in_the_loss_gives_its_gradient() -> None:
    net = projected()
    lasso = GroupLasso(net, 0.5, 0.98)
    x = X.float()
    plain = copy.deepcopy(net)
    dk.train.classify(plain, x, Y)
    lasso().backward()
    expected = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    outcome = penalised(dk.train.classify, lasso)(net, x, Y)
    for (name, p), other in zip(net.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, other.grad + expected.get(name, torch.zeros_like(p)))
    assert float(outcome.loss) > lasso().item()


def test_bad_generation() -> None:
    net, data = projected(), Stream(images(), batch=8)
    lasso = GroupLasso(net, 1.0)
    for snapshots, named in (
        ([], "at least one"),
        ([Snapshot("a", epoch=1), Snapshot("a", epoch=2)], "another name"),
        ([Snapshot("a", epoch=9)], "up to 4"),
    ):
        with pytest.raises(ValueError, match=named):
            single_path(net, data, FAST, lasso, snapshots, EXAMPLE)
    with pytest.raises(ValueError, match="kind"):
        single_path(net, data, FAST, lasso, [Snapshot("a", epoch=1)], EXAMPLE, kind="time")
    for options in ({}, {"epoch": 1, "size": 2.0}, {"epoch": 0}, {"size": 0.0}):
        with pytest.raises(ValueError, match="snapshot"):
            Snapshot("a", **options)
    with pytest.raises(ValueError, match="what no layer can lose"):
        single_path(net, data, FAST, GroupLasso(net, 0.0), [Snapshot("a", size=1.0)], EXAMPLE)


def test_wider_than_the_network() -> None:
    with pytest.raises(ValueError, match="has 8 channels, got 9"):
        dk.slim(projected(), [SubNet("wide", {"0": 9}), 1.0])
    with pytest.raises(ValueError, match="at most 1"):
        dk.slim(projected(), [1.5])


def test_emptied_layers_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    net = projected()
    with caplog.at_level(logging.WARNING, "dynkern"):
        found = single_path(
            net, Stream(images(16), batch=8), FAST, GroupLasso(net, 1e4), [Snapshot("a", epoch=4)], EXAMPLE
        )
    assert found.subnets[0].channels.keys() == {"0", "3"}
    assert sorted(r.getMessage() for r in caplog.records) == [
        f"{name}: every channel would be pruned; the strongest stays" for name in ("0", "3")
    ]
