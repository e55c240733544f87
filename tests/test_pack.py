"""Packed ternary layers: the outputs of the latent ones, at 2 bits a weight."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynkern import ternary
from dynkern.nn.packed import PackedTernary, PackedTernaryConv2d, PackedTernaryLinear
from dynkern.nn.selection import Selection, Slice
from dynkern.nn.ternary import TernaryConv2d, TernaryLinear
from dynkern.ops import TernaryWeight

U = 2.0**-24


def assert_same_sums(layer: nn.Module, packed: nn.Module, x: Tensor) -> None:
    """Both are float32 sums of the same n terms, each off by at most n U / (1 - n U) sum|terms|, in any order."""
    dense = copy.deepcopy(layer).double()
    with torch.no_grad():
        dense.weight.copy_(layer.effective_weight().abs())
        if dense.bias is not None:
            dense.bias.abs_()
        size = dense(x.double().abs())
        terms = layer.weight[0].numel() + 1
        bound = 2 * terms * U / (1 - terms * U) * size
        a, b = layer(x), packed(x)
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    assert ((a.double() - b.double()).abs() <= bound).all()


conv_options = [
    {},
    {"bias": False},
    {"stride": 2, "padding": 1},
    {"stride": (1, 3), "padding": (2, 0)},
    {"dilation": 2, "padding": "same"},
    {"padding": "valid"},
    {"groups": 2, "padding": 1},
    {"groups": 8, "padding": 1},
    {"groups": 8, "stride": 2, "dilation": (1, 2)},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": (2, 1), "padding_mode": "replicate"},
    {"padding": "same", "padding_mode": "circular"},
]


@pytest.mark.parametrize("options", conv_options)
@pytest.mark.parametrize("delta", [0.0, 0.1, 0.3])
def test_conv_gives_the_outputs_of_the_latent_layer(options: dict, delta: float) -> None:
    layer = TernaryConv2d(8, 16, 3, delta=delta, **options).eval()
    packed = ternary.pack(layer)
    assert type(packed) is PackedTernaryConv2d
    for size in ((2, 8, 11, 9), (1, 8, 7, 7)):
        assert_same_sums(layer, packed, torch.randn(size))
    assert_same_sums(layer, packed, torch.randn(2, 8, 9, 9).to(memory_format=torch.channels_last))


@given(inputs=st.integers(1, 70), outputs=st.integers(1, 9), batch=st.integers(0, 5), bias=st.booleans())
def test_linear_gives_the_outputs_of_the_latent_layer(inputs: int, outputs: int, batch: int, bias: bool) -> None:
    layer = TernaryLinear(inputs, outputs, bias, delta=0.5 / inputs**0.5).eval()
    packed = ternary.pack(layer)
    assert type(packed) is PackedTernaryLinear
    assert_same_sums(layer, packed, torch.randn(batch, inputs))
    assert_same_sums(layer, packed, torch.randn(2, batch, inputs))


def network() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, padding=1, padding_mode="reflect")),
        nn.Flatten(),
        nn.Linear(8 * 36, 10),
    )
    return ternary.ternarize(net, 0.03)


def test_packing_copies_and_leaves_the_latent_network() -> None:
    net = network()
    state = copy.deepcopy(net.state_dict())
    kinds = [type(m) for m in net.modules()]
    packed = ternary.pack(net)
    assert [type(m) for m in net.modules()] == kinds
    assert net.training
    assert not any(m.training for m in packed.modules())
    with torch.no_grad():
        for tensor in (*packed.parameters(), *packed.buffers()):
            tensor.zero_()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_a_packed_network_holds_no_latent_weight() -> None:
    packed = ternary.pack(network())
    names = {"packed", "bias"}
    assert {name for name, _ in packed[0].named_buffers()} == names
    assert [p for layer in (packed[0], packed[3], packed[5]) for p in layer.parameters()] == []
    assert packed[5].packed.nbytes == 10 * 8 * 36 // 4
    assert vars(packed[0]).keys().isdisjoint({"growth", "_delta"})


def test_mixed_networks_keep_their_plain_layers() -> None:
    net = ternary.ternarize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 0.1, skip=["0"])
    packed = ternary.pack(net)
    assert type(packed[0]) is nn.Linear
    assert packed[0].weight is not net[0].weight
    assert torch.equal(packed[0].weight, net[0].weight)


def test_a_network_packed_in_part_may_be_packed_on() -> None:
    packed = ternary.pack(network())
    both = nn.Sequential(packed, TernaryLinear(10, 3))
    again = ternary.pack(both)
    x = torch.randn(1, 3, 6, 6)
    assert torch.equal(again[0](x), packed(x))


def test_hooks_are_kept() -> None:
    net = network()
    net[5].register_forward_hook(lambda module, args, y: y * 0 + 7)
    assert ternary.pack(net)(torch.randn(1, 3, 6, 6)).unique().tolist() == [7]


def test_packing_nan_is_refused_and_named() -> None:
    net = network()
    with torch.no_grad():
        net[3][0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"net: cannot pack layer '3\.0'.*NaN"):
        ternary.pack(net)


def through_torch_save(net: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def through_state_dict(net: nn.Module) -> nn.Module:
    other = ternary.pack(network())
    with torch.no_grad():
        other(torch.randn(1, 3, 6, 6))
    other.load_state_dict(net.state_dict())
    return other


def through_assignment(net: nn.Module) -> nn.Module:
    other = ternary.pack(network())
    other.load_state_dict(net.state_dict(), assign=True)
    return other


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda net: pickle.loads(pickle.dumps(net)),
        through_torch_save,
        through_state_dict,
        through_assignment,
        lambda net: copy.deepcopy(net).to("cpu"),
        lambda net: copy.deepcopy(net).double().float(),
    ],
    ids=["deepcopy", "pickle", "torch.save", "state_dict", "assign", "to", "double"],
)
def test_copies_compute_the_same(copied: Callable[[nn.Module], nn.Module]) -> None:
    net = ternary.pack(network())
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        expected = net(x)
        twin = copied(net)
        assert torch.equal(twin(x), expected)
        for layer in twin.modules():
            if isinstance(layer, PackedTernary):
                assert layer.weight.packed is layer.packed
                layer.packed.zero_()
                assert layer.weight.nonzeros == 0
        assert not torch.equal(twin(x), expected)


def test_load_state_dict_refuses_bad_codes() -> None:
    net = ternary.pack(network())
    state = net.state_dict()
    for packed, message in (
        (torch.full_like(state["5.packed"], 0xFF), "5.packed: holds the invalid code 11"),
        (state["5.packed"].float(), "5.packed: expected a uint8 tensor"),
        (state["5.packed"][:, 1:], "5.packed: expected shape"),
    ):
        before = state["5.packed"].clone()
        with pytest.raises(RuntimeError, match=message):
            net.load_state_dict({**state, "5.packed": packed})
        assert torch.equal(net[5].packed, before)


def test_scale_survives_another_dtype() -> None:
    scale = torch.tensor([0.1, 0.3])
    layer = PackedTernaryLinear(TernaryWeight(torch.tensor([[0x61, 2], [0xA8, 1]], dtype=torch.uint8), (2, 5), scale))
    x = torch.randn(3, 5)
    expected = layer(x)
    layer.half()
    assert layer.scale.dtype == torch.float32
    assert torch.equal(layer.scale, scale)
    assert layer(x.half()).dtype == torch.float16
    assert torch.equal(layer.float()(x), expected)
    assert layer.bias is None


def test_to_another_type_of_codes_is_refused() -> None:
    layer = ternary.pack(TernaryLinear(4, 2)).type(torch.float32)
    with pytest.raises(TypeError, match=r"packed: expected a uint8 tensor, got torch\.float32"):
        layer(torch.ones(1, 4))


@pytest.mark.parametrize("training", [False, True])
def test_gradients_reach_the_input_alone(training: bool) -> None:
    latent = TernaryConv2d(4, 6, 3, delta=0.05, padding=1, stride=2)
    packed = ternary.pack(latent).train(training)
    x = torch.randint(-4, 5, (2, 4, 7, 7)).float()
    upstream = torch.randint(-4, 5, (2, 6, 4, 4)).float()
    grads = []
    for layer in (latent, packed):
        leaf = x.clone().requires_grad_()
        layer(leaf).backward(upstream)
        grads.append(leaf.grad)
    # Small integers times -1, 0 and 1 add up exactly in any order.
    assert torch.equal(grads[0], grads[1])
    assert not any(t.requires_grad for t in (*packed.parameters(), *packed.buffers()))
    assert all(b.grad is None for b in packed.buffers())


def test_layers_made_of_their_parts() -> None:
    dense = torch.randint(-1, 2, (6, 2, 3, 3)).float() * torch.rand(6, 1, 1, 1)
    bias = torch.randn(6)
    layer = PackedTernaryConv2d(TernaryWeight.pack(dense), bias, stride=2, padding=(1, 2), groups=2)
    x = torch.randint(-4, 5, (1, 4, 8, 8)).float()
    expected = F.conv2d(x.double(), dense.double(), bias.double(), 2, (1, 2), 1, 2)
    size = F.conv2d(x.double().abs(), dense.double().abs(), bias.double().abs(), 2, (1, 2), 1, 2)
    # 18 terms, a scale and a bias.
    assert ((layer(x) - expected).abs() <= 20 * U / (1 - 20 * U) * size).all()
    assert "stride=(2, 2)" in repr(layer)
    assert "groups=2" in repr(layer)
    linear = PackedTernaryLinear(TernaryWeight.pack(dense.flatten(1)), bias)
    assert (linear.in_features, linear.out_features) == (18, 6)
    assert "in_features=18" in repr(linear)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda w: PackedTernaryLinear(torch.ones(2, 2)), TypeError, "weight: expected a TernaryWeight, got Tensor"),
        (lambda w: PackedTernaryConv2d(w), ValueError, "weight: expected 4 dimensions"),
        (lambda w: PackedTernaryLinear(w, torch.ones(3)), ValueError, r"bias: expected shape \(2,\), got \(3,\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make: Callable, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make(TernaryWeight.pack(torch.ones(2, 2)))


def test_sub_nets_run_from_the_one_packed_weight() -> None:
    net = nn.Sequential(TernaryConv2d(3, 8, 3), nn.Flatten(), TernaryLinear(8 * 4, 5, delta=0.05))
    selection = Selection((0.5, "odd", 1.0))
    odd = torch.tensor([1, 3, 7])
    wide = (odd[:, None] * 4 + torch.arange(4)).flatten()
    net[0].bind(selection, {0.5: Slice(3, 4), "odd": Slice(3, 3, None, odd), 1.0: Slice(3, 8)})
    net[2].bind(selection, {0.5: Slice(16, 5), "odd": Slice(12, 5, wide), 1.0: Slice(32, 5)})
    packed = ternary.pack(net)
    assert packed[0].selection is packed[2].selection is not selection
    x = torch.randint(-4, 5, (2, 3, 4, 4)).float()
    with torch.no_grad():
        for layer in (net[0], net[2], packed[0], packed[2]):
            layer.bias.zero_()
        for key in selection.keys:
            selection.select(key)
            packed[0].selection.select(key)
            # Integers: exact in any order.
            assert torch.equal(packed(x), net(x))
            plain = nn.Sequential(packed[0].plain(key), nn.Flatten(), packed[2].plain(key))
            assert [type(m) for m in plain] == [nn.Conv2d, nn.Flatten, nn.Linear]
            assert torch.equal(plain(x), net(x))
    packed[0].selection.select(0.5)
    with pytest.raises(ValueError, match="x: expected 16 features"):
        packed[2](torch.zeros(1, 32))


def test_unbinding_leaves_a_packed_layer() -> None:
    layer = TernaryLinear(4, 6)
    layer.bind(Selection((0.5,)), {0.5: Slice(2, 3)})
    packed = ternary.pack(layer)
    packed.unbind()
    assert type(packed) is PackedTernaryLinear
    assert packed(torch.ones(1, 4)).shape == (1, 6)


@pytest.mark.parametrize("grad", [False, True])
def test_compiled_and_exported(grad: bool) -> None:
    net = ternary.pack(network())
    x = torch.randn(2, 3, 6, 6, requires_grad=grad)
    with torch.set_grad_enabled(grad):
        expected = net(x)
        assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), expected)
        exported = torch.export.export(net, (x,))
        assert torch.equal(exported.module()(x), expected)
    assert {"0.packed", "3.0.packed", "5.packed"} <= set(exported.state_dict)


def test_functional_call_uses_the_given_codes() -> None:
    layer = ternary.pack(TernaryLinear(4, 2, bias=False))
    other = TernaryWeight.pack(torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, -1]]))
    y = torch.func.functional_call(layer, {"packed": other.packed}, (torch.ones(1, 4),))
    assert y.tolist() == [[4, -1]]
    bad = torch.full_like(other.packed, 0xFF)
    with pytest.raises(ValueError, match="invalid code 11"):
        torch.func.functional_call(layer, {"packed": bad}, (torch.ones(1, 4),))


def test_packing_in_inference_mode() -> None:
    latent = TernaryLinear(4, 2, delta=0.2)
    x = torch.ones(1, 4)
    with torch.inference_mode():
        packed = ternary.pack(latent)
        moved = copy.deepcopy(packed).to(torch.float64).float()
        assert torch.equal(packed(x), moved(x))
    leaf = x.clone().requires_grad_()
    packed(leaf).sum().backward()
    assert torch.equal(leaf.grad, latent.effective_weight().sum(0, keepdim=True))
    assert moved.weight.packed is moved.packed


def test_weights_are_checked_once_and_not_in_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ternary.pack(network())
    made = []
    init = TernaryWeight.__init__
    monkeypatch.setattr(TernaryWeight, "__init__", lambda self, *a: made.append(a) or init(self, *a))
    x = torch.randn(1, 3, 6, 6)
    for _ in range(3):
        net(x)
    assert made == []
    twin = copy.deepcopy(net).load_state_dict(net.state_dict(), assign=True)
    assert len(made) == 3
    assert twin
