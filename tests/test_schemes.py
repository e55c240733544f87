"""The ternarisers that the paper compares with: what each makes of a weight, trains, packs and runs."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from ternary_models import network
from torch import Tensor, nn

import dynkern as dk
from dynkern import ternary
from dynkern.nn.schemes import from_dict
from dynkern.nn.ternary import TernaryConv2d, TernaryLinear
from dynkern.ternary import EC2T, SCHEMES, TTQ, TWN, Binary, Delta, Scheme

U = 2.0**-24
ALL = [Delta(), TWN(), TTQ(), EC2T(0.3), Binary()]
SOME = torch.tensor([[0.9, -0.8, 0.31, 0.0], [-0.1, 0.5, -0.35, 0.04]])


def layer_with(weight: Tensor, scheme: str | Scheme, delta: float | None = None) -> TernaryLinear:
    layer = TernaryLinear(weight.shape[1], weight.shape[0], bias=False, delta=delta, scheme=scheme)
    with torch.no_grad():
        layer.weight.copy_(weight)
    # What is learned starts from the weights.
    layer.ternarize(layer.delta, None, scheme)
    return layer


# What each makes of a weight.


def test_the_table_has_what_the_paper_compares() -> None:
    assert list(SCHEMES) == ["delta", "twn", "ttq", "ec2t", "binary"]
    assert all(SCHEMES[scheme.name] is type(scheme) for scheme in ALL)
    assert [scheme.clips for scheme in ALL] == [True, False, False, False, True]


def test_binary_has_no_zeros() -> None:
    values = layer_with(SOME, "binary").effective_weight()
    assert values.tolist() == [[1, -1, 1, 1], [-1, 1, -1, 1]]


def test_twn_by_hand() -> None:
    # Mean magnitude 3 / 8, threshold 0.2625; the mean of 0.9, 0.8, 0.31, 0.5, 0.35 is 0.572.
    values = layer_with(SOME, "twn").effective_weight()
    expected = 0.572 * torch.tensor([[1, -1, 1, 0], [0, 1, -1, 0.0]])
    assert torch.allclose(values, expected, rtol=4 * U, atol=0)


def test_twn_of_nothing_but_zeros_is_zero() -> None:
    assert layer_with(torch.zeros(2, 3), "twn").effective_weight().count_nonzero() == 0


def test_ttq_by_hand() -> None:
    # Threshold 0.05 * 0.9 = 0.045.
    layer = layer_with(SOME, "ttq")
    assert layer.plus.item() == pytest.approx((0.9 + 0.31 + 0.5) / 3, rel=1e-6)
    assert layer.minus.item() == pytest.approx((0.8 + 0.1 + 0.35) / 3, rel=1e-6)
    with torch.no_grad():
        layer.plus.fill_(3)
        layer.minus.fill_(2)
    assert layer.effective_weight().tolist() == [[3, -2, 3, 0], [-2, 3, -2, 0]]


@given(
    weight=st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=40),
    plus=st.floats(0.125, 2, width=32),
    minus=st.floats(0.125, 2, width=32),
    lam=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
)
def test_ec2t_takes_the_centroid_of_least_cost(weight: list[float], plus: float, minus: float, lam: float) -> None:
    layer = layer_with(torch.tensor([weight]), EC2T(lam)).double()
    with torch.no_grad():
        layer.plus.fill_(plus)
        layer.minus.fill_(minus)
    signs = layer.scheme.signs(layer)[0]
    w = layer.weight[0].detach()
    distance = (w[:, None] - torch.tensor([-minus, 0, plus], dtype=torch.float64)) ** 2
    distance[(w > 0), 0] = distance[(w < 0), 2] = math.inf  # each sign stays on its side
    nearest = torch.where(distance[:, 1] <= distance.amin(1), 1, distance.argmin(1))
    shares = torch.stack([(nearest == c).sum() for c in range(3)]) / len(w)
    cost = distance - lam * plus * minus * torch.log2(shares.clamp(min=0.5 / len(w)))
    taken = cost[torch.arange(len(w)), (signs + 1).long()]
    # Nothing but zero itself is left at zero where zero is the rarest: a threshold is not below zero.
    cost[w == 0, 0] = cost[w == 0, 2] = math.inf
    assert (taken <= cost.amin(1) + 1e-9).all()


def test_ec2t_prefers_what_is_frequent() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 64)
    zeros = [(layer_with(weight, EC2T(lam)).effective_weight() == 0).float().mean() for lam in (0.0, 0.1, 0.3, 1.0)]
    assert zeros == sorted(zeros)
    assert zeros[-1] > zeros[0] + 0.2


@pytest.mark.parametrize("scheme", ALL, ids=lambda s: s.name)
def test_nan_shows_and_is_not_packed(scheme: Scheme) -> None:
    layer = TernaryLinear(4, 3, scheme=scheme)
    with torch.no_grad():
        layer.weight[1, 2] = math.nan
    assert layer(torch.ones(1, 4))[0, 1].isnan()
    with pytest.raises(ValueError, match="NaN"):
        ternary.pack(layer)


# Gradients.


@pytest.mark.parametrize("scheme", ["delta", "binary"])
def test_what_clips_has_no_gradient_outside(scheme: str) -> None:
    layer = layer_with(torch.tensor([[1.5, -1.5, 0.5, 1.0]]), scheme)
    layer(torch.tensor([[1.0, 2, 3, 4]])).sum().backward()
    assert layer.weight.grad.tolist() == [[0, 0, 3, 4]]


def test_twn_passes_the_gradient_on() -> None:
    layer = layer_with(torch.tensor([[1.5, -1.5, 0.01, 1.0]]), "twn")
    layer(torch.tensor([[1.0, 2, 3, 4]])).sum().backward()
    assert layer.weight.grad.tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("scheme", [TTQ(), EC2T(0.0)])
def test_learned_levels_have_the_gradients_of_zhu_et_al(scheme: Scheme) -> None:
    layer = layer_with(torch.tensor([[1.5, -1.5, 0.01, 1.0, -1.2]]), scheme)
    with torch.no_grad():
        layer.plus.fill_(1.25)
        layer.minus.fill_(1.5)
    layer(torch.tensor([[1.0, 2, 3, 4, 8]])).sum().backward()
    # Equation 8: Wp, 1 or Wn times the gradient of the ternary weight; equation 7: sums of it.
    assert layer.weight.grad.tolist() == [[1.25, 3, 3, 5, 12]]
    assert layer.plus.grad.item() == 1 + 4
    assert layer.minus.grad.item() == -(2 + 8)


# Training, packing, running.


def trained(scheme: Scheme) -> nn.Sequential:
    """A network a few steps into training, and that the steps were of use."""
    torch.manual_seed(1)
    net = ternary.ternarize(network(), scheme=scheme, delta=0.05 if scheme == Delta() else None)
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    x, target = torch.randn(32, 3, 8, 8), torch.randint(10, (32,))
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(net(x), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        ternary.clamp_(net)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    return net.eval()


@pytest.mark.parametrize("scheme", ALL, ids=lambda s: s.name)
def test_each_trains_packs_and_runs(scheme: Scheme, tmp_path: Path) -> None:
    net = trained(scheme)
    packed = dk.pack(net)
    x = torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        expected = copy.deepcopy(net).double()(x.double())
        # 27, 9 and 288 terms a sum, in any order, each layer's error carried on by the next one.
        close = 1000 * U * expected.abs().max()
        y = packed(x)
        assert (y - expected).abs().max() <= close
        assert torch.equal(y.argmax(1), net(x).argmax(1))
        run = dk.compile(packed, x[:1])
        assert (run(x) - expected).abs().max() <= close
        assert torch.equal(run(x).argmax(1), y.argmax(1))
    for name, layer in packed.named_modules():
        if hasattr(layer, "packed"):
            assert torch.equal(layer.weight.unpack(), net.get_submodule(name).effective_weight())
            assert (layer.scale_minus is None) == (not scheme.learns)
    total = ternary.stats(net).total
    assert total == ternary.stats(packed).total
    assert (total.zero == 0) == (scheme == Binary())
    for saved in (net, packed):
        file = tmp_path / "net.safetensors"
        dk.save(saved, file)
        again = dk.load(network(), file)
        assert torch.equal(again(x), saved(x))
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in saved.state_dict().items()
        }
        assert [getattr(m, "scheme", None) for m in again.modules()] == [
            getattr(m, "scheme", None) for m in saved.modules()
        ]


@pytest.mark.parametrize("scheme", [TWN(), TTQ(), EC2T(0.3)], ids=lambda s: s.name)
def test_sub_nets_run_from_the_one_packed_weight(scheme: Scheme) -> None:
    torch.manual_seed(2)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5))
    net = dk.ternarize(dk.slim(plain, subnets=(0.5, 1.0)), scheme=scheme).eval()
    packed = dk.pack(net)
    x = torch.randn(2, 3, 8, 8)
    run = dk.compile(packed, x)
    for width in (0.5, 1.0):
        with torch.no_grad(), dk.using(net, width), dk.using(packed, width):
            expected = net(x)
            close = 300 * U * expected.abs().max()
            assert (packed(x) - expected).abs().max() <= close
            assert (run(x, subnet=width) - expected).abs().max() <= close
            assert (dk.extract(packed, width)(x) - expected).abs().max() <= close


def test_another_scheme_takes_the_place_of_the_first() -> None:
    net = ternary.ternarize(network(), scheme="ttq")
    assert {"5.plus", "5.minus"} <= set(dict(net.named_parameters()))
    ternary.ternarize(net, 0.25)
    assert {name for name, _ in net[5].named_parameters()} == {"weight", "bias"}
    assert net[5].delta == 0.25
    ternary.ternarize(net, scheme=TWN(0.5))
    assert net[5].delta == 0
    assert "scheme=TWN(factor=0.5)" in repr(net[5])


def test_a_threshold_is_for_delta_alone() -> None:
    with pytest.raises(ValueError, match="delta: expected none, since scheme 'ttq' has no such threshold"):
        ternary.ternarize(network(), 0.1, scheme="ttq")
    layer = TernaryConv2d(1, 1, 1, scheme="binary")
    with pytest.raises(ValueError, match="delta: expected none, since scheme 'binary'"):
        layer.delta = 0.1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TTQ(1.0), ValueError, "t: expected 0 <= t < 1, got 1.0"),
        (lambda: TTQ("a"), TypeError, "t: expected a number, got str"),
        (lambda: TWN(-1), ValueError, "factor: expected 0 <= factor < inf, got -1"),
        (lambda: EC2T(math.nan), ValueError, "lam: expected 0 <= lam < inf, got nan"),
        (lambda: ternary.ternarize(network(), scheme="fatnn"), ValueError, "scheme: expected one of"),
        (lambda: ternary.ternarize(network(), scheme=Scheme()), TypeError, "scheme: expected a name or a Scheme"),
        (lambda: from_dict({"name": "ttq", "x": 1}), ValueError, "scheme: 'ttq' has no 'x'"),
    ],
)
def test_bad_schemes_are_refused(make: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("scheme", ALL, ids=lambda s: s.name)
def test_described_and_made_again(scheme: Scheme) -> None:
    assert from_dict(scheme.to_dict()) == scheme
