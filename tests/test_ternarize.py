"""Making a network ternary: the swap, the threshold of an epoch, the clipping, the figures."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from ternary_models import equation_5, network
from torch import Tensor, nn
from torch.nn.utils import prune

from dynkern import subnets, ternary
from dynkern.nn.dynamic import become
from dynkern.nn.selection import Selection, Slice
from dynkern.nn.sliced import SlicedConv2d, SlicedLinear
from dynkern.nn.ternary import TernaryConv2d, TernaryLinear
from dynkern.ternary import Growth

# The swap.


def test_ternarize_keeps_parameters_hooks_and_identity() -> None:
    net = network()
    before = dict(net.named_parameters())
    modules = dict(net.named_modules())
    seen: list[nn.Module] = []
    net[5].register_forward_hook(lambda module, *_: seen.append(module))
    assert ternary.ternarize(net, 0.1) is net
    assert {name: id(p) for name, p in net.named_parameters()} == {name: id(p) for name, p in before.items()}
    assert dict(net.named_modules()) == modules
    kinds = [type(m) for m in net.modules()]
    assert kinds.count(TernaryConv2d) == 2
    assert kinds.count(TernaryLinear) == 1
    net(torch.randn(1, 3, 8, 8))
    assert seen == [net[5]]


def test_ternarize_computes_what_layers_built_ternary_do() -> None:
    net = ternary.ternarize(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4)), 0.2)
    built = nn.Sequential(TernaryConv2d(2, 3, 3, delta=0.2), nn.Flatten(), TernaryLinear(12, 4, delta=0.2))
    built.load_state_dict(net.state_dict())
    x = torch.randn(2, 2, 4, 4)
    assert torch.equal(net(x), built(x))


def test_ternarize_a_layer_alone() -> None:
    layer = nn.Linear(3, 2)
    assert ternary.ternarize(layer, 0.2) is layer
    assert type(layer) is TernaryLinear


def test_ternarize_again_sets_the_new_threshold() -> None:
    net = ternary.ternarize(network(), Growth("linear"))
    ternary.ternarize(net, 0.25)
    assert ternary.set_epoch(net, 100) == 0.25


def test_skip_leaves_modules_with_all_they_contain() -> None:
    net = ternary.ternarize(network(), 0.1, skip=["0", "3"])
    assert type(net[0]) is nn.Conv2d
    assert type(net[3][0]) is nn.Conv2d
    assert type(net[5]) is TernaryLinear


def test_skip_of_a_shared_layer_holds_for_all_its_names() -> None:
    shared = nn.Linear(4, 4)
    net = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(4, 4)})
    ternary.ternarize(net, 0.1, skip={"b"})
    assert type(net["a"]) is nn.Linear
    assert type(net["c"]) is TernaryLinear


class OwnLinear(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        (network(), {"skip": ["5", "6", "fc"]}, ValueError, "skip: '6', 'fc' is no module of the model"),
        (network(), {"skip": "5"}, TypeError, "skip: expected a collection of names, got the string '5'"),
        (network(), {"skip": ["0", "3.0", "5"]}, ValueError, "expected a Conv2d or Linear to make ternary, found none"),
        (nn.ReLU(), {}, ValueError, "expected a Conv2d or Linear to make ternary, found none"),
        (network(), {"delta": 1.0}, ValueError, "delta: expected 0 <= delta < 1"),
        (network(), {"delta": "log"}, TypeError, "delta: expected a number, got str"),
        (nn.Sequential(nn.Linear(2, 2), OwnLinear(2, 2)), {}, ValueError, "1 is a OwnLinear with a behaviour"),
        (nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2)), {}, ValueError, "1.out_proj is a"),
        (nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)), {}, ValueError, "1 is a LazyLinear"),
    ],
)
def test_ternarize_refuses_and_changes_nothing(model: nn.Module, arguments: dict, error: type, message: str) -> None:
    before = [type(m) for m in model.modules()]
    with pytest.raises(error, match=message):
        ternary.ternarize(model, **arguments)
    assert [type(m) for m in model.modules()] == before


def test_a_layer_whose_weight_is_computed_is_refused() -> None:
    net = nn.Sequential(prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5))
    with pytest.raises(ValueError, match="0 is a Linear with a behaviour of its own"):
        ternary.ternarize(net, 0.1)


def test_a_subclass_may_be_skipped() -> None:
    net = ternary.ternarize(nn.Sequential(nn.Linear(2, 2), OwnLinear(2, 2)), 0.1, skip=["1"])
    assert type(net[1]) is OwnLinear


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3), nn.Linear(4, 6)])
def test_a_sliced_layer_keeps_its_sub_nets(layer: nn.Module) -> None:
    selection = Selection((0.5, 1.0), 0.5)
    slices = {0.5: Slice(2, 3), 1.0: Slice(4, 6)}
    sliced = become(layer, SlicedConv2d if isinstance(layer, nn.Conv2d) else SlicedLinear)
    sliced.bind(selection, slices)
    ternary.ternarize(sliced, 0.1)
    assert type(sliced) in (TernaryConv2d, TernaryLinear)
    assert sliced.selection is selection
    assert sliced.slices == slices
    x = torch.randn(1, 2, 5, 5) if isinstance(sliced, TernaryConv2d) else torch.randn(1, 2)
    assert sliced(x).shape[1] == 3
    sliced.unbind()
    assert type(sliced) in (TernaryConv2d, TernaryLinear)


@pytest.mark.parametrize("slim_first", [True, False])
def test_a_slim_network_is_ternary_in_each_sub_net_and_stays_so(slim_first: bool) -> None:
    net = network()
    if slim_first:
        ternary.ternarize(subnets.slim(net, (0.5, 1.0)), 0.05)
    else:
        subnets.slim(ternary.ternarize(net, 0.05), (0.5, 1.0))
    for key in (0.5, 1.0):
        subnets.select(net, key)
        net.train()(torch.randn(4, 3, 8, 8))
        plain = subnets.extract(net, key)
        assert {type(m) for m in plain.modules()}.isdisjoint({TernaryConv2d, TernaryLinear})
        assert set(plain[0].weight.unique().tolist()) == {-1, 0, 1}
        x = torch.randn(2, 3, 8, 8)
        # Not to the bit: the kernels of plain modules may add up in another order.
        torch.testing.assert_close(net.eval()(x), plain.eval()(x))
    subnets.revert(net)
    kinds = [type(m) for m in net.modules()]
    assert kinds.count(TernaryConv2d) == 2
    assert kinds.count(TernaryLinear) == 1


# The loop.


def test_set_epoch_moves_all_thresholds() -> None:
    growth = Growth("log")
    net = ternary.ternarize(network(), growth)
    assert [m.delta for m in net.modules() if isinstance(m, TernaryLinear)] == [growth(1)]
    for epoch in (3, 50, 100, 1):
        assert ternary.set_epoch(net, epoch) == growth(epoch)
        assert {m.delta for m in net.modules() if hasattr(m, "delta")} == {growth(epoch)}


def test_set_epoch_leaves_fixed_thresholds() -> None:
    net = ternary.ternarize(network(), Growth("linear"), skip=["5"])
    ternary.ternarize(net[5], 0.05)
    assert ternary.set_epoch(net, 250) == 0.5
    assert net[5].delta == 0.05


def test_set_epoch_refuses() -> None:
    net = ternary.ternarize(network(), Growth("log"))
    with pytest.raises(ValueError, match="epoch: expected 0"):
        ternary.set_epoch(net, -1)
    with pytest.raises(TypeError, match="epoch: expected an integer"):
        ternary.set_epoch(net, 1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [lambda net: ternary.set_epoch(net, 1), ternary.clamp_, ternary.stats, ternary.pack])
def test_a_network_without_ternary_layers_is_refused(call: Callable[[nn.Module], object]) -> None:
    with pytest.raises(ValueError, match="net: expected ternary layers"):
        call(network())


def test_clamp_clips_ternary_layers_alone() -> None:
    net = ternary.ternarize(network(), 0.1, skip=["0"])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(100)
    before = copy.deepcopy(net.state_dict())
    ternary.clamp_(net)
    after = net.state_dict()
    for name in ("3.0.weight", "5.weight"):
        assert torch.equal(after[name], before[name].clamp(-1, 1))
    for name in ("0.weight", "3.0.bias", "5.bias", "1.weight"):
        assert torch.equal(after[name], before[name])


def test_saturation_and_clipping_agree() -> None:
    """With the clipping after each step, equation 2 is the gradient of the identity (as in BinaryNet), to the bit."""
    layer = TernaryLinear(20, 6, bias=False, delta=0.3)
    latent = nn.Parameter(torch.empty(6, 20).uniform_(-1, 1))
    layer.weight = nn.Parameter(latent.detach().clone())
    optimiser = torch.optim.SGD([latent, layer.weight], lr=0.02)
    clipped = 0
    for _ in range(20):
        x, target = torch.randn(8, 20), torch.randn(8, 6)
        optimiser.zero_grad()
        values = equation_5(latent, 0.3).requires_grad_()
        F.mse_loss(F.linear(x, values), target, reduction="sum").backward()
        latent.grad = values.grad
        F.mse_loss(F.linear(x, layer.effective_weight()), target, reduction="sum").backward()
        optimiser.step()
        clipped += int((latent.abs() > 1).sum())
        with torch.no_grad():
            latent.clamp_(-1, 1)
        ternary.clamp_(layer)
        assert torch.equal(layer.weight, latent)
    assert clipped > 50
    assert (latent.abs() < 1).any()


def test_without_clipping_a_saturated_weight_stays() -> None:
    layer = TernaryLinear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.5, -1.5, 0.5]]))
    layer(torch.ones(1, 3)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert layer.weight.tolist() == [[1.5, -1.5, pytest.approx(0.4)]]


def test_stats_per_layer_and_in_total() -> None:
    net = nn.Sequential(TernaryLinear(4, 2, delta=0.5), nn.ReLU(), TernaryLinear(2, 1, delta=0.5), nn.Linear(1, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.6, -0.6, 0.1, 0.0], [0.5, -0.5, 0.0, 2.0]]))
        net[2].weight.copy_(torch.tensor([[-1.0, 0.9]]))
    for version in (net, ternary.pack(net)):
        stats = ternary.stats(version)
        assert list(stats.layers) == ["0", "2"]
        assert stats.layers["0"] == ternary.Counts(minus=1, zero=5, plus=2)
        assert stats.layers["2"] == ternary.Counts(minus=1, zero=0, plus=1)
        assert stats.layers["2"].entropy == 1
        assert stats.total == ternary.Counts(2, 5, 3)
        assert stats.total.weights == 10
        assert stats.total.sparsity == 0.5
        assert stats.total.entropy == pytest.approx(0.2 * math.log2(5) + 0.5 + 0.3 * math.log2(10 / 3))


def test_a_few_steps_of_training_lower_the_loss() -> None:
    net = ternary.ternarize(nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2)), 0.05)
    x = torch.randn(256, 16)
    labels = (x[:, :8].sum(1) > x[:, 8:].sum(1)).long()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        loss.backward()
        optimiser.step()
        ternary.clamp_(net)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert set(net[0].effective_weight().unique().tolist()) <= {-1, 0, 1}
