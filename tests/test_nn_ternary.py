"""Layers with ternary weights: equations 2 and 5, arguments, state, gradients."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from ternary_models import equation_5, network
from torch import Tensor, nn

from dynkern import ternary
from dynkern.nn.selection import Selection, Slice
from dynkern.nn.ternary import TernaryConv2d, TernaryLinear
from dynkern.ops.straight_through import straight_through, ternary_values
from dynkern.ternary import Growth

U = 2.0**-24


# Equations 2 and 5.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_are_those_of_equation_5(dtype: torch.dtype) -> None:
    delta = 0.25
    above = torch.nextafter(torch.tensor(delta, dtype=dtype), torch.tensor(1.0, dtype=dtype)).item()
    weight = torch.tensor([above, delta, -delta, -above, 0, 1, -1, 7, -math.inf], dtype=dtype)
    values = ternary_values(weight, torch.tensor(delta))
    assert values.dtype == dtype
    assert values.tolist() == [1, 0, 0, -1, 0, 1, -1, 1, -1]


def test_nan_stays_nan() -> None:
    assert ternary_values(torch.tensor([math.nan]), 0.1).isnan().all()


def test_gradient_is_that_of_equation_2_inclusive_at_one() -> None:
    one = torch.tensor(1.0)
    over = torch.nextafter(one, 2 * one).item()
    under = torch.nextafter(one, 0 * one).item()
    weight = torch.tensor([0.0, 0.05, -0.5, under, 1.0, -1.0, over, -over, 3.0, -math.inf], requires_grad=True)
    upstream = torch.linspace(-2, 3, 10)
    straight_through(weight, ternary_values(weight, 0.1)).backward(upstream)
    assert weight.grad is not None
    expected = upstream * torch.tensor([1, 1, 1, 1, 1, 1, 0, 0, 0, 0])
    assert torch.equal(weight.grad, expected)


def _saturating(weight: Tensor) -> Tensor:
    return straight_through(weight, ternary_values(weight.detach(), 0.1))


def test_gradient_through_functional_transforms() -> None:
    weight = torch.tensor([0.5, -0.05, 2.0])
    grad = torch.func.grad(lambda w: (_saturating(w) * torch.tensor([3.0, 4, 5])).sum())(weight)
    assert grad.tolist() == [3, 4, 0]
    batch = torch.func.vmap(_saturating)(weight.expand(2, 3))
    assert batch.tolist() == [[1, 0, 1]] * 2


# The layers.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"groups": 4},
        {"padding": "same"},
        {"bias": False},
        {"padding": 2, "padding_mode": "circular"},
        {"dilation": 2},
    ],
)
def test_conv_is_torchs_with_ternary_weights(options: dict) -> None:
    layer = TernaryConv2d(4, 8, 3, delta=0.1, **options)
    plain = nn.Conv2d(4, 8, 3, **options)
    with torch.no_grad():
        plain.weight.copy_(equation_5(layer.weight, 0.1))
        if layer.bias is not None:
            plain.bias.copy_(layer.bias)
    x = torch.randn(2, 4, 9, 9)
    assert_close_sums(layer(x), plain(x), F.conv2d(x.abs(), x.new_ones(1, 4, 3, 3)).max(), terms=4 * 9 + 1)


def test_linear_is_torchs_with_ternary_weights() -> None:
    layer = TernaryLinear(40, 7, delta=0.05)
    x = torch.randn(3, 5, 40)
    expected = F.linear(x, equation_5(layer.weight, 0.05), layer.bias)
    assert_close_sums(layer(x), expected, x.abs().sum(-1).max(), terms=41)


def assert_close_sums(a: Tensor, b: Tensor, magnitude: Tensor, terms: int) -> None:
    """Two float32 sums of ``terms`` terms, whose absolute values add up to at most ``magnitude`` and 1 for the bias."""
    assert a.shape == b.shape
    assert (a - b).abs().max() <= 2 * terms * U / (1 - terms * U) * (magnitude + 1)


def test_gradients_of_a_layer() -> None:
    layer = TernaryLinear(4, 2, delta=0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.6, -0.6, 0.1, 1.5], [1.0, 0.5, -2.0, 0.0]]))
    x = torch.tensor([[1.0, 2.0, 4.0, 8.0]], requires_grad=True)
    (layer(x) * torch.tensor([[1.0, 10.0]])).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1, 2, 4, 0], [10, 20, 0, 80]]
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [1, 10]
    assert x.grad is not None
    assert x.grad.tolist() == [[1 + 10, -1, -10, 1]]


def test_arguments_and_state_are_torchs_plus_a_threshold() -> None:
    conv = TernaryConv2d(4, 8, (3, 1), 2, 1, 1, 2, False, "reflect", "cpu", torch.float64, delta=0.3)
    assert conv.weight.shape == (8, 2, 3, 1)
    assert conv.weight.dtype == torch.float64
    assert set(conv.state_dict()) == {"weight", "threshold"}
    assert "stride=(2, 2)" in repr(conv)
    assert "delta=0.3" in repr(conv)
    linear = TernaryLinear(4, 2, True, "cpu", torch.float64)
    assert set(linear.state_dict()) == {"weight", "bias", "threshold"}
    assert linear.delta == 0.1


@pytest.mark.parametrize("make", [lambda **o: TernaryConv2d(1, 1, 1, **o), lambda **o: TernaryLinear(1, 1, **o)])
def test_layers_refuse_bad_arguments(make: Callable[..., nn.Module]) -> None:
    for delta in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="delta: expected 0 <= delta < 1"):
            make(delta=delta)
    with pytest.raises(TypeError, match="delta: expected a number"):
        make(delta="0.1")
    with pytest.raises(ValueError, match="scheme: expected one of"):
        make(scheme="trq")
    with pytest.raises(TypeError, match="scheme: expected a name or a Scheme, got int"):
        make(scheme=3)
    with pytest.raises(ValueError, match="delta: expected none, since scheme 'twn' has no such threshold"):
        make(scheme="twn", delta=0.1)


def test_delta_is_a_number_that_may_be_set() -> None:
    layer = TernaryLinear(50, 50, delta=0.01)
    for delta in (0.0, 0.1, 0.13):
        layer.delta = delta
        assert layer.delta == delta
        assert torch.equal(layer.effective_weight(), equation_5(layer.weight, delta))
    for bad in (1, -1, math.nan):
        with pytest.raises(ValueError, match="delta"):
            layer.delta = bad
    assert layer.delta == 0.13
    assert layer.threshold == torch.tensor(0.13)


def test_the_threshold_never_rounds_up_to_one() -> None:
    layer = TernaryLinear(2, 1, delta=1 - 1e-12)
    assert layer.threshold < 1
    layer.load_state_dict(layer.state_dict())
    layer.delta = 1 - 1e-15
    assert layer.threshold < 1
    assert layer.to(torch.float32).threshold < 1


def test_nan_in_the_latent_weight_shows_in_the_output() -> None:
    layer = TernaryLinear(2, 1)
    with torch.no_grad():
        layer.weight[0, 0] = math.nan
    assert layer(torch.ones(1, 2)).isnan().all()


def test_copies_and_files_keep_delta() -> None:
    layer = TernaryLinear(3, 2, delta=0.2)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert twin.delta == 0.2
        twin.delta = 0.3
        assert layer.delta == 0.2
        assert torch.equal(layer.threshold, torch.tensor(0.2))


def test_load_state_dict_sets_delta() -> None:
    source, target = TernaryLinear(30, 20, delta=0.15), TernaryLinear(30, 20, delta=0.01)
    target.load_state_dict(source.state_dict())
    assert target.delta == pytest.approx(0.15, rel=1e-7)
    assert torch.equal(target.effective_weight(), source.effective_weight())
    target = TernaryLinear(30, 20)
    target.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(target.effective_weight(), source.effective_weight())


@pytest.mark.parametrize("bad", [torch.tensor(1.5), torch.tensor(math.nan), torch.tensor([0.1, 0.2])])
def test_load_state_dict_refuses_a_bad_threshold(bad: Tensor) -> None:
    layer = TernaryLinear(3, 2, delta=0.2)
    with pytest.raises(RuntimeError, match="threshold"):
        layer.load_state_dict({**layer.state_dict(), "threshold": bad})
    assert layer.delta == 0.2
    assert torch.equal(layer.threshold, torch.tensor(0.2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_leaves_the_threshold_alone(dtype: torch.dtype) -> None:
    layer = TernaryLinear(8, 4, delta=0.1).to(dtype)
    assert layer.weight.dtype == dtype
    assert layer.threshold.dtype == torch.float32
    assert layer.threshold == torch.tensor(0.1)
    assert layer(torch.ones(1, 8, dtype=dtype)).dtype == dtype


def test_a_narrow_sub_net_trains_its_slice_alone() -> None:
    layer = TernaryLinear(6, 4)
    layer.bind(Selection((0.5,)), {0.5: Slice(3, 2)})
    x = torch.randint(-9, 10, (5, 3)).float()
    expected = F.linear(x, equation_5(layer.weight, 0.1)[:2, :3], layer.bias[:2])
    assert_close_sums(layer(x), expected, x.abs().sum(-1).max(), terms=4)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad[:2, :3], x.sum(0).expand(2, 3))
    assert layer.weight.grad[2:].count_nonzero() == layer.weight.grad[:, 3:].count_nonzero() == 0


def test_a_new_delta_compiles_nothing_again() -> None:
    net = ternary.ternarize(network(), Growth("linear", delta0=0.005, m=1))
    compiled = 0

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable:
        nonlocal compiled
        compiled += 1
        return graph.forward

    fast = torch.compile(net.eval(), backend=backend, fullgraph=True)
    x = torch.randn(2, 3, 8, 8)
    outputs = []
    for epoch in range(1, 21):
        ternary.set_epoch(net, epoch)
        outputs.append(fast(x))
        assert torch.equal(outputs[-1], net(x))
    assert compiled == 1
    assert not torch.equal(outputs[0], outputs[-1])
