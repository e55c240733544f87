"""Sub-nets as plain networks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from slim_models import NON_UNIFORM, SAMPLES, assert_same, sample
from torch import nn

from dynkern import subnets as dk
from dynkern.models import mobilenetv2, resnet20
from dynkern.nn import ChannelPad, TernaryConv2d
from dynkern.nn.dynamic import DynamicModule
from dynkern.ternary import pack, ternarize


@pytest.mark.parametrize("name", SAMPLES)
def test_only_plain_modules_and_the_network_is_not_touched(name: str) -> None:
    model, x = sample(name)
    net = dk.slim(model, (0.5, 1.0, NON_UNIFORM[name])).eval()
    dk.calibrate_bn(net, [x])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for key in dk.keys(net):
        plain = dk.extract(net, key)
        for module in plain.modules():
            assert not isinstance(module, DynamicModule) or type(module) is ChannelPad
            assert not {"_dynkern", "_dynkern_made", "selection", "slices"} & set(vars(module))
        shared = {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in plain.parameters()}
        assert not shared
        with torch.no_grad():
            for p in plain.parameters():
                p.add_(1)
    assert dk.active(net) == 1.0
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("build", [resnet20, mobilenetv2])
@pytest.mark.parametrize("width", [0.25, 0.5, 0.75, 1.0])
def test_shapes_are_those_of_the_network_built_at_that_width(width: float, build: Callable[..., nn.Module]) -> None:
    plain = dk.extract(dk.slim(build()), width)
    built = build(width=width)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in built.state_dict().items()}
    pads = [m for m in plain.modules() if isinstance(m, ChannelPad)]
    expected = [m for m in built.modules() if isinstance(m, ChannelPad)]
    assert [(m.in_channels, m.out_channels) for m in pads] == [(m.in_channels, m.out_channels) for m in expected]


def test_depthwise_convolutions_have_fewer_groups() -> None:
    net = dk.slim(sample("mobile")[0], (0.5, NON_UNIFORM["mobile"]))
    for key, channels in ((0.5, 8), ("odd", 4)):
        conv = dk.extract(net, key).block[3]
        assert (conv.in_channels, conv.out_channels, conv.groups) == (channels,) * 3
        assert conv.weight.shape == (channels, 1, 3, 3)
        assert conv.padding_mode == "reflect"


def test_training_flags_and_frozen_parameters_are_kept() -> None:
    model, _ = sample("residual")
    model.a.weight.requires_grad_(False)
    model.b_bn.weight.requires_grad_(False)
    net = dk.slim(model, (0.5, 1.0)).train()
    net.b_bn.eval()
    plain = dk.extract(net, 0.5)
    assert not plain.a.weight.requires_grad
    assert plain.a.bias.requires_grad
    assert not plain.b_bn.weight.requires_grad
    assert (plain.training, plain.stem_bn.training, plain.b_bn.training) == (True, True, False)


def test_a_sub_net_without_statistics_is_extracted_as_it_is() -> None:
    net = dk.slim(sample("residual")[0], (0.5, 1.0))
    assert dk.extract(net, 0.5).stem_bn.num_batches_tracked == 0


def test_ternary_layers_become_plain_with_ternary_values() -> None:
    model, x = sample("residual", torch.float32)
    net = dk.slim(ternarize(model, 0.05), (0.5, 1.0)).eval()
    dk.calibrate_bn(net, [x])
    plain = dk.extract(net, 0.5)
    assert type(plain.c) is nn.Conv2d
    assert set(plain.c.weight.unique().tolist()) == {-1.0, 0.0, 1.0}
    dk.select(net, 0.5)
    assert_same(net(x), plain(x), plain)
    assert type(dk.revert(net).c) is TernaryConv2d


def test_layers_made_ternary_after_slim_keep_their_slices_and_stay_ternary_after_revert() -> None:
    model, x = sample("dense", torch.float32)
    net = ternarize(dk.slim(model, (0.5, 1.0)), 0.05, skip=("conv1",)).train()
    dk.select(net, 0.5)
    assert_same(net(x), dk.extract(net, 0.5)(x), net)
    dk.revert(net)
    assert (type(net.conv1), type(net.conv2)) == (nn.Conv2d, TernaryConv2d)
    assert net(x).shape == (3, 3)


def test_packed_sub_nets() -> None:
    model, x = sample("dense", torch.float32)
    net = dk.slim(ternarize(model, 0.05), (0.5, 1.0, NON_UNIFORM["dense"])).eval()
    dk.calibrate_bn(net, [x])
    packed = pack(net)
    for key in dk.keys(packed):
        dk.select(packed, key)
        assert_same(packed(x), dk.extract(net, key)(x), net)
        assert_same(packed(x), dk.extract(packed, key)(x), net)


def test_extracted_network_is_exported_by_torch() -> None:
    model, x = sample("residual", torch.float32)
    net = dk.slim(model, (0.5, 1.0)).eval()
    dk.calibrate_bn(net, [x])
    plain = dk.extract(net, 0.5)
    exported = torch.export.export(plain, (x,), strict=True)
    assert not any("dynkern" in str(node.target) for node in exported.graph.nodes)
    assert_same(exported.module()(x), plain(x), plain)


def test_extracted_network_may_be_made_slim_again() -> None:
    model, x = sample("residual")
    net = dk.slim(model, (0.5, 1.0))
    again = dk.slim(dk.extract(net, 0.5), (0.5, 1.0)).train()
    dk.select(net.train(), 0.5)
    assert_same(again(x), net(x), net)
    assert again.a.slices[0.5].outputs == 2


def test_copy_of_a_part() -> None:
    net = dk.slim(sample("mobile")[0], (0.5, 1.0)).train()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    part = copy.deepcopy(net.block)
    assert_same(dk.extract(part, 1.0)(x), net.block(x), net)
