"""Quantisation-aware training rounds as the engine's integer kernels do."""

from __future__ import annotations

import pytest
import torch
from test_fused import X, slim
from test_train import images, network
from torch import nn

import dynkern as dk
from dynkern.aware import rounded_input, rounded_weight
from dynkern.data import Stream, batches
from dynkern.engine.quantized import element_of
from dynkern.engine.quantized_weight import QuantizedWeight
from dynkern.nn import SlicedConv2d
from dynkern.train import Recipe, fit, fused


@pytest.mark.parametrize("bits", [8, 16])
def test_weights_are_rounded_as_the_engine_does(bits: int) -> None:
    weight = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rounded = rounded_weight(weight, bits)
    stored = QuantizedWeight.from_float(weight.detach(), bits)
    on_grid = (stored.values * stored.scale.view(-1, 1, 1, 1)).float()
    torch.testing.assert_close(rounded.detach(), on_grid, rtol=0, atol=1e-6)
    assert (rounded - weight).abs().max().item() <= stored.scale.max().item() * 0.501
    rounded.square().sum().backward()
    torch.testing.assert_close(weight.grad, 2 * rounded.detach())


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_inputs_are_rounded_to_the_engines_element(bits: int, low: float) -> None:
    x = torch.linspace(low, 3, 1001).view(1, 1, 7, 143)
    element = element_of((low, 3.0), bits)
    y = rounded_input(x, bits)
    units = y.double() / element.scale
    assert float((units - units.round()).abs().max()) < (1e-3 if bits == 8 else 0.1)
    assert float((y - x).abs().max()) <= element.scale * 0.51
    assert len(y.unique()) <= (256 if bits == 8 else 1001)
    leaf = x.clone().requires_grad_()
    (rounded_input(leaf, bits) * 3).sum().backward()
    assert bool((leaf.grad == 3).all())


def test_the_network_is_as_before_afterwards() -> None:
    net = slim().float().eval()
    dk.calibrate_bn(net, [X.float()])
    x = X.float()
    with torch.no_grad():
        before = net(x)
        with dk.quantize.aware(net, 8):
            inside = net(x)
            with dk.quantize.aware(nn.Sequential(dk.slim(network(), (1.0,)))):
                pass
        assert torch.equal(net(x), before)
    assert not torch.equal(inside, before)
    assert float((inside - before).abs().max()) < 0.1 * float(before.abs().max())
    assert type(net[0]) is SlicedConv2d
    assert "bits" not in vars(net[0])


def test_training_with_it_runs_on_the_integer_kernels() -> None:
    data = images(48)
    net = slim().float()
    fit(net, Stream(data, batch=8), Recipe(epochs=6, lr=0.05, precision="float32"), step=fused())
    with dk.quantize.aware(net, 8):
        fit(net, Stream(data, batch=8), Recipe(epochs=2, lr=0.01, precision="float32"), step=fused())
    net.eval()
    x, y = next(iter(batches(data.images, data.labels, 48)))
    run = dk.compile(net, x, int8=dk.quantize.calibrate(net, [x]))
    for key in dk.subnets.keys(net):
        with dk.using(net, key), torch.no_grad():
            expected = net(x)
        got = run(x, subnet=key)
        assert float((got - expected).abs().max()) < 0.1 * float(expected.abs().max())
        assert float((got.argmax(1) == expected.argmax(1)).float().mean()) > 0.9
    assert float((run(x, subnet=1.0).argmax(1) == y).float().mean()) > 0.6


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="bits"), dk.quantize.aware(slim(), 4):
        pass
    with pytest.raises(ValueError, match="slim network"), dk.quantize.aware(network()):
        pass
