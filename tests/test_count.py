from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dynkern import models, ternary
from dynkern.count import Count, LayerCount, count
from dynkern.nn.batchnorm import SwitchableBatchNorm2d
from dynkern.nn.channel_pad import ChannelPad
from dynkern.nn.selection import Selection, Slice
from dynkern.nn.sliced import SlicedConv2d, SlicedLinear
from dynkern.subnets import slim

CIFAR = (1, 3, 32, 32)


def plain(net: nn.Module, input: Any) -> Count:
    found = count(net, input)
    assert isinstance(found, Count)
    return found


# Weights and MACs of table 3 of Yang & Fan (there in 10^4 and 10^6), without batch norms.
RESNET20 = {
    0.25: (16_982, 2_617_504),
    0.5: (67_362, 10_248_512),
    0.75: (151_150, 22_893_024),
    1.0: (268_346, 40_551_040),
}


@pytest.mark.parametrize("width", RESNET20)
def test_resnet20(width: float) -> None:
    found = plain(models.resnet20(width=width), CIFAR)
    assert (found.weights, found.macs) == RESNET20[width]
    assert found.parameters == found.weights + 1376 * width


def test_resnet20_with_a_projection_in_every_block() -> None:
    found = plain(models.resnet20(shortcut="proj_all"), CIFAR)
    assert (found.weights, round(found.macs / 1e6, 2)) == (281_914, 42.65)


# Tables 2 and 4: parameters with batch norms, in 10^6, and MACs in 10^8.
@pytest.mark.parametrize(
    ("width", "parameters", "macs"),
    [(0.25, 0.831, 1.356), (0.5, 3.056, 4.831), (0.75, 6.675, 10.426), (1.0, 11.690, 18.141)],
)
def test_resnet18(width: float, parameters: float, macs: float) -> None:
    found = plain(models.resnet18(width=width), (1, 3, 224, 224))
    assert round(found.parameters / 1e6, 3) == parameters
    assert round(found.macs / 1e8, 3) == macs


@pytest.mark.parametrize(("width", "parameters"), [(0.25, 1.994), (0.5, 6.918), (0.75, 14.772), (1.0, 25.557)])
def test_resnet50(width: float, parameters: float) -> None:
    found = plain(models.resnet50(width=width), (1, 3, 32, 32))
    assert round(found.parameters / 1e6, 3) == parameters


# torchvision's own table says 0.30 GMACs and 3,504,872 parameters.
def test_mobilenetv2() -> None:
    found = plain(models.mobilenetv2(), (1, 3, 224, 224))
    assert (found.parameters, found.macs) == (3_504_872, 300_774_272)


@pytest.mark.parametrize(("inflate", "parameters"), [(1, 175_406), (5, 4_338_030)])
def test_resnet_binary(inflate: int, parameters: int) -> None:
    assert plain(models.resnet_binary(inflate=inflate), CIFAR).parameters == parameters


@pytest.mark.parametrize("name", models.names())
def test_against_the_counter_of_torch(name: str) -> None:
    net = models.build(name, **({"inflate": 1} if name == "resnet_binary" else {"width": 0.25})).eval()
    x = torch.randn(2, 3, 64, 64) if models.MODELS[name].num_classes == 1000 else torch.randn(2, 3, 32, 32)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        net(x)
    found = plain(net, x)
    assert 2 * found.macs == flops.get_total_flops()
    assert found.effective_macs == found.macs
    assert found.parameters == sum(p.numel() for p in net.parameters())


@given(
    dims=st.integers(1, 3),
    transposed=st.booleans(),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    batch=st.sampled_from([None, 1, 3]),
)
def test_convolutions_against_the_counter_of_torch(
    dims: int,
    transposed: bool,
    groups: int,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    dilation: int,
    bias: bool,
    batch: int | None,
) -> None:
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    conv = kind(groups * inputs, groups * outputs, kernel, stride, groups=groups, dilation=dilation, bias=bias)
    x = torch.zeros(*(() if batch is None else (batch,)), groups * inputs, *(7, 6, 5)[:dims])
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        conv(x)
    found = plain(conv, x)
    assert 2 * found.macs == flops.get_total_flops()
    assert found.parameters == found.weights == sum(p.numel() for p in conv.parameters())


def test_linear_on_more_than_rows() -> None:
    found = plain(nn.Linear(5, 7), (2, 3, 4, 5))
    assert (found.parameters, found.weights, found.macs) == (42, 42, 2 * 3 * 4 * 5 * 7)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.again = self.a
        self.unused = nn.Linear(4, 9)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.again(input=self.b(self.a(x))) * self.scale[0]


def test_a_layer_that_runs_twice_and_a_shared_weight() -> None:
    found = plain(Twice(), (1, 4))
    assert found.macs == 3 * 16
    assert found.parameters == sum(p.numel() for p in Twice().parameters())
    assert found.weights == found.parameters - 3
    assert [(layer.name, layer.parameters, layer.weights, layer.macs) for layer in found.layers] == [
        ("", 3, 0, 0),
        ("a", 20, 20, 32),
        ("b", 4, 4, 16),
        ("unused", 45, 45, 0),
    ]


def test_a_weight_that_is_computed() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)))
    found = plain(net, (1, 5))
    assert (found.macs, found.weights) == (15, 18)
    assert found.parameters == sum(p.numel() for p in net.parameters()) == 21


def test_macs_are_those_of_the_whole_batch() -> None:
    net = models.resnet20(width=0.25)
    assert plain(net, (4, 3, 32, 32)).macs == 4 * plain(net, CIFAR).macs
    assert plain(net, torch.randn(4, 3, 32, 32)) == plain(net, torch.Size((4, 3, 32, 32)))
    assert plain(net, [4, 3, 32, 32]) == plain(net, (4, 3, 32, 32))


def test_a_network_of_another_dtype() -> None:
    assert plain(models.resnet20(width=0.25).double(), CIFAR) == plain(models.resnet20(width=0.25), CIFAR)


def test_a_batch_norm_without_statistics() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False))
    assert plain(net, (1, 4)).parameters == 28


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_compiled_network() -> None:
    net = models.resnet20(width=0.25)
    assert plain(torch.compile(net), CIFAR) == plain(net, CIFAR)


def by_hand() -> tuple[nn.Sequential, Selection]:
    """Convolution, batch norm, padding, depthwise convolution, pooling and classifier, by hand."""
    selection = Selection((0.5, "odd", 1.0), 1.0)
    kept = {0.5: 4, "odd": 3, 1.0: 8}
    padded = {0.5: 8, "odd": 5, 1.0: 12}
    odd = torch.tensor([6, 1, 3])
    net = nn.Sequential(
        SlicedConv2d(3, 8, 3, padding=1),
        SwitchableBatchNorm2d(kept, selection),
        ChannelPad(8, 12),
        SlicedConv2d(12, 12, 3, groups=12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        SlicedLinear(12, 5),
    )
    net[0].bind(selection, {k: Slice(3, n, None, odd if k == "odd" else None) for k, n in kept.items()})
    net[2].bind(selection, {k: Slice(kept[k], padded[k]) for k in kept})
    net[3].bind(selection, {k: Slice(n, n) for k, n in padded.items()})
    net[6].bind(selection, {k: Slice(n, 5) for k, n in padded.items()})
    return net, selection


def test_every_sub_net() -> None:
    net, _ = by_hand()
    found = count(net, (1, 3, 6, 6))
    assert isinstance(found, dict)
    assert list(found) == [0.5, "odd", 1.0]
    for key, (kept, padded) in {0.5: (4, 8), "odd": (3, 5), 1.0: (8, 12)}.items():
        rows = [(layer.name, layer.parameters, layer.weights, layer.macs) for layer in found[key].layers]
        assert rows == [
            ("0", kept * 28, kept * 28, kept * 27 * 36),
            ("1", 2 * kept, 0, 0),
            ("3", padded * 10, padded * 10, padded * 9 * 16),
            ("6", padded * 5 + 5, padded * 5 + 5, padded * 5),
        ]


def state(net: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {k: (id(v), v._version, v.clone()) for k, v in net.state_dict(keep_vars=True).items()},
        "training": [m.training for m in net.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()],
        "attributes": [list(vars(m)) for m in net.modules()],
    }


NETWORKS: list[tuple[str, dict[str, str]]] = [
    *((f"resnet{n}", {"shortcut": s}) for n in (20, 32, 44, 56) for s in ("A", "B", "proj_all")),
    *((f"resnet{n}", {"shortcut": s}) for n in (18, 50) for s in ("B", "proj_all")),
    ("mobilenetv2", {}),
]


@pytest.mark.parametrize(("name", "options"), NETWORKS)
def test_sub_nets_count_as_networks_built_narrow(name: str, options: dict[str, str]) -> None:
    widths = (0.25, 0.29, 0.5, 0.75, 1.0)
    shape = CIFAR if models.MODELS[name].num_classes == 10 else (1, 3, 64, 64)
    found = count(slim(models.build(name, **options), widths), shape)
    assert isinstance(found, dict)
    assert tuple(found) == widths
    for width in widths:
        built = plain(models.build(name, width=width, **options), shape)
        for a, b in zip(found[width].layers, built.layers, strict=True):
            assert (a.name, a.parameters, a.weights, a.macs) == (b.name, b.parameters, b.weights, b.macs)


def test_sub_nets_of_resnet20() -> None:
    found = count(slim(models.resnet20(), tuple(RESNET20)), CIFAR)
    assert isinstance(found, dict)
    assert {key: (c.weights, c.macs) for key, c in found.items()} == RESNET20


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training: bool) -> None:
    net, selection = by_hand()
    net.train(training)
    net[0].eval()
    before = state(net)
    random = torch.get_rng_state()
    with selection.using("odd"):
        found = count(net, torch.randn(2, 3, 6, 6))
        assert selection.active() == "odd"
    assert set(found) == {0.5, "odd", 1.0}
    after = state(net)
    torch.set_rng_state(random)
    assert selection.active() == 1.0
    for k, (identity, version, value) in before.pop("tensors").items():
        assert after["tensors"][k][:2] == (identity, version)
        assert torch.equal(after["tensors"][k][2], value)
    after.pop("tensors")
    assert before == after


def test_the_network_is_left_as_it_was_after_an_error() -> None:
    net = models.resnet20(width=0.25)
    before = state(net)
    with pytest.raises(RuntimeError):
        count(net, (1, 4, 32, 32))
    assert before["hooks"] == state(net)["hooks"]
    assert before["training"] == state(net)["training"]


def test_while_the_network_runs_elsewhere() -> None:
    net, _ = by_hand()
    net.train()(torch.randn(4, 3, 6, 6))
    net.eval()
    x = torch.randn(2, 3, 6, 6)
    expected = net(x)
    wrong: list[Tensor] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            y = net(x)
            if not torch.equal(y, expected):
                wrong.append(y)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(20):
            count(net, (1, 3, 6, 6))
    finally:
        stop.set()
        thread.join()
    assert not wrong


def test_a_sliced_layer_without_sub_nets() -> None:
    found = plain(SlicedConv2d(8, 6, 3), (1, 5, 4, 4))
    assert (found.weights, found.macs) == (6 * 5 * 9 + 6, 6 * 5 * 9 * 4)
    found = plain(SlicedConv2d(8, 16, 3, groups=8), (1, 5, 4, 4))
    assert (found.weights, found.macs) == (10 * 9 + 10, 10 * 9 * 4)
    found = plain(SlicedLinear(8, 6, bias=False), (2, 5))
    assert (found.weights, found.macs) == (30, 60)


def test_ternary_layers_skip_their_zeros() -> None:
    conv, linear = nn.Conv2d(2, 3, 1), nn.Linear(12, 4)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([0.9, 0.0, -0.9, 0.05, 0.0, 0.0]).view(3, 2, 1, 1))
        linear.weight.zero_()[0, :5] = 1
    net = ternary.ternarize(nn.Sequential(conv, nn.Flatten(), linear, nn.Linear(4, 2)), 0.1, skip=["3"])
    for found in (plain(net, (2, 2, 2, 2)), plain(ternary.pack(net), (2, 2, 2, 2))):
        rows = [(layer.parameters, layer.weights, layer.macs, layer.effective_macs) for layer in found.layers]
        # Two images of four pixels; 2 of 6 and 5 of 48 weights are left. The last layer is not ternary.
        assert rows == [(9, 9, 48, 16), (52, 52, 96, 10), (10, 10, 16, 16)]
        assert (found.macs, found.effective_macs) == (160, 42)


def test_packed_scales_are_parameters() -> None:
    from dynkern.nn.packed import PackedTernaryLinear
    from dynkern.ops.ternary_weight import TernaryWeight

    weight = TernaryWeight.pack(torch.tensor([[2.0, 0.0, -2.0], [0.0, 0.5, 0.0]]))
    found = plain(PackedTernaryLinear(weight, torch.zeros(2)), (1, 3))
    assert found.layers == (LayerCount("", "PackedTernaryLinear", 10, 8, 6, 3),)


def test_ternary_sub_nets() -> None:
    net, _ = by_hand()
    ternary.ternarize(net, 0.05)
    with torch.no_grad():
        net[0].weight.copy_((torch.arange(8) + 1).view(8, 1, 1, 1).expand(8, 3, 3, 3) > 4)
        net[3].weight.copy_((torch.arange(12) % 2).view(12, 1, 1, 1).expand(12, 1, 3, 3))
    for one in (net, ternary.pack(net)):
        found = count(one, (1, 3, 6, 6))
        assert isinstance(found, dict)
        first = {key: c.layers[0].effective_macs // (27 * 36) for key, c in found.items()}
        # Rows 4 to 7 are not zero: none of the first four, one of 6, 1 and 3, four of all.
        assert first == {0.5: 0, "odd": 1, 1.0: 4}
        depthwise = {key: c.layers[2].effective_macs // (9 * 16) for key, c in found.items()}
        assert depthwise == {0.5: 4, "odd": 2, 1.0: 6}


def test_the_table() -> None:
    found = plain(nn.Sequential(nn.Conv2d(3, 1000, 1), nn.Identity(), nn.BatchNorm2d(1000)), (1, 3, 5, 5))
    assert str(found).splitlines() == [
        "layer  kind         parameters  weights    MACs  effective MACs",
        "-----  -----------  ----------  -------  ------  --------------",
        "0      Conv2d            4,000    4,000  75,000          75,000",
        "2      BatchNorm2d       2,000        0       0               0",
        "-----  -----------  ----------  -------  ------  --------------",
        "total                    6,000    4,000  75,000          75,000",
    ]


def test_a_network_without_parameters() -> None:
    assert plain(nn.ReLU(), (1, 2)) == Count(0, 0, 0, 0, ())
    assert str(plain(nn.ReLU(), (1, 2))).splitlines()[-1].split() == ["total", "0", "0", "0", "0"]


def test_a_count_cannot_be_changed() -> None:
    found = plain(nn.Linear(2, 2), (1, 2))
    with pytest.raises(AttributeError):
        found.macs = 0  # type: ignore[misc]


@pytest.mark.parametrize("net", [F.relu, "resnet20", None, nn.Linear])
def test_no_module(net: Any) -> None:
    with pytest.raises(TypeError, match=r"net: expected a torch.nn.Module written in Python, got"):
        count(net, (1, 2))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_module() -> None:
    class Scripted(torch.jit.ScriptModule):
        pass

    with pytest.raises(TypeError, match=r"net: expected a torch.nn.Module written in Python, got Scripted"):
        count(Scripted(), (1, 2))


@pytest.mark.parametrize("input", [None, 3, (), "1,3", (1, 2.0), (1, 0), (1, -1), (True, 2)])
def test_no_input(input: Any) -> None:
    with pytest.raises(TypeError, match="input: expected a tensor, or a shape of integers above 0, got"):
        count(nn.Linear(2, 2), input)


def test_slim_networks_with_different_sub_nets() -> None:
    a, b = SlicedLinear(4, 4), SlicedLinear(4, 4)
    a.bind(Selection((0.5, 1.0)), {0.5: Slice(4, 2), 1.0: Slice(4, 4)})
    b.bind(Selection((1.0,)), {1.0: Slice(4, 4)})
    with pytest.raises(ValueError, match="net: expected one set of sub-nets, got"):
        count(nn.Sequential(a, b), (1, 4))
