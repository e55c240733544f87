"""Group lasso, pruning and reordering: against their definitions, on networks with every way channels flow."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from slim_models import NON_UNIFORM, SAMPLES, assert_same, masked, sample
from torch import nn

import dynkern as dk
from dynkern.subnets import (
    GroupLasso,
    Pruning,
    SubNet,
    nested,
    read_subnets,
    reorder,
    structure,
    uniform,
    write_subnets,
)
from dynkern.subnets.coupled import coupled


def chain() -> nn.Module:
    """Two layers that are added, and one that is not."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 3, padding=1)
            self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.c = nn.Conv2d(4, 6, 1)
            self.bn = nn.BatchNorm2d(6)
            self.head = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x).relu()
            x = (self.b(x) + x).relu()
            return self.head(self.bn(self.c(x)).relu().mean((2, 3)))

    return Net()


X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def test_coupled_layers_are_one_group() -> None:
    groups = {g.name: g for g in coupled(chain())}
    assert set(groups) == {"a", "c"}
    assert groups["a"].layers == ("a", "b")
    net = chain()
    expected = torch.stack([torch.cat([net.a.weight[i].flatten(), net.b.weight[i].flatten()]).norm() for i in range(4)])
    torch.testing.assert_close({g.name: g for g in coupled(net)}["a"].norms(), expected)


@pytest.mark.parametrize("scale", [None, "sqrt"])
def test_the_penalty_is_that_of_equation_2(scale: str | None) -> None:
    """Value and gradient, written out for each group; nothing for the groups above tau."""
    net = chain().double()
    lasso = GroupLasso(net, 0.3, 0.98, scale=scale)
    value = lasso()
    value.backward()
    total = torch.zeros((), dtype=torch.float64)
    for layers in (("a", "b"), ("c",)):
        weights = [net.get_submodule(name).weight for name in layers]
        with torch.no_grad():
            norms = torch.stack([sum(w[i].square().sum() for w in weights).sqrt() for i in range(len(weights[0]))])
            factor = (sum(w[0].numel() for w in weights)) ** 0.5 if scale else 1.0
            tau = 0.98 * norms.mean()
            assert (norms > tau).any()
            assert (norms < tau).any()
            total += factor * norms.clamp(max=float(tau)).sum()
            for w in weights:
                for i, norm in enumerate(norms):
                    expected = 0.3 * factor * w[i] / norm if norm < tau else torch.zeros_like(w[i])
                    torch.testing.assert_close(w.grad[i], expected)
    torch.testing.assert_close(value.detach(), 0.3 * total)
    assert net.head.weight.grad is None


def test_without_beta_it_is_the_group_lasso() -> None:
    net = chain().double()
    GroupLasso(net, 2.0)().backward()
    torch.testing.assert_close(net.c.weight.grad[1], 2 * net.c.weight.detach()[1] / net.c.weight.detach()[1].norm())
    # Also where a channel is zero already: no NaN.
    net.zero_grad()
    with torch.no_grad():
        net.c.weight[1] = 0
    GroupLasso(net, 2.0)().backward()
    assert bool((net.c.weight.grad[1] == 0).all())


def test_shrinking_is_the_proximal_step() -> None:
    net = chain().double()
    before = copy.deepcopy(net)
    lasso = GroupLasso(net, 2.0, 0.95)
    lasso.shrink_(0.1)
    norms = before.c.weight.flatten(1).norm(dim=1)
    tau = 0.95 * norms.mean()
    for i, norm in enumerate(norms):
        factor = max(0.0, 1 - 0.2 / norm.item()) if norm < tau else 1.0
        torch.testing.assert_close(net.c.weight[i], before.c.weight[i] * factor)
    lasso.strength = 1e6
    lasso.shrink_(1.0)
    assert bool((net.c.weight[norms < tau] == 0).all())
    assert bool((net.c.weight[norms > 1.2 * tau] != 0).all())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"strength": -1.0}, "lambda of 0 or more"),
        ({"strength": float("nan")}, "lambda of 0 or more"),
        ({"strength": 1.0, "beta": 0.0}, "beta"),
        ({"strength": 1.0, "beta": 1.0}, "beta"),
        ({"strength": 1.0, "beta": -0.5}, "beta"),
        ({"strength": 1.0, "scale": "log"}, "scale"),
        ({"strength": 1.0, "keep": ["zebra"]}, "keep"),
        ({"strength": 1.0, "keep": ["b", "c"]}, "may be pruned"),
    ],
)
def test_bad_penalties(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        GroupLasso(chain(), **arguments)


def test_a_pruned_network_computes_what_the_sub_net_does() -> None:
    net = chain().eval()
    net.bn.running_mean.normal_()
    lasso = GroupLasso(net, 1.0)
    pruning = Pruning(net, lasso, X[:1], threshold=0.1)
    with torch.no_grad():
        net.a.weight[2] *= 1e-3
        net.b.weight[2] *= 1e-3
        net.c.weight[[0, 4]] *= 1e-4
    assert pruning.prune_()
    assert not pruning.prune_()
    found = pruning.subnet("small")
    assert found == SubNet("small", {"a": [0, 1, 3], "c": [1, 2, 3, 5]})
    slim = dk.slim(copy.deepcopy(net), [found, 1.0]).eval()
    small = dk.extract(slim, "small")
    # Statistics of its own are not filled yet; those of the whole network are right for the channels that are left.
    kept = torch.tensor([1, 2, 3, 5])
    small.bn.running_mean.copy_(net.bn.running_mean[kept])
    small.bn.running_var.copy_(net.bn.running_var[kept])
    small.bn.num_batches_tracked.fill_(1)
    torch.testing.assert_close(small(X), net(X))
    counts = dk.count(small, X[:1])
    assert pruning.cost("macs") == pytest.approx(counts.macs)
    # What is out stays out, whatever an optimiser does.
    with torch.no_grad():
        net.c.weight.add_(1)
    pruning.apply_()
    assert bool((net.c.weight[[0, 4]] == 0).all())
    assert not pruning.prune_()


def test_costs_are_those_that_count_finds() -> None:
    """On a real network, for uniform sub-nets, whose parts are all prefixes."""
    model = dk.models.resnet20(shortcut="proj_all")
    lasso = GroupLasso(model, 1.0)
    pruning = Pruning(model, lasso, torch.zeros(1, 3, 32, 32))
    slim = dk.slim(copy.deepcopy(model), (0.25, 0.5, 1.0))
    counts = dk.count(slim, torch.zeros(1, 3, 32, 32))
    for width in (0.25, 0.5, 1.0):
        for group in lasso.groups:
            pruning.alive[group.name] = torch.arange(group.size) < width * group.size
        assert pruning.cost("macs") == pytest.approx(counts[width].macs)
        assert pruning.cost("weights") == pytest.approx(counts[width].weights, rel=1e-3)


def test_an_empty_layer_keeps_its_strongest_channel(caplog: pytest.LogCaptureFixture) -> None:
    net = chain()
    pruning = Pruning(net, GroupLasso(net, 1.0), X[:1])
    with torch.no_grad():
        net.c.weight.zero_()
        net.a.weight[3] *= 10
    with caplog.at_level(logging.WARNING, "dynkern"):
        pruning.prune_()
        pruning.prune_()
    assert int(pruning.alive["c"].sum()) == 1
    assert [r.getMessage() for r in caplog.records] == ["c: every channel would be pruned; the strongest stays"]


def test_cutting_takes_the_weakest() -> None:
    net = chain()
    pruning = Pruning(net, GroupLasso(net, 1.0), X[:1])
    norms = net.c.weight.flatten(1).norm(dim=1)
    share = norms / norms.mean()
    whole = pruning.cost()
    pruning.cut_(whole - 1)
    out = ~torch.cat([pruning.alive["a"], pruning.alive["c"]])
    assert int(out.sum()) == 1
    if not bool(pruning.alive["c"].all()):
        assert not bool(pruning.alive["c"][share.argmin()])
    pruning.cut_(whole * 0.3)
    assert pruning.cost() <= whole * 0.3
    with pytest.raises(ValueError, match="most: expected at least"):
        pruning.cut_(1)
    with pytest.raises(ValueError, match="threshold"):
        Pruning(net, GroupLasso(net, 1.0), X[:1], threshold=1.0)
    with pytest.raises(ValueError, match="kind"):
        pruning.cost("joules")


def test_pruning_leaves_padded_channels_alone() -> None:
    net = dk.models.resnet20()
    names = {layer for group in GroupLasso(net, 1.0).groups for layer in group.layers}
    assert "layer1.0.conv1" in names
    assert "layer1.0.conv2" not in names


NESTED = {
    "residual": [{"stem": [1, 6, 2], "b": [1, 6, 2], "a": [4]}, {"stem": [1, 2, 3, 6], "a": [2, 4]}],
    "dense": [{"stem": [5, 2], "conv1": [3]}, {"stem": [5, 2, 1], "conv1": [0, 3], "conv3": [9, 1]}],
    "mobile": [{"stem.0": [7, 1], "block.0": [3, 9]}, {"stem.0": [7, 5, 1], "block.0": [2, 3, 9]}],
    "se": [{"conv": [5], "gate.0": [3], "up": [11]}, {"conv": [2, 5], "gate.0": [1, 3], "up": [11, 3]}],
    "mlp": [{"inp": [9]}, {"inp": [9, 0, 4]}],
    "encoder": [{"down.0": [5], "joint": [7]}, {"down.0": [1, 5], "middle.0": [0, 9, 3], "joint": [7, 2]}],
    "tied": [{"stem": [6]}, {"stem": [6, 1, 3]}],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_reordering_changes_nothing_but_the_order(name: str) -> None:
    """The network computes what it did, and each sub-net, now a prefix, what it did as an index set."""
    plain, x = sample(name)
    plain.eval()
    subnets = [SubNet(f"s{i}", channels) for i, channels in enumerate(NESTED[name])]
    if name == "tied":
        with pytest.raises(ValueError, match="shares a parameter"):
            reorder(plain, subnets)
        plain.other.weight = nn.Parameter(plain.other.weight.detach().clone())
    if name == "residual":  # the padded channels of this one keep their order
        subnets = [SubNet(s.name, {k: v for k, v in s.channels.items() if k == "a"}) for s in subnets]
    assert nested(plain, subnets)
    before = copy.deepcopy(plain)
    moved = reorder(plain, subnets)
    assert_same(plain(x), before(x), before)
    assert all(isinstance(count, int) for s in moved for count in s.channels.values())
    # As index sets in the old network, and as prefixes in the new one.
    old, new = dk.slim(copy.deepcopy(before), [*subnets, 1.0]), dk.slim(copy.deepcopy(plain), [*moved, 1.0])
    for net in (old, new):
        dk.calibrate_bn(net, [x])
    for was, now in zip(subnets, moved, strict=True):
        with dk.using(old, was.name), dk.using(new, now.name):
            assert_same(new.eval()(x), old.eval()(x), before)
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), before.parameters(), strict=True))


def test_what_cannot_be_reordered() -> None:
    net = chain()
    state = copy.deepcopy(net.state_dict())
    crossed = [SubNet("x", {"c": [0, 1]}), SubNet("y", {"c": [1, 2, 3]})]
    assert not nested(net, crossed)
    with pytest.raises(ValueError, match="layer 'c' none of two"):
        reorder(net, crossed)
    with pytest.raises(ValueError, match="has 6 channels"):
        reorder(net, [SubNet("x", {"c": [9]})])
    with pytest.raises(TypeError, match="SubNets"):
        reorder(net, [0.5])  # type: ignore[list-item]
    padded, _ = sample("residual")
    with pytest.raises(ValueError, match="they are padded with zeros"):
        reorder(padded, [NON_UNIFORM["residual"]])
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_uniform_sub_nets_and_structure() -> None:
    model = dk.models.resnet20()
    found = uniform(model, 0.25)
    assert found.name == "0.25"
    assert found.channels["conv1"] == 4
    assert found.channels["layer3.1.conv1"] == 16
    shown = structure(model, [0.25, found, 1.0])
    assert shown["0.25"]["layer2.0.conv1"] == 8
    assert shown["1.0"]["linear"] == 10
    net, x = dk.slim(copy.deepcopy(model), [SubNet("quarter", found.channels), 0.25]).eval(), torch.randn(1, 3, 32, 32)
    dk.calibrate_bn(net, [x])
    with dk.using(net, "quarter"):
        expected = net(x)
    with dk.using(net, 0.25):
        assert torch.equal(net(x), expected)
    with pytest.raises(ValueError, match="widths above 0"):
        uniform(model, 0)


def test_sub_nets_in_a_file(tmp_path: Path) -> None:
    subnets = [SubNet("a", {"x": 3, "y": [1, 4]}), SubNet("b", {"x": [2]})]
    write_subnets(subnets, tmp_path / "s.json")
    assert read_subnets(tmp_path / "s.json") == subnets
    for text in ("{}", "[1]", "[", '[{"name": "a", "channels": {"x": 0}}]'):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(ValueError, match=r"s\.json: cannot be read as sub-nets"):
            read_subnets(tmp_path / "s.json")
    with pytest.raises(FileNotFoundError, match="file of sub-nets"):
        read_subnets(tmp_path / "none.json")


def test_masks_are_those_of_equation_5() -> None:
    """A pruned network is the network with W . M: the same as ``masked`` makes of the sub-net."""
    plain, x = sample("mobile")
    plain.eval()
    pruned = copy.deepcopy(plain)
    lasso = GroupLasso(pruned, 1.0)
    pruning = Pruning(pruned, lasso, x[:1])
    pruning.alive["block.0"][[1, 5, 6]] = False
    pruning.apply_()
    subnet = pruning.subnet("s")
    net = dk.slim(copy.deepcopy(plain), [subnet, 1.0])
    for name, module in net.named_modules():
        if isinstance(module, dk.nn.SwitchableBatchNorm2d):
            source = plain.get_submodule(name)
            kept = slice(None) if name == "stem.1" else pruning.alive["block.0"]
            if module.member("s").num_features == source.num_features:
                kept = slice(None)
            module.member("s").running_mean.copy_(source.running_mean[kept])
            module.member("s").running_var.copy_(source.running_var[kept])
    assert_same(pruned(x), masked(plain, net, "s", subnet)(x), plain)
