"""Packed weights whose -1 stands for another number than their +1, as trained ternary quantization gives."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import dynkern as dk
from dynkern.nn.packed import PackedTernaryConv2d, PackedTernaryLinear
from dynkern.ops import TernaryWeight
from dynkern.ops.ternary_weight import pack_signs

U = 2.0**-24


def weight(shape: tuple[int, ...], seed: int = 0) -> TernaryWeight:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(-1, 2, shape, generator=generator, dtype=torch.int8)
    scales = (torch.rand(shape[0], generator=generator) + 0.1 for _ in range(2))
    return TernaryWeight(pack_signs(signs.flatten(1)), shape, *scales)


@given(rows=st.integers(1, 6), columns=st.integers(1, 13), seed=st.integers(0, 99))
def test_packing_is_undone_by_unpacking(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(-1, 2, (rows, columns), generator=generator).float()
    plus, minus = torch.rand(2, rows, 1, generator=generator) + 0.1
    dense = torch.where(signs > 0, plus, signs * minus)
    packed = TernaryWeight.pack(dense)
    assert torch.equal(packed.unpack(), dense)
    assert torch.equal(packed.signs().float(), signs)


def test_one_scale_stays_one() -> None:
    assert TernaryWeight.pack(torch.tensor([[2.0, -2, 0], [0, 3, 3], [0, 0, -4]])).scale_minus is None
    both = TernaryWeight.pack(torch.tensor([[2.0, -1, 0], [0, 3, 3], [0, 0, 0]]))
    assert both.scale.tolist() == [2, 3, 1]
    assert both.scale_minus.tolist() == [1, 3, 1]
    with pytest.raises(ValueError, match="row 1 holds more than one magnitude of a sign"):
        TernaryWeight.pack(torch.tensor([[1.0, -1], [2, 1]]))


def test_parts_add_up_and_have_each_one_once() -> None:
    whole = weight((6, 5, 3, 3))
    plus, minus = whole.parts()
    assert torch.equal(plus.unpack() + minus.unpack(), whole.unpack())
    assert plus.counts[0] == minus.counts[2] == 0
    assert (minus.counts[0], plus.counts[2]) == (whole.counts[0], whole.counts[2])
    assert whole.parts()[0] is plus
    assert whole.nbytes == 6 * 12 + 2 * 6 * 4
    with pytest.raises(ValueError, match="expected one with a scale_minus"):
        plus.parts()


def test_parts_follow_a_write_and_are_not_copied() -> None:
    whole = weight((4, 9))
    whole.parts()
    whole.packed.zero_()
    for twin in (whole, copy.deepcopy(whole), copy.copy(whole), pickle.loads(pickle.dumps(whole))):
        assert [part.nonzeros for part in twin.parts()] == [0, 0]
    filled = weight((4, 9), seed=1)
    filled.parts()
    twin = copy.deepcopy(filled)
    twin.packed.zero_()
    assert [part.nonzeros for part in twin.parts()] == [0, 0]
    assert all(part.nonzeros for part in filled.parts())


def exact(x: Tensor, dense: Tensor, bias: Tensor, **options: int) -> tuple[Tensor, Tensor]:
    """The result in float64, and a bound for one in float32, whose terms come in any order."""
    conv = F.linear if dense.dim() == 2 else F.conv2d
    args = [t.double() for t in (x, dense, bias)]
    terms = dense[0].numel() + 4
    size = conv(*(t.abs() for t in args), **options)
    return conv(*args, **options), terms * U / (1 - terms * U) * size


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution(groups: int) -> None:
    w, bias, x = weight((8, 6 // groups, 3, 3)), torch.randn(8), torch.randn(2, 6, 9, 7)
    y, bound = exact(x, w.unpack(), bias, stride=2, padding=1, groups=groups)
    assert ((dk.ops.ternary_conv2d(x, w, bias, 2, 1, 1, groups) - y).abs() <= bound).all()
    image = dk.ops.ternary_conv2d(x[0], w, bias, 2, 1, 1, groups)
    assert ((image - y[0]).abs() <= bound[0]).all()


def test_linear_and_its_sub_nets() -> None:
    w, bias, x = weight((8, 11)), torch.randn(8), torch.randn(2, 3, 11)
    y, bound = exact(x, w.unpack(), bias)
    assert ((dk.ops.ternary_linear(x, w, bias) - y).abs() <= bound).all()
    rows, columns = torch.tensor([1, 6, 2]), torch.tensor([0, 3, 10, 4])
    y, bound = exact(x[..., :4], w.unpack()[rows][:, columns], bias[rows])
    part = dk.ops.ternary_linear(x[..., :4], w, bias, in_index=columns, out_index=rows)
    assert ((part - y).abs() <= bound).all()
    narrow = dk.ops.ternary_linear(x[..., :4], w, bias, out_features=5)
    y, bound = exact(x[..., :4], w.unpack()[:5, :4], bias[:5])
    assert ((narrow - y).abs() <= bound).all()


def test_int8_activations() -> None:
    w, x = weight((8, 16)), torch.randint(-127, 128, (4, 16)).float()
    x[:, 0] = 127
    # One step of q is one: nothing is rounded but the sums' scales.
    y, bound = exact(x, w.unpack(), torch.zeros(8))
    assert ((dk.ops.ternary_linear(x, w, activation="int8") - y).abs() <= bound).all()
    conv = weight((8, 16, 1, 1))
    image = dk.ops.ternary_conv2d(x[..., None, None], conv, activation="int8")
    y, bound = exact(x[..., None, None], conv.unpack(), torch.zeros(8))
    assert ((image - y).abs() <= bound).all()


def test_gradients_reach_the_input() -> None:
    w = weight((5, 4, 3, 3))
    x = torch.randn(1, 4, 6, 6, requires_grad=True)
    dk.ops.ternary_conv2d(x, w).sum().backward()
    expected = torch.zeros_like(x, requires_grad=True)
    F.conv2d(expected, w.unpack()).sum().backward()
    assert torch.allclose(x.grad, expected.grad, rtol=1e-5, atol=1e-5)


def test_modules_copies_and_dtypes() -> None:
    layer = PackedTernaryLinear(weight((3, 7)))
    x = torch.randn(2, 7)
    y = layer(x)
    assert set(layer.state_dict()) == {"packed", "scale", "scale_minus"}
    assert torch.equal(copy.deepcopy(layer).half().float()(x), y)
    other = PackedTernaryLinear(weight((3, 7), seed=5))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)
    with torch.no_grad():
        layer.scale_minus.zero_()
    assert torch.equal(layer.weight.parts()[1].unpack(), torch.zeros(3, 7))
    bad = {**other.state_dict(), "scale_minus": torch.ones(2)}
    with pytest.raises(RuntimeError, match=r"scale_minus: expected shape \(3,\), got \(2,\)"):
        other.load_state_dict(bad)


def test_counted_compiled_and_exported() -> None:
    net = torch.nn.Sequential(PackedTernaryConv2d(weight((4, 3, 3, 3))), torch.nn.ReLU())
    x = torch.randn(2, 3, 6, 6)
    assert dk.count(net, x[:1]).parameters == 4 * 27 + 8
    y = net(x)
    assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), y)
    assert torch.equal(torch.export.export(net, (x,)).module()(x), y)


@pytest.mark.parametrize(
    ("scale", "minus", "error", "message"),
    [
        (None, torch.ones(3), ValueError, "scale_minus: expected none beside a scale of none"),
        (torch.ones(3), torch.ones(2), ValueError, r"scale_minus: expected shape \(3,\)"),
        (torch.ones(3), torch.ones(3).double(), TypeError, "scale_minus: expected a float32 tensor"),
        (torch.ones(3), torch.full((3,), float("nan")), ValueError, "scale_minus: expected finite numbers"),
    ],
)
def test_scales_that_do_not_fit(scale: Tensor | None, minus: Tensor, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        TernaryWeight(torch.zeros(3, 2, dtype=torch.uint8), (3, 7), scale, minus)


def test_networks_of_other_packages_are_packed_as_they_are() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 16, 5))
    with torch.no_grad():
        net[0].weight.copy_(weight((4, 3, 3, 3)).unpack())
        net[2].weight.copy_(weight((5, 64)).unpack())
    packed = dk.ternary.pack_values(net)
    assert [type(m) for m in packed] == [PackedTernaryConv2d, torch.nn.Flatten, PackedTernaryLinear]
    assert type(net[0]) is torch.nn.Conv2d
    assert not packed.training
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        y = net.double()(x.double())
        assert (packed(x) - y).abs().max() <= 200 * U * y.abs().max()
        assert (dk.compile(packed, x)(x) - y).abs().max() <= 200 * U * y.abs().max()
    for name, layer in (("0", net[0]), ("2", net[2])):
        assert torch.equal(packed.get_submodule(name).weight.unpack(), layer.weight.float())


def test_what_is_not_ternary_is_named() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    with torch.no_grad():
        net[0].weight.copy_(weight((8, 8)).unpack())
    with pytest.raises(ValueError, match="model: cannot pack layer '1': dense: row 0 holds more than one magnitude"):
        dk.ternary.pack_values(net)
    assert type(dk.ternary.pack_values(net, skip=["1"])[1]) is torch.nn.Linear
    with pytest.raises(ValueError, match="skip: '2' is no module"):
        dk.ternary.pack_values(net, skip=["2"])
    with pytest.raises(ValueError, match="layer '0' has a latent weight; use"):
        dk.ternary.pack_values(dk.ternarize(net, 0.1))
