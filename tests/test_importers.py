"""Checkpoints in the layouts of others' code, built here from the names that that code gives."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dynkern as dk
from dynkern.models.imagenet import Bottleneck, ImageNetResNet

WIDTHS = (0.25, 0.5, 1.0)


def small() -> ImageNetResNet:
    return ImageNetResNet(Bottleneck, (2, 1, 1, 1), num_classes=5, width=0.25)


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if tensor.dim() == 1 else tensor.normal_(0, 0.1)
        else:
            tensor.fill_(1)
    return net


def their_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of s_resnet.py: a stem, then blocks with a body and perhaps a shortcut, numbered through."""
    blocks = ["layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer4.0"]
    inner = {"conv1": "body.0", "bn1": "body.1", "conv2": "body.3", "bn2": "body.4", "conv3": "body.6", "bn3": "body.7",
             "downsample.0": "shortcut.0", "downsample.1": "shortcut.1"}  # fmt: skip
    found = {}
    for name, value in state.items():
        for ours, theirs in (("conv1", "features.0.0"), ("bn1", "features.0.1"), ("fc", "classifier.0")):
            if name.startswith(ours + "."):
                found["module." + theirs + name.removeprefix(ours)] = value
        for number, block in enumerate(blocks, 1):
            for ours, theirs in inner.items():
                if name.startswith(f"{block}.{ours}."):
                    found[f"module.features.{number}.{theirs}" + name.removeprefix(f"{block}.{ours}")] = value
    assert len(found) == len(state)
    return found


def slim(widths: tuple[float, ...] = WIDTHS) -> nn.Module:
    return dk.slim(small(), widths).eval()


X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def outputs(net: nn.Module, widths: tuple[float, ...]) -> list[Tensor]:
    found = []
    for width in widths:
        with dk.using(net, width), torch.no_grad():
            found.append(net(X))
    return found


@pytest.mark.parametrize("names", ["theirs", "ours"])
def test_slimmable_networks(tmp_path: Path, names: str) -> None:
    source = randomised(slim())
    state = their_names(source.state_dict()) if names == "theirs" else source.state_dict()
    torch.save({"model": state, "optimizer": {}}, tmp_path / "s.pt")
    net = dk.load_slimmable(slim(), tmp_path / "s.pt")
    for a, b in zip(outputs(net, WIDTHS), outputs(source, WIDTHS), strict=True):
        assert torch.equal(a, b)
    # Fewer widths, and in another order.
    part = dk.load_slimmable(slim((1.0, 0.25)), tmp_path / "s.pt")
    for a, b in zip(outputs(part, (0.25, 1.0)), outputs(source, (0.25, 1.0)), strict=True):
        assert torch.equal(a, b)


def test_universally_slimmable_networks(tmp_path: Path) -> None:
    """Scale and shift of the full width, shared by all, and statistics for each."""
    source = randomised(slim())
    state = source.state_dict()
    shared = {}
    for name, value in state.items():
        place, _, part = name.rpartition(".")
        if ".bn." not in f".{name}" or part not in ("weight", "bias"):
            shared[name] = value
        elif place.endswith(".2"):  # the full width's
            shared[f"{place.removesuffix('.bn.2')}.{part}"] = value
    for name, value in state.items():
        place, _, part = name.rpartition(".")
        if ".bn." in f".{name}" and part in ("weight", "bias"):
            value.copy_(shared[f"{place.rpartition('.bn.')[0]}.{part}"][: len(value)])
    torch.save(their_names(shared), tmp_path / "us.pt")
    net = dk.load_slimmable(slim(), tmp_path / "us.pt")
    for a, b in zip(outputs(net, WIDTHS), outputs(source, WIDTHS), strict=True):
        assert torch.equal(a, b)


def test_what_does_not_fit(tmp_path: Path) -> None:
    source = randomised(slim())
    path = tmp_path / "s.pt"
    torch.save(source.state_dict(), path)
    net = slim((0.75, 1.0))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"no width has the channels of sub-net 0\.75"):
        dk.load_slimmable(net, path)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match="expected a slim network"):
        dk.load_slimmable(small(), path)
    torch.save(small().state_dict(), path)
    with pytest.raises(ValueError, match=r"statistics for each width under bn\.0"):
        dk.load_slimmable(slim(), path)
    state = their_names(source.state_dict())
    state["module.features.9.body.0.weight"] = torch.zeros(1)
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"it has 'features\.9\.body\.0\.weight'"):
        dk.load_slimmable(slim(), path)
    state = their_names(source.state_dict())
    del state["module.classifier.0.bias"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"missing: fc\.bias"):
        dk.load_slimmable(slim(), path)
    with pytest.raises(FileNotFoundError):
        dk.load_slimmable(slim(), tmp_path / "none.pt")


def batch_norm(name: str, channels: int) -> dict[str, Tensor]:
    parts = {f"{name}.{part}": torch.rand(channels) + 0.5 for part in ("weight", "bias", "running_mean", "running_var")}
    return {**parts, f"{name}.num_batches_tracked": torch.tensor(3)}


def test_akamasters_resnets(tmp_path: Path) -> None:
    """resnet20 of pytorch_resnet_cifar10, option A, saved from DataParallel."""
    state = {"conv1.weight": torch.randn(16, 3, 3, 3), **batch_norm("bn1", 16)}
    inputs = 16
    for stage, channels in enumerate((16, 32, 64), 1):
        for block in range(3):
            place = f"layer{stage}.{block}"
            state[f"{place}.conv1.weight"] = torch.randn(channels, inputs, 3, 3)
            state.update(batch_norm(f"{place}.bn1", channels))
            state[f"{place}.conv2.weight"] = torch.randn(channels, channels, 3, 3)
            state.update(batch_norm(f"{place}.bn2", channels))
            inputs = channels
    state.update({"linear.weight": torch.randn(10, 64), "linear.bias": torch.randn(10)})
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "best_prec1": 91.0}, tmp_path / "a.th")
    net = dk.load_checkpoint(dk.models.resnet20(), tmp_path / "a.th")
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(("build", "blocks", "expansion"), [
    (dk.models.resnet18, (2, 2, 2, 2), 1), (dk.models.resnet50, (3, 4, 6, 3), 4),
])  # fmt: skip
def test_torchvisions_resnets(tmp_path: Path, build, blocks: tuple[int, ...], expansion: int) -> None:
    state = {"conv1.weight": torch.randn(64, 3, 7, 7), **batch_norm("bn1", 64)}
    inputs = 64
    for stage, (count, middle) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), 1):
        outputs = middle * expansion
        for block in range(count):
            place = f"layer{stage}.{block}"
            shapes = [(middle, inputs, 3), (outputs, middle, 3)] if expansion == 1 else [
                (middle, inputs, 1), (middle, middle, 3), (outputs, middle, 1)
            ]  # fmt: skip
            for i, (o, c, k) in enumerate(shapes, 1):
                state[f"{place}.conv{i}.weight"] = torch.randn(o, c, k, k)
                state.update(batch_norm(f"{place}.bn{i}", o))
            if block == 0 and (stage > 1 or inputs != outputs):
                state[f"{place}.downsample.0.weight"] = torch.randn(outputs, inputs, 1, 1)
                state.update(batch_norm(f"{place}.downsample.1", outputs))
            inputs = outputs
    state.update({"fc.weight": torch.randn(1000, inputs), "fc.bias": torch.randn(1000)})
    torch.save(state, tmp_path / "t.pth")
    net = dk.load_checkpoint(build(), tmp_path / "t.pth")
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
