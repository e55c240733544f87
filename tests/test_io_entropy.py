"""The entropy-coded form of files: close to the bound, exact, and refused when damaged."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from io_networks import Net, assert_equal_networks, makers, names, packed, plain_like
from safetensors.torch import save_file
from torch import nn

import dynkern as dk
from dynkern import tensorfile
from dynkern.ops.ternary_weight import TernaryWeight
from dynkern.ternary import coded

pytest.importorskip("constriction")


def random_weight(shape: tuple[int, ...], zeros: float, seed: int = 0) -> TernaryWeight:
    g = torch.Generator().manual_seed(seed)
    signs = torch.where(torch.rand(shape, generator=g) < 0.5, 1, -1)
    return TernaryWeight.pack(torch.where(torch.rand(shape, generator=g) < zeros, 0, signs).to(torch.int8))


def bound(weight: TernaryWeight) -> float:
    """Bits."""
    return weight.entropy * math.prod(weight.shape)


# The code of one weight.

SHAPES = [(1, 1), (2, 3), (16, 3, 3, 3), (3, 1365), (2, 4096), (3, 2731), (80, 80, 3, 3)]  # around ADAPTIVE too


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9, 0.98, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_decoded_is_what_was_coded(shape: tuple[int, ...], zeros: float) -> None:
    weight = random_weight(shape, zeros)
    assert torch.equal(coded.decode(coded.encode(weight), shape), weight.packed)


@pytest.mark.parametrize("kind", ["plus", "minus", "first half", "last", "alternating"])
@pytest.mark.parametrize("shape", [(4, 9), (91, 91)])
def test_weights_that_are_not_random(shape: tuple[int, int], kind: str) -> None:
    rows = torch.zeros(shape, dtype=torch.int8).flatten()
    if kind == "first half":
        rows[: len(rows) // 2] = 1
    elif kind == "last":
        rows[-1] = -1
    elif kind == "alternating":
        rows[::2] = -1
    else:
        rows[:] = 1 if kind == "plus" else -1
    weight = TernaryWeight.pack(rows.reshape(shape))
    assert torch.equal(coded.decode(coded.encode(weight), shape), weight.packed)


@pytest.mark.parametrize("zeros", [0.0, 0.3, 0.5, 0.8, 0.9, 0.95, 0.98])
@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (10, 64), (16, 16, 3, 3), (30, 30, 3, 3), (80, 80, 3, 3)], ids=str)
def test_within_five_percent_of_the_bound_from_400_bits_on(shape: tuple[int, ...], zeros: float) -> None:
    for seed in range(3):
        weight = random_weight(shape, zeros, seed)
        bits, count = 8 * len(coded.encode(weight)), math.prod(shape)
        if count <= coded.ADAPTIVE:
            assert bits <= bound(weight) + math.log2(count) + 10
        if bound(weight) >= (400 if count <= coded.ADAPTIVE else 3500):
            assert bits <= 1.05 * bound(weight)


def test_the_bound_holds_for_the_layers_of_a_network() -> None:
    net = dk.pack(dk.ternarize(dk.models.resnet_binary(inflate=1), delta=0.02))
    layers = [m for m in net.modules() if isinstance(m, dk.nn.PackedTernaryConv2d)]
    assert len(layers) == 15
    for layer in layers:
        assert 8 * len(coded.encode(layer.weight)) <= 1.05 * bound(layer.weight)


def test_the_scale_changes_nothing() -> None:
    weight = random_weight((6, 7), 0.5)
    scaled = TernaryWeight(weight.packed, weight.shape, torch.rand(6) + 0.5)
    assert coded.encode(scaled) == coded.encode(weight)


def test_golden_bytes() -> None:
    # What is on disk must be read by later versions; these bytes were written by the first.
    small = TernaryWeight.pack(torch.tensor([[0, 1, 0, -1, 0, 0], [0, 0, 1, 0, 0, -1]], dtype=torch.int8))
    assert coded.encode(small).hex() == GOLDEN_SMALL
    rows = torch.zeros(3, 3000, dtype=torch.int8)
    rows[:, ::500], rows[1, 7::1000] = 1, -1
    assert coded.encode(TernaryWeight.pack(rows)).hex() == GOLDEN_LARGE


GOLDEN_SMALL = "39c23e"
GOLDEN_LARGE = "934612ff8fdbbaa827e95323f2d9e2fd8c5c6514b941f805a12d95a14cbf7237b6e823"


@pytest.mark.parametrize("shape", [(20, 30), (100, 90)])
def test_damaged_codes_are_another_weight_or_refused(shape: tuple[int, int]) -> None:
    weight = random_weight(shape, 0.9)
    whole = coded.encode(weight)
    variants = [whole[:n] for n in (0, 1, len(whole) // 2, len(whole) - 1)] + [b"\xff" * len(whole), b"\xff" * 40]
    for position in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        variants.append(bytes(changed))
    for data in variants:
        try:
            found = coded.decode(data, shape)
        except ValueError:
            continue
        TernaryWeight(found, shape)
        assert not torch.equal(found, weight.packed)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 11, b"\xff\x7f", b"\xff\xff\xff\x7f\x01abcd"])
def test_counts_that_cannot_be(data: bytes) -> None:
    with pytest.raises(ValueError, match="coded: "):
        coded.decode(data, (100, 90))


# Files.


@pytest.mark.parametrize("make", makers, ids=names)
def test_networks_come_back(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    net = make()
    dk.save(net, tmp_path / "net", codec="entropy")
    assert_equal_networks(dk.load(plain_like(net), tmp_path / "net"), net)


class Twins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(40, 40)
        self.b = nn.Linear(40, 40)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


def test_tied_weights_are_coded_once(tmp_path: Path) -> None:
    net = dk.pack(dk.ternarize(Twins(), 0.1))
    dk.save(net, tmp_path / "net", codec="entropy")
    x = torch.randn(2, 40)
    assert torch.equal(dk.load(Twins(), tmp_path / "net")(x), net(x))


def test_a_file_is_smaller_by_what_the_code_saves(tmp_path: Path) -> None:
    net = dk.pack(dk.ternarize(nn.Sequential(nn.Linear(512, 512, bias=False)), 0.04))
    weight = net[0].weight
    dk.save(net, tmp_path / "2bit")
    dk.save(net, tmp_path / "entropy", codec="entropy")
    saved = (tmp_path / "2bit").stat().st_size - (tmp_path / "entropy").stat().st_size
    assert abs(saved - (512 * 128 - len(coded.encode(weight)))) < 64  # the checksum, padding of the header


def test_flipped_bits_and_missing_ends_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net"
    dk.save(packed(), path, codec="entropy")
    whole = bytearray(path.read_bytes())
    for position in range(0, len(whole), 5):
        whole[position] ^= 1 << position % 8
        path.write_bytes(whole)
        with pytest.raises(ValueError, match="net: "):
            dk.load(Net(), path)
        whole[position] ^= 1 << position % 8
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        dk.load(Net(), path)


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Save a packed network, with ``change`` made to its tensors and description, under a checksum that fits."""
    dk.save(packed(), path, codec="entropy")
    tensors, text = tensorfile.read(path)
    tensors, description = {name: tensor.clone() for name, tensor in tensors.items()}, json.loads(text)
    change(tensors, description)
    metadata = {"format_version": "1", "dynkern": "0", "net": json.dumps(description)}
    save_file(tensors, path, {**metadata, "crc32": tensorfile.checksum(tensors, metadata)})


def _flip(tensors: dict[str, Any], description: dict[str, Any]) -> None:
    tensors["stem.packed"][3] ^= 1


CHANGES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "code": (_flip, "checksum of the decoded weights|coded"),
    "checksum": (lambda t, d: d.update(coded="00000000"), "checksum of the decoded weights"),
    "kind of checksum": (lambda t, d: d.update(coded=7), "description of the net is not understood"),
    "not coded": (lambda t, d: d.pop("coded"), r"stem: packed: expected shape \(8, 7\)"),
    "shape": (lambda t, d: d["packed"].update(stem=[8, 3, 3, 10**9]), r"stem\.packed: expected weights of shape"),
    "layer": (lambda t, d: d["packed"].update({"bn": [8, 3, 3, 3]}), r"'bn\.packed' is missing"),
    "bytes": (lambda t, d: t.update({"stem.packed": t["stem.packed"].float()}), "coded: expected bytes"),
    "missing": (lambda t, d: t.pop("stem.packed"), r"'stem\.packed' is missing"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_contradict_themselves(change: str, tmp_path: Path) -> None:
    rewrite(tmp_path / "net", CHANGES[change][0])
    with pytest.raises(ValueError, match=CHANGES[change][1]) as caught:
        dk.load(Net(), tmp_path / "net")
    assert str(caught.value).startswith(f"{tmp_path / 'net'}: ")


def test_an_unknown_codec() -> None:
    with pytest.raises(ValueError, match="codec: expected one of 2bit, entropy, got 'zip'"):
        dk.save(packed(), "nowhere", codec="zip")  # type: ignore[arg-type]


def test_without_the_coder_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dk.save(packed(), tmp_path / "coded", codec="entropy")
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ImportError, match=r"pip install 'dynkern\[entropy\]'"):
        dk.save(packed(), tmp_path / "net", codec="entropy")
    assert not (tmp_path / "net").exists()
    with pytest.raises(ImportError, match=r"pip install 'dynkern\[entropy\]'"):
        dk.load(Net(), tmp_path / "coded")
    dk.save(packed(), tmp_path / "net")
    dk.load(Net(), tmp_path / "net")
