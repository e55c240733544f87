"""Zeros, bits and bytes of ternary networks, and the histogram of their latent weights."""

from __future__ import annotations

import math

import pytest
import torch
from ternary_models import equation_5, network
from torch import nn

from dynkern import ternary
from dynkern.nn.packed import PackedTernaryLinear
from dynkern.nn.ternary import TernaryLinear
from dynkern.ops import TernaryWeight
from dynkern.ternary import Counts


@pytest.mark.parametrize(
    ("zeros", "bits"),
    # The shares of zeros of Dordoni et al. (tables 1 and 2), and what their entropies come to.
    [(0.8975, 0.5794), (0.8425, 0.7858), (0.4411, 1.5489), (0.0, 1.0)],
)
def test_entropy_of_the_papers_networks(zeros: float, bits: float) -> None:
    weights = 20_000
    ones = round(weights * (1 - zeros) / 2)
    weight = torch.zeros(1, weights)
    weight[0, :ones] = 1
    weight[0, ones : 2 * ones] = -1
    layer = PackedTernaryLinear(TernaryWeight.pack(weight))
    total = ternary.report(layer).total
    assert total.counts == Counts(ones, weights - 2 * ones, ones)
    assert total.counts.sparsity == zeros
    assert total.counts.entropy == pytest.approx(bits, abs=5e-5)
    assert total.packed_bytes == weights / 4
    assert total.float_bytes == weights * 4
    p = (1 - zeros) / 2
    exact = -sum(q * math.log2(q) for q in (p, zeros, p) if q)
    assert total.coded_bytes == math.ceil(weights * exact / 8 - 1e-9)


def test_report_of_latent_and_packed_is_the_same_and_adds_up() -> None:
    net = ternary.ternarize(network(), 0.05, skip=["0"])
    found = ternary.report(net)
    assert [layer.name for layer in found.layers] == ["3.0", "5"]
    assert found == ternary.report(ternary.pack(net))
    assert found.total.counts == ternary.stats(net).total
    # Rows of 9 weights take three bytes, rows of 288 take 72.
    assert found.total.packed_bytes == 8 * 3 + 10 * 72
    assert found.total.coded_bytes == sum(layer.coded_bytes for layer in found.layers)
    text = str(found)
    assert [line.split()[0] for line in text.splitlines()] == ["layer", "3.0", "5", "total"]
    assert f"{found.total.counts.sparsity:.2%}" in text


def test_scales_are_counted() -> None:
    one, two = (ternary.ternarize(nn.Linear(8, 3, bias=False), scheme=s) for s in ("twn", "ttq"))
    assert ternary.report(one).total.packed_bytes == 3 * 2 + 3 * 4
    assert ternary.report(two).total.packed_bytes == 3 * 2 + 2 * 3 * 4
    assert ternary.report(two).total.coded_bytes > 2 * 3 * 4


def test_histogram_by_hand() -> None:
    layer = TernaryLinear(8, 1, bias=False, delta=0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, -0.6, -0.5, -0.1, 0.0, 0.49, 0.51, 1.7]]))
    found = ternary.histogram(layer, 4)
    assert found.edges == (-1, -0.5, 0, 0.5, 1)
    assert found.weights == (2, 2, 2, 2)
    assert found.counts == Counts(2, 4, 2)
    assert found.to_dict()["counts"] == {"minus": 2, "zero": 4, "plus": 2}


def test_histogram_counts_every_weight() -> None:
    net = ternary.ternarize(network(), 0.05)
    found = ternary.histogram(net)
    assert sum(found.weights) == ternary.stats(net).total.weights
    inside = sum(n for n, left in zip(found.weights, found.edges, strict=False) if -0.05 <= round(left, 9) < 0.05)
    # No weight lies on an edge.
    assert inside == sum(int((equation_5(m.weight, 0.05) == 0).sum()) for m in net.modules() if hasattr(m, "threshold"))


def test_what_has_no_ternary_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="net: expected ternary layers"):
        ternary.report(network())
    with pytest.raises(ValueError, match="net: expected ternary layers with latent weights"):
        ternary.histogram(ternary.pack(ternary.ternarize(network(), 0.1)))
    for wrong in ({"bins": 0}, {"low": 1.0}, {"high": math.nan}):
        with pytest.raises(ValueError, match="bins: expected 1 or more"):
            ternary.histogram(ternary.ternarize(network(), 0.1), **wrong)
