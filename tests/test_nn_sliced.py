"""The dynamic modules by themselves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from slim_models import assert_same
from torch import Tensor, nn

from dynkern.nn import (
    ChannelPad,
    Selection,
    Slice,
    SlicedConv2d,
    SlicedLinear,
    SwitchableBatchNorm1d,
    SwitchableBatchNorm2d,
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"groups": 2},
        {"padding": (1, 2), "padding_mode": "circular"},
    ],
)
def test_conv_without_sub_nets_is_torch_conv(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, **options)
    sliced = SlicedConv2d(4, 6, 3, **options)
    sliced.load_state_dict(plain.state_dict())
    assert sliced.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 4, 7, 8)
    assert_same(sliced(x), plain(x), plain)
    assert_same(sliced(x[0]), plain(x[0]), plain)


def test_linear_without_sub_nets_is_torch_linear() -> None:
    torch.manual_seed(0)
    plain, sliced = nn.Linear(5, 3), SlicedLinear(5, 3)
    sliced.load_state_dict(plain.state_dict())
    for shape in ((5,), (2, 5), (2, 4, 5)):
        x = torch.randn(shape)
        assert_same(sliced(x), plain(x), plain)


def test_without_sub_nets_a_narrow_argument_takes_the_first_inputs() -> None:
    torch.manual_seed(0)
    conv, linear = SlicedConv2d(4, 6, 3), SlicedLinear(5, 3)
    x, v = torch.randn(2, 3, 7, 8), torch.randn(2, 2)
    assert_same(conv(x), F.conv2d(x, conv.weight[:, :3], conv.bias), conv)
    assert_same(linear(v), F.linear(v, linear.weight[:, :2], linear.bias), linear)


@pytest.mark.parametrize(
    "s",
    [
        Slice(4, 6),
        Slice(2, 3),
        Slice(2, 3, torch.tensor([3, 0])),
        Slice(2, 3, None, torch.tensor([5, 1, 2])),
        Slice(3, 2, torch.tensor([3, 0, 2]), torch.tensor([0, 4])),
    ],
)
def test_slices_of_conv_and_linear(s: Slice) -> None:
    torch.manual_seed(0)
    selection = Selection((1.0, "part"))
    conv, linear = SlicedConv2d(4, 6, 3), SlicedLinear(4, 6)
    slices = {1.0: Slice(4, 6), "part": s}
    x, v = torch.randn(2, s.inputs, 7, 8), torch.randn(2, s.inputs)
    for layer, f, y in ((conv, F.conv2d, x), (linear, F.linear, v)):
        layer.bind(selection, slices)
        expected = f(y, layer.weight[s.rows][:, s.columns], layer.bias[s.rows])
        assert_same(layer(y), expected, layer)
        assert_same(layer.plain("part")(y), expected, layer)


def test_slices_of_a_depthwise_conv() -> None:
    torch.manual_seed(0)
    selection = Selection((0.5, "part"))
    conv = SlicedConv2d(6, 6, 3, groups=6)
    index = torch.tensor([4, 1])
    conv.bind(selection, {0.5: Slice(3, 3), "part": Slice(2, 2, index, index)})
    for key, rows in ((0.5, torch.arange(3)), ("part", index)):
        selection.select(key)
        x = torch.randn(2, len(rows), 5, 5)
        expected = F.conv2d(x, conv.weight[rows], conv.bias[rows], groups=len(rows))
        assert_same(conv(x), expected, conv)
        assert_same(conv.plain(key)(x), expected, conv)


def test_bind_needs_every_sub_net() -> None:
    with pytest.raises(ValueError, match=r"slices: expected one per sub-net, none for \['0.5'\]"):
        SlicedLinear(2, 2).bind(Selection((0.5, 1.0)), {1.0: Slice(2, 2)})


def test_a_sub_class_may_have_a_weight_of_its_own() -> None:
    class Doubled(SlicedConv2d):
        def effective_weight(self) -> Tensor:
            return self.weight * 2

    torch.manual_seed(0)
    conv = Doubled(3, 4, 1)
    conv.bind(Selection((0.5,)), {0.5: Slice(2, 2)})
    x = torch.randn(1, 2, 3, 3)
    expected = F.conv2d(x, 2 * conv.weight[:2, :2], conv.bias[:2])
    assert_same(conv(x), expected, conv)
    assert_same(conv.plain(0.5)(x), expected, conv)


@pytest.mark.parametrize(("inputs", "outputs", "first"), [(4, 4, 0), (4, 9, 2), (4, 10, 3), (1, 2, 0)])
def test_channel_pad(inputs: int, outputs: int, first: int) -> None:
    for shape in ((2, inputs), (2, inputs, 3), (2, inputs, 3, 4)):
        x = torch.randn(shape)
        y = ChannelPad(inputs, outputs)(x)
        assert y.shape == (2, outputs, *shape[2:])
        assert torch.equal(y[:, first : first + inputs], x)
        assert y.count_nonzero() == x.count_nonzero()


def test_channel_pad_is_centred_in_every_sub_net() -> None:
    pad = ChannelPad(16, 32)
    pad.bind(Selection((0.25,)), {0.25: Slice(4, 9)})
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(pad(x)[:, 2:6], x)
    assert pad(x).shape[1] == 9


@pytest.mark.parametrize(
    ("x", "says"), [(torch.ones(2, 3, 4, 4), "expected 4 channels, got 3"), (torch.ones(4), r"\(N, C, ...\), got")]
)
def test_channel_pad_refuses_other_arguments(x: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ChannelPad(4, 8)(x)


def norms() -> tuple[SwitchableBatchNorm2d, Selection]:
    selection = Selection((0.5, 1.0))
    return SwitchableBatchNorm2d({0.5: 3, 1.0: 6}, selection), selection


def test_each_sub_net_has_statistics_and_parameters_of_its_own() -> None:
    torch.manual_seed(0)
    bn, selection = norms()
    assert [k for k in bn.state_dict() if "weight" in k] == ["bn.0.weight", "bn.1.weight"]
    plain = {0.5: nn.BatchNorm2d(3), 1.0: nn.BatchNorm2d(6)}
    for key, c in ((0.5, 3), (1.0, 6), (0.5, 3)):
        selection.select(key)
        x = torch.randn(4, c, 3, 3) + 5
        assert torch.equal(bn(x), plain[key](x))
    bn.eval()
    for key, c in ((0.5, 3), (1.0, 6)):
        selection.select(key)
        x = torch.randn(4, c, 3, 3)
        assert torch.equal(bn(x), plain[key].eval()(x))
    assert bn.member(0.5).num_batches_tracked == 2


@pytest.mark.parametrize("kind", [SwitchableBatchNorm1d, SwitchableBatchNorm2d])
def test_sub_net_without_statistics_raises_in_eval_mode(kind: Any) -> None:
    selection = Selection((0.5, 1.0))
    bn = kind({0.5: 3, 1.0: 6}, selection)
    x = torch.randn((4, 3) if kind is SwitchableBatchNorm1d else (4, 3, 2, 2))
    selection.select(0.5)
    bn(x)
    bn.eval()
    bn(x)
    selection.select(1.0)
    with pytest.raises(RuntimeError, match=r"no statistics for sub-net 1.0: run dynkern.calibrate_bn\(net, loader\)"):
        bn(torch.cat([x, x], 1))


def test_statistics_are_noticed_however_they_come_and_go() -> None:
    bn, selection = norms()
    selection.select(0.5)
    x = torch.randn(4, 3, 2, 2)
    full = copy.deepcopy(bn)
    full(x)
    bn.eval()
    empty = copy.deepcopy(bn.state_dict())
    for fill in (
        lambda: bn.load_state_dict(full.state_dict()),
        lambda: nn.Sequential(bn).load_state_dict(nn.Sequential(full).state_dict()),
        lambda: bn.bn[0].load_state_dict(full.bn[0].state_dict()),
        lambda: bn.member(0.5).num_batches_tracked.fill_(1),
    ):
        bn.load_state_dict(empty)
        with pytest.raises(RuntimeError, match="no statistics"):
            bn(x)
        fill()
        bn(x)


def test_the_check_reads_no_tensor_once_statistics_were_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    bn, selection = norms()
    selection.select(0.5)
    x = torch.randn(4, 3, 2, 2)
    bn(x)
    bn.eval()
    monkeypatch.setattr("dynkern.nn.batchnorm.filled", lambda _: pytest.fail("read the statistics again"))
    bn(x)


@pytest.mark.parametrize(
    "options", [{"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1, "momentum": 0.5}]
)
def test_options_of_batch_norm(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    selection = Selection((0.5, 1.0))
    x = torch.randn(4, 3, 2, 2) * 2 + 1
    source = nn.BatchNorm2d(6, **options)
    slices = {0.5: torch.tensor([4, 0, 2]), 1.0: slice(0, 6)}
    for bn in (
        SwitchableBatchNorm2d({0.5: 3, 1.0: 6}, selection, **options),
        SwitchableBatchNorm2d.around(source, slices, selection, (1.0,)),
    ):
        selection.select(0.5)
        plain = nn.BatchNorm2d(3, **options)
        if options == {"track_running_stats": False}:
            assert torch.equal(bn.eval()(x), plain.eval()(x))
        for training in (True, True, False):
            assert torch.equal(bn.train(training)(x), plain.train(training)(x))


def test_around_takes_the_affine_parameters_of_the_active_channels() -> None:
    source = nn.BatchNorm2d(6, dtype=torch.float64)
    nn.init.normal_(source.weight)
    nn.init.normal_(source.bias).requires_grad_(False)
    index = torch.tensor([4, 0])
    bn = SwitchableBatchNorm2d.around(source, {0.5: index, "a": slice(0, 3)}, Selection((0.5, "a")))
    assert bn.full is source
    assert bn.original is source
    for key, where in ((0.5, index), ("a", slice(0, 3))):
        member = bn.member(key)
        assert torch.equal(member.weight, source.weight[where])
        assert torch.equal(member.bias, source.bias[where])
        assert member.weight.requires_grad
        assert not member.bias.requires_grad
        assert member.running_var.dtype == torch.float64


def test_batch_norm_needs_every_sub_net() -> None:
    with pytest.raises(ValueError, match=r"num_features: expected one entry per sub-net \[0.5, 1.0\], got \[0.5\]"):
        SwitchableBatchNorm2d({0.5: 3}, Selection((0.5, 1.0)))
