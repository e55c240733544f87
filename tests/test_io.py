"""Networks on disk: what comes back is what was saved, and a failing write leaves the old file."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from io_networks import (
    Net,
    assert_equal_networks,
    latent,
    makers,
    names,
    packed,
    plain_like,
    slimmed,
    used,
)
from safetensors import safe_open
from torch import Tensor, nn

from dynkern import tensorfile, ternary
from dynkern.io import load, save
from dynkern.nn.packed import PackedTernary
from dynkern.nn.ternary import TernaryConv2d, TernaryLinear
from dynkern.subnets import SubNet, made, select, slim
from dynkern.ternary import Growth

# What comes back.


@pytest.mark.parametrize("make", makers, ids=names)
def test_the_plain_architecture_becomes_the_saved_network(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    net = make()
    save(net, tmp_path / "net.safetensors")
    model = plain_like(net)
    assert load(model, tmp_path / "net.safetensors") is model
    assert not any(m.training for m in model.modules())
    assert_equal_networks(model, net)


@pytest.mark.parametrize("make", makers, ids=names)
def test_a_converted_network_takes_the_file_too(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    net, other = make(), make()
    save(net, str(tmp_path / "net.safetensors"))
    assert_equal_networks(load(other, str(tmp_path / "net.safetensors")), net)


def test_the_selected_sub_net_comes_back(tmp_path: Path) -> None:
    net = slimmed()
    for key in (0.5, "odd", 1.0):
        select(net, key)
        save(net, tmp_path / "net")
        assert load(Net(), tmp_path / "net")._dynkern.current == key


class Branches(nn.Module):
    """A concatenation, which a depthwise convolution passes on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.deep = nn.Conv2d(8, 8, 3, groups=8)
        self.last = nn.Conv2d(8, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.deep(torch.cat([self.a(x), self.b(x)], 1)))


def test_sub_nets_of_index_sets_come_back(tmp_path: Path) -> None:
    net = slim(Branches(), [SubNet("some", {"a": [3, 1], "b": 3}), SubNet("all", {})])
    net = ternary.pack(ternary.ternarize(net, 0.05, skip=["deep"]))
    save(net, tmp_path / "net")
    assert_equal_networks(load(Branches(), tmp_path / "net"), net)


def test_the_arguments_of_slim_come_back(tmp_path: Path) -> None:
    net = slim(Net(), (0.4, SubNet("odd", {"stem": [5, 1]}), 1.0), divisor=4)
    save(net, tmp_path / "net")
    assert made(load(Net(), tmp_path / "net")) == made(net)


def test_a_network_made_slim_by_other_arguments_takes_the_file_if_the_channels_are_the_same(tmp_path: Path) -> None:
    net = used(slim(Net(), (0.5, SubNet("odd", {"stem": [5, 1]})), divisor=4))
    save(net, tmp_path / "net")
    # The two layers are coupled, and half of 8 channels is 4 by any of these divisors.
    model = slim(Net(), (0.5, SubNet("odd", {"block.0": [5, 1]})), divisor=2)
    assert_equal_networks(load(model, tmp_path / "net"), net)
    other = slim(Net(), (SubNet("odd", {"stem": [5, 1]}), 0.5), divisor=4)
    with pytest.raises(ValueError, match="slim already, with other sub-nets"):
        load(other, tmp_path / "net")


def test_training_goes_on_after_loading(tmp_path: Path) -> None:
    net = latent()
    ternary.set_epoch(net, 3)
    save(net, tmp_path / "net")
    model = load(Net(), tmp_path / "net")
    assert isinstance(model.fc, TernaryLinear)
    assert model.fc.delta == pytest.approx(net.fc.delta, rel=1e-7)
    assert model.fc.growth == Growth("linear", delta0=0.05, m=0.5)
    assert ternary.set_epoch(model, 8) == ternary.set_epoch(net, 8)
    assert_equal_networks(model, net)


def test_a_fixed_threshold_stays_fixed(tmp_path: Path) -> None:
    save(ternary.ternarize(Net(), 0.25), tmp_path / "net")
    assert ternary.set_epoch(load(Net(), tmp_path / "net"), 400) == 0.25


def test_packed_files_are_small(tmp_path: Path) -> None:
    net = ternary.ternarize(nn.Sequential(nn.Linear(1024, 1024, bias=False)), 0.01)
    save(ternary.pack(net), tmp_path / "packed")
    size = (tmp_path / "packed").stat().st_size
    assert 1024 * 1024 // 4 < size < 1024 * 1024 // 4 + 1000


def test_dtypes_stay_those_of_the_model(tmp_path: Path) -> None:
    save(packed(), tmp_path / "net")
    model = load(Net().double(), tmp_path / "net")
    assert model.fc.weight.dtype == model.block[0].bias.dtype == torch.float64
    assert model.block[0].packed.dtype == torch.uint8


def test_parameters_of_the_model_stay_the_same_objects(tmp_path: Path) -> None:
    save(latent(), tmp_path / "net")
    model = Net()
    before = [id(p) for p in model.parameters()]
    load(model, tmp_path / "net")
    assert [id(p) for p in model.parameters()] == before


def test_the_loaded_network_does_not_hang_on_the_file(tmp_path: Path) -> None:
    net = packed()
    path = tmp_path / "net"
    save(net, path)
    model = load(Net(), path)
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert_equal_networks(model, net)


def test_what_a_file_holds(tmp_path: Path) -> None:
    net = packed()
    save(net, tmp_path / "net")
    with safe_open(tmp_path / "net", framework="pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(net.state_dict())
        assert torch.equal(file.get_tensor("stem.packed"), net.stem.packed)
    assert metadata.keys() == {"format_version", "dynkern", "net", "crc32"}
    assert metadata["format_version"] == "1"
    assert json.loads(metadata["net"])["packed"] == {"stem": [8, 3, 3, 3], "block.0": [8, 8, 3, 3]}


# Tied tensors.


class Tied(nn.Module):
    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        if tie:
            self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    net = Tied()
    save(net, tmp_path / "net")
    with safe_open(tmp_path / "net", framework="pt") as file:
        assert set(file.keys()) == {"a.weight", "a.bias", "b.bias"}
    model = load(Tied(), tmp_path / "net")
    assert model.a.weight is model.b.weight
    assert torch.equal(model.a.weight, net.a.weight)
    apart = load(Tied(tie=False), tmp_path / "net")
    assert torch.equal(apart.b.weight, net.a.weight)


def test_tied_ternary_weights(tmp_path: Path) -> None:
    net = ternary.ternarize(Tied(), 0.1)
    for number, version in enumerate((net, ternary.pack(net))):
        save(version, tmp_path / str(number))
        x = torch.randn(2, 4)
        assert torch.equal(load(Tied(), tmp_path / str(number))(x), version(x))


def test_a_tied_model_refuses_different_weights(tmp_path: Path) -> None:
    save(Tied(tie=False), tmp_path / "net")
    with pytest.raises(ValueError, match=r"b\.weight: tied to a\.weight in the model, but not in the file"):
        load(Tied(), tmp_path / "net")


def test_a_layer_that_stands_in_two_places(tmp_path: Path) -> None:
    def build() -> nn.Module:
        layer = nn.Linear(4, 4)
        return nn.Sequential(layer, nn.ReLU(), layer)

    net = ternary.pack(ternary.ternarize(build(), 0.1))
    save(net, tmp_path / "net")
    model = load(build(), tmp_path / "net")
    assert model[0] is model[2]
    assert torch.equal(model(torch.eye(4)), net(torch.eye(4)))


def test_views_of_one_storage_and_odd_tensors(tmp_path: Path) -> None:
    class Buffers(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            store = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
            values = {
                "first": store[:4],
                "last": store[2:],
                "turned": store.t(),
                "scalar": store[0, 0],
                "empty": store[:0],
                "none": store[:, :0],
                "flags": store > 0,
                "brief": store.bfloat16(),
                "wide": store.to(torch.complex64),
            }
            for name, value in values.items():
                self.register_buffer(name, value)

    net = Buffers(0)
    save(net, tmp_path / "net")
    model = load(Buffers(1), tmp_path / "net")
    for name, value in net.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


# Writing.


def test_saving_replaces_a_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_bytes(b"old")
    path.chmod(0o640)
    save(packed(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    load(Net(), path)


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save(packed(), tmp_path / "net")
    assert (tmp_path / "net").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    save(packed(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    load(Net(), tmp_path / "real")


def partly(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    Path(path).write_bytes(b"half of a file")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("where", "name", "failure"),
    [
        (tensorfile, "save_file", partly),
        (os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error"))),
        (Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)),
    ],
)
def test_a_failing_write_leaves_the_old_file(
    where: object, name: str, failure: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net"
    old = packed()
    save(old, path)
    before = path.read_bytes()
    monkeypatch.setattr(where, name, failure)
    with pytest.raises((OSError, KeyboardInterrupt)):
        save(packed(), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    assert_equal_networks(load(Net(), path), old)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save(packed(), tmp_path / "none" / "net")
    with pytest.raises(FileNotFoundError):
        load(Net(), tmp_path / "none")


def test_arguments_in_the_wrong_order(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="net: expected a module, got str"):
        save("net", packed())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model: expected a module, got str"):
        load("net", packed())  # type: ignore[type-var]


class WithState(nn.Linear):
    def get_extra_state(self) -> dict:
        return {"a": 1}

    def set_extra_state(self, state: dict) -> None:
        pass


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (WithState(1, 1), "got dict for '_extra_state'"),
        (nn.Linear(2, 2, device="meta"), "meta for 'weight'"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(net: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"net: expected dense tensors with values in its state, .*{message}"):
        save(net, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_sub_nets_that_slim_did_not_make_are_refused(tmp_path: Path) -> None:
    net = slimmed()
    net.fc.bind(net.fc.selection, {**net.fc.slices, 0.5: net.fc.slices["odd"]})
    with pytest.raises(ValueError, match=r"its sub-nets are not what dynkern\.slim makes of it"):
        save(net, tmp_path / "net")


def test_packed_and_latent_layers_are_told_apart() -> None:
    assert any(isinstance(m, PackedTernary) for m in packed().modules())
    assert any(isinstance(m, TernaryConv2d) for m in latent().modules())
