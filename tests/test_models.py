from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from dynkern import models
from dynkern.models.mobile import InvertedResidual
from dynkern.nn.channel_pad import ChannelPad


def parameters(net: nn.Module, norms: bool = True) -> int:
    """All parameters, or those outside of batch norms."""
    kept = (m for m in net.modules() if norms or not isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)))
    return sum(p.numel() for m in kept for p in m.parameters(recurse=False))


def small(name: str) -> nn.Module:
    """The network, narrow enough for a quick test."""
    return models.build(name, **({"inflate": 1} if name == "resnet_binary" else {"width": 0.125})).eval()


# Table 3 of Yang & Fan (in 10^4), without batch norms.
@pytest.mark.parametrize(("width", "expected"), [(0.25, 16_982), (0.5, 67_362), (0.75, 151_150), (1.0, 268_346)])
def test_resnet20_parameters(width: float, expected: int) -> None:
    assert parameters(models.resnet20(width=width), norms=False) == expected


def test_resnet20_with_a_projection_in_every_block() -> None:
    assert parameters(models.resnet20(shortcut="proj_all"), norms=False) == 281_914


# Tables 2 and 4 of Yang & Fan, batch norms included.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet18", (0.831, 3.056, 6.675, 11.690)), ("resnet50", (1.994, 6.918, 14.772, 25.557))],
)
def test_imagenet_parameters(name: str, millions: tuple[float, ...]) -> None:
    with torch.device("meta"):
        found = [parameters(models.build(name, width=w)) for w in (0.25, 0.5, 0.75, 1.0)]
    assert [round(n / 1e6, 3) for n in found] == list(millions)


def test_imagenet_parameters_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        assert parameters(models.resnet18()) == 11_689_512
        assert parameters(models.resnet50()) == 25_557_032
        assert parameters(models.mobilenetv2()) == 3_504_872


@pytest.mark.parametrize(("inflate", "expected"), [(1, 175_406), (5, 4_338_030)])
def test_resnet_binary_parameters(inflate: int, expected: int) -> None:
    assert parameters(models.resnet_binary(inflate=inflate)) == expected


def test_cifar_names_are_those_of_the_trained_networks() -> None:
    names = [k.rpartition(".")[0] for k in models.resnet20().state_dict()]
    blocks = [f"layer{s}.{b}.{part}" for s in (1, 2, 3) for b in (0, 1, 2) for part in ("conv1", "bn1", "conv2", "bn2")]
    assert list(dict.fromkeys(names)) == ["conv1", "bn1", *blocks, "linear"]
    projected = set(models.resnet20(shortcut="B").state_dict()) - set(models.resnet20().state_dict())
    assert {k.rpartition(".")[0] for k in projected} == {f"layer{s}.0.shortcut.{i}" for s in (2, 3) for i in (0, 1)}


def test_imagenet_names_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        names = dict.fromkeys(k.rpartition(".")[0] for k in models.resnet18().state_dict())
        deep = dict.fromkeys(k.rpartition(".")[0] for k in models.resnet50().state_dict())
    blocks = []
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            blocks += [f"layer{stage}.{block}.{part}" for part in ("conv1", "bn1", "conv2", "bn2")]
            if stage > 1 and block == 0:
                blocks += [f"layer{stage}.0.downsample.{i}" for i in (0, 1)]
    assert list(names) == ["conv1", "bn1", *blocks, "fc"]
    assert list(deep)[2:10] == [
        *(f"layer1.0.{part}{i}" for i in (1, 2, 3) for part in ("conv", "bn")),
        "layer1.0.downsample.0",
        "layer1.0.downsample.1",
    ]


def test_mobilenetv2_names_and_shapes_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in models.mobilenetv2().state_dict().items()}
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    layers = ["features.0.0", "features.0.1"]
    for i in range(1, 18):
        inside = ("0.0", "0.1", "1", "2") if i == 1 else ("0.0", "0.1", "1.0", "1.1", "2", "3")
        layers += [f"features.{i}.conv.{part}" for part in inside]
    layers += ["features.18.0", "features.18.1", "classifier.1"]
    convolutions = layers[:-1:2]
    expected = [f"{n}.{part}" for n in layers[:-1] for part in (("weight",) if n in convolutions else norm)]
    assert list(shapes) == [*expected, "classifier.1.weight", "classifier.1.bias"]
    assert shapes["features.0.0.weight"] == (32, 3, 3, 3)
    assert shapes["features.1.conv.0.0.weight"] == (32, 1, 3, 3)
    assert shapes["features.7.conv.0.0.weight"] == (192, 32, 1, 1)
    assert shapes["features.17.conv.2.weight"] == (320, 960, 1, 1)
    assert shapes["features.18.0.weight"] == (1280, 320, 1, 1)
    assert shapes["classifier.1.weight"] == (1000, 1280)


def test_mobilenetv2_adds_its_input_in_ten_blocks() -> None:
    blocks = [m for m in models.mobilenetv2(width=0.125).modules() if isinstance(m, InvertedResidual)]
    assert [i + 1 for i, block in enumerate(blocks) if block.residual] == [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]
    block, x = blocks[2].eval(), torch.randn(2, 3, 8, 8)
    assert torch.equal(block(x), x + block.conv(x))
    narrow = x.clamp(-1, 1)
    assert torch.equal(blocks[3](narrow), blocks[3].conv(narrow))


@pytest.mark.parametrize(("depth", "blocks"), [(20, 3), (32, 5), (44, 7), (56, 9)])
def test_depth(depth: int, blocks: int) -> None:
    net = models.build(f"resnet{depth}")
    assert [len(stage) for stage in (net.layer1, net.layer2, net.layer3)] == [blocks] * 3
    # Convolutions and the classifier; a shortcut of kind A has none.
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in net.modules()) == depth


def test_shortcut_a_is_that_of_the_trained_networks() -> None:
    shortcut = models.resnet20().layer2[0].shortcut
    x = torch.randn(2, 16, 9, 8)
    assert torch.equal(shortcut(x), F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))
    assert any(isinstance(m, ChannelPad) for m in shortcut)


def test_blocks_compute_their_equation() -> None:
    x = torch.randn(2, 16, 8, 8)
    block = models.resnet20(shortcut="B").layer2[0].eval()
    y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    assert torch.equal(block(x), F.relu(y + block.shortcut[1](block.shortcut[0](x))))

    binary = models.resnet_binary(inflate=1).eval()
    block = binary.layer1[0]
    y = block.conv2(F.hardtanh(block.bn1(block.conv1(x))))
    assert torch.equal(block(x), F.hardtanh(block.bn2(y + x)))
    last = binary.layer3[1]
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(last(x), last.conv2(F.hardtanh(last.bn1(last.conv1(x)))) + x)


def test_projection_in_every_block() -> None:
    net = models.resnet20(shortcut="proj_all")
    assert all(isinstance(b.shortcut[0], nn.Conv2d) for s in (1, 2, 3) for b in getattr(net, f"layer{s}"))
    net = models.resnet18(shortcut="proj_all", width=0.125)
    assert all(b.downsample is not None for s in (1, 2, 3, 4) for b in getattr(net, f"layer{s}"))


@pytest.mark.parametrize("name", models.names())
def test_output(name: str) -> None:
    model = models.MODELS[name]
    y = small(name)(torch.randn(2, *model.input_shape))
    assert y.shape == (2, model.num_classes)
    assert y.isfinite().all()


@pytest.mark.parametrize("name", models.names())
def test_number_of_classes(name: str) -> None:
    options = {"inflate": 1} if name == "resnet_binary" else {"width": 0.125}
    net = models.build(name, num_classes=7, **options).eval()
    assert net(torch.randn(1, *models.MODELS[name].input_shape)).shape == (1, 7)


class Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ChannelPad) or super().is_leaf_module(m, module_qualified_name)


@pytest.mark.parametrize("name", models.names())
def test_fx_traces_it(name: str) -> None:
    net = small(name)
    traced = fx.GraphModule(net, Tracer().trace(net))
    x = torch.randn(2, *models.MODELS[name].input_shape)
    assert torch.equal(traced(x), net(x))


@pytest.mark.parametrize("name", models.names())
def test_it_trains(name: str) -> None:
    net = small(name).train()
    net(torch.randn(2, 3, 32, 32)).square().sum().backward()
    # Unused by definition: the paper's parameter counts include it.
    unused = {"layer3.1.bn2.weight", "layer3.1.bn2.bias"} if name == "resnet_binary" else set()
    assert {k for k, p in net.named_parameters() if p.grad is None} == unused


def test_resnet_binary_starts_as_in_the_paper() -> None:
    net = models.resnet_binary()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.weight[0, 0].numel() * module.out_channels))
            n = module.weight.numel()
            # Five standard errors of a mean and of a standard deviation over n normal numbers.
            assert abs(module.weight.mean()) < 5 * expected / math.sqrt(n)
            assert abs(module.weight.std() / expected - 1) < 5 / math.sqrt(2 * n)


def test_resnet_binary_gives_log_probabilities() -> None:
    y = models.resnet_binary(inflate=1).eval()(torch.randn(3, 3, 32, 32))
    assert torch.allclose(y.exp().sum(1), torch.ones(3), rtol=0, atol=20 * torch.finfo().eps)


# 0.29 * 16 = 4.64, 0.29 * 32 = 9.28, 0.29 * 64 = 18.56; 0.03125 * 16 is a half.
@pytest.mark.parametrize(
    ("width", "channels"),
    [(0.29, (5, 9, 19)), (0.03125, (1, 1, 2)), (0.09375, (2, 3, 6)), (1e-9, (1, 1, 1)), (2, (32, 64, 128))],
)
def test_width_rounds_half_up(width: float, channels: tuple[int, ...]) -> None:
    net = models.resnet20(width=width).eval()
    assert tuple(stage[0].conv1.out_channels for stage in (net.layer1, net.layer2, net.layer3)) == channels
    assert net(torch.randn(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("width", [0, -0.5, math.nan, math.inf])
@pytest.mark.parametrize("name", ["resnet20", "resnet18", "mobilenetv2"])
def test_width_out_of_range(name: str, width: float) -> None:
    with pytest.raises(ValueError, match="width: expected a finite number above 0, got"):
        models.build(name, width=width)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("resnet20", {"width": "1"}, TypeError, "width: expected a number, got str"),
        ("resnet20", {"width": True}, TypeError, "width: expected a number, got bool"),
        ("resnet20", {"shortcut": "C"}, ValueError, r"shortcut: expected one of \['A', 'B', 'proj_all'\], got 'C'"),
        ("resnet18", {"shortcut": "A"}, ValueError, r"shortcut: expected one of \['B', 'proj_all'\], got 'A'"),
        ("resnet50", {"num_classes": 0}, ValueError, "num_classes: expected 1 or more, got 0"),
        ("resnet56", {"num_classes": 2.0}, TypeError, "num_classes: expected an integer, got float"),
        ("mobilenetv2", {"num_classes": 0}, ValueError, "num_classes: expected 1 or more, got 0"),
        ("resnet_binary", {"inflate": 0}, ValueError, "inflate: expected 1 or more, got 0"),
        ("resnet_binary", {"depth": 7}, ValueError, "depth: expected 8 or more, got 7"),
        ("resnet20", {"depth": 7}, TypeError, "depth"),
        ("resnet21", {}, ValueError, r"name: expected one of \['resnet20', .*\], got 'resnet21'"),
    ],
)
def test_bad_option(name: str, options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        models.build(name, **options)
