"""Files that are damaged, of another kind, or do not fit: refused by name, and the model stays as it was."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from io_networks import (
    Net,
    latent,
    packed,
    slimmed,
    used,
)
from safetensors.torch import save_file
from torch import nn

from dynkern import tensorfile, ternary
from dynkern.io import load, save
from dynkern.nn.packed import PackedTernaryConv2d
from dynkern.subnets import select, slim


def assert_refused(path: Path, message: str = "net: ") -> None:
    model = Net()
    before = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=message) as caught:
        load(model, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert model.training
    assert [type(m) for m in model.modules()] == kinds
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_truncated_files(tmp_path: Path) -> None:
    path = tmp_path / "net"
    save(packed(), path)
    whole = path.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    for size in (0, 1, 7, 8, 9, 8 + header // 2, 8 + header - 1, 8 + header, 9 + header, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert_refused(path, "not a whole safetensors file")
    path.write_bytes(whole + b"\0")
    assert_refused(path, "not a whole safetensors file")


def test_flipped_bits_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "net"
    save(packed(), path)
    whole = bytearray(path.read_bytes())
    (header,) = struct.unpack("<Q", whole[:8])
    for position in range(8 + header):
        whole[position] ^= 1 << position % 8
        path.write_bytes(whole)
        assert_refused(path)
        whole[position] ^= 1 << position % 8


def test_flipped_bits_of_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "net"
    save(packed(), path)
    whole = bytearray(path.read_bytes())
    (header,) = struct.unpack("<Q", whole[:8])
    for position in range(8 + header, len(whole), 17):
        whole[position] ^= 1 << position % 8
        path.write_bytes(whole)
        assert_refused(path, "damaged: its checksum does not match")
        whole[position] ^= 1 << position % 8


@pytest.mark.parametrize("content", [b"not a network\n" * 10, b"PK\x03\x04" + bytes(100), bytes(1000), b"\xff" * 1000])
def test_other_kinds_of_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_bytes(content)
    assert_refused(path, "not a whole safetensors file")


def test_a_file_of_torch_save(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "net")
    assert_refused(tmp_path / "net", "not a whole safetensors file")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format_version": "1", "dynkern": "0.1.0"}])
def test_safetensors_of_others(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file(Net().state_dict(), tmp_path / "net", metadata)
    assert_refused(tmp_path / "net", "but not one that dynkern.save wrote")


def rewrite(path: Path, change: Callable[[dict, dict], None], **metadata: str) -> None:
    """Save a packed network, with ``change`` made to its tensors and description, and a checksum that fits."""
    save(packed(), path)
    tensors, text = tensorfile.read(path)
    description = json.loads(text)
    change(tensors, description)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    metadata = {"format_version": "1", "dynkern": "0", "net": json.dumps(description), **metadata}
    save_file(tensors, path, {**metadata, "crc32": tensorfile.checksum(tensors, metadata)})


def test_rewriting_as_such_is_no_damage(tmp_path: Path) -> None:
    rewrite(tmp_path / "net", lambda tensors, description: None)
    assert isinstance(load(Net(), tmp_path / "net").stem, PackedTernaryConv2d)


@pytest.mark.parametrize("version", ["0", "2", "one", ""])
def test_other_versions(version: str, tmp_path: Path) -> None:
    rewrite(tmp_path / "net", lambda tensors, description: None, format_version=version)
    assert_refused(tmp_path / "net", f"format version {version}; this dynkern reads version 1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"slim": 1}',
        '{"slim": {}, "packed": []}',
        '{"slim": {}, "packed": {}, "other": 1}',
        '{"slim": {"": {"subnets": []}}}',
    ],
)
def test_descriptions_that_are_none(text: str, tmp_path: Path) -> None:
    rewrite(tmp_path / "net", lambda tensors, description: None, net=text)
    assert_refused(tmp_path / "net", "description of the net is not understood")


def changes() -> dict[str, tuple[Callable[[dict, dict], object], str]]:
    codes = torch.full((8, 7), 0xFF, dtype=torch.uint8)
    nan = torch.full((5,), math.nan)
    return {
        "missing": (lambda t, d: t.pop("fc.bias"), r"missing tensors: fc\.bias"),
        "unexpected": (lambda t, d: t.update({"x.y": nan}), r"unexpected tensors: x\.y"),
        "many": (lambda t, d: t.update({f"x{i}": nan for i in range(9)}), "unexpected tensors: x0, .* and 4 more"),
        "shape": (lambda t, d: t.update({"fc.bias": nan[:4]}), r"fc\.bias: expected shape \(5,\), got \(4,\)"),
        "nan": (lambda t, d: t.update({"fc.bias": nan}), r"fc\.bias: holds NaN"),
        "dtype": (
            lambda t, d: t.update({"fc.bias": torch.ones(5, dtype=torch.int64)}),
            r"fc\.bias: expected torch\.float32, got torch\.int64",
        ),
        "codes": (lambda t, d: t.update({"stem.packed": codes}), "stem: packed: holds the invalid code 11"),
        "no codes": (lambda t, d: t.pop("stem.packed"), r"the tensor 'stem\.packed' is missing"),
        "float codes": (lambda t, d: t.update({"stem.packed": codes.float()}), "stem: packed: expected a uint8"),
        "few codes": (lambda t, d: t.update({"stem.packed": codes[:, 1:]}), r"stem: packed: expected shape \(8, 7\)"),
        "scale": (lambda t, d: t.update({"stem.scale": torch.full((8,), math.nan)}), "stem: scale: expected finite"),
        "short scale": (lambda t, d: t.update({"stem.scale": torch.ones(7)}), r"stem: scale: expected shape \(8,\)"),
        "other shape": (lambda t, d: d["packed"].update(stem=[8, 27]), r"stem: weight: expected shape \(8, 3, 3, 3\)"),
        "no shape": (lambda t, d: d["packed"].update(stem=[]), "stem: shape: expected two or more"),
        "text shape": (lambda t, d: d["packed"].update(stem="8333"), "stem: "),
        "null shape": (lambda t, d: d["packed"].update(stem=None), "stem: "),
        "no module": (lambda t, d: d["packed"].update(steam=[8, 3, 3, 3]), "the model has no module 'steam'"),
        "bad name": (lambda t, d: d["packed"].update({"stem..x": [1, 1]}), r"no module 'stem\.\.x'"),
        "no layer": (lambda t, d: d["packed"].update(pool=[8, 3]), "pool: expected a Conv2d or Linear"),
        "no threshold": (lambda t, d: d["ternary"].update(fc=None), r"the tensor 'fc\.threshold' is missing"),
        "threshold": (
            lambda t, d: (d["ternary"].update(fc=None), t.update({"fc.threshold": torch.tensor(2.0)})),
            "delta: expected 0 <= delta < 1, got 2",
        ),
        "threshold shape": (
            lambda t, d: (d["ternary"].update(fc=None), t.update({"fc.threshold": torch.ones(2)})),
            r"fc\.threshold: expected a scalar",
        ),
        "growth": (
            lambda t, d: (d["ternary"].update(fc={"regime": "no"}), t.update({"fc.threshold": torch.tensor(0.1)})),
            "regime: expected one of",
        ),
        "tied": (lambda t, d: d["tied"].update({"a": "b"}), "the tensor 'b' is missing"),
        "tied list": (lambda t, d: d["tied"].update({"a": ["b"]}), "unhashable type"),
        "slim": (lambda t, d: d["slim"].update({"": {"subnets": [2.0], "divisor": 1, "current": 2.0}}), "subnets: "),
        "slim text": (lambda t, d: d["slim"].update({"": {"subnets": ["x"], "divisor": 1, "current": 1}}), "text: "),
        "slim current": (
            lambda t, d: d["slim"].update({"": {"subnets": [1.0], "divisor": 1, "current": 0.5}}),
            "subnet: expected one of",
        ),
        "slim divisor": (
            lambda t, d: d["slim"].update({"": {"subnets": [1.0], "divisor": 0, "current": 1.0}}),
            "divisor: expected at least 1",
        ),
        "slim module": (
            lambda t, d: d["slim"].update({"x": {"subnets": [1.0], "divisor": 1, "current": 1.0}}),
            "the model has no module 'x'",
        ),
    }


@pytest.mark.parametrize("case", changes())
def test_contents_that_do_not_fit(case: str, tmp_path: Path) -> None:
    change, message = changes()[case]
    rewrite(tmp_path / "net", change)
    assert_refused(tmp_path / "net", message)


@pytest.mark.parametrize(
    ("make", "model", "message"),
    [
        (packed, lambda: Net(classes=6), r"fc\.weight: expected shape \(6, 8\), got \(5, 8\)"),
        (packed, lambda: nn.Sequential(nn.Linear(2, 2)), "the model has no module 'stem'"),
        (slimmed, lambda: slim(Net(), (0.5, 1.0)), "slim already, with other sub-nets"),
        (slimmed, lambda: nn.Sequential(nn.Linear(2, 2)), "net: model: nothing to slice"),
        (latent, packed, "stem.*|block.*expected a Conv2d or Linear in the model, got PackedTernaryConv2d"),
        (lambda: used(Net()), packed, r"missing tensors: block\.0\.packed, stem\.packed"),
        (lambda: used(Net()), lambda: ternary.ternarize(Net(), 0.1), "missing tensors: .*threshold"),
        (packed, lambda: Net().to("meta"), "has no memory for it"),
    ],
)
def test_models_that_do_not_fit(
    make: Callable[[], nn.Module], model: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    save(make(), tmp_path / "net")
    target = model()
    before = {name: type(m) for name, m in target.named_modules()}
    state = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load(target, tmp_path / "net")
    assert {name: type(m) for name, m in target.named_modules()} == before
    assert list(target.state_dict()) == list(state)
    assert all(t.is_meta or torch.equal(t, state[name]) for name, t in target.state_dict().items())


def test_a_refused_file_leaves_the_selection(tmp_path: Path) -> None:
    net = slimmed()
    select(net, 0.5)
    save(net, tmp_path / "net")
    model = slimmed()
    model.fc = nn.Linear(8, 6)
    select(model, "odd")
    with pytest.raises(ValueError, match="net: "):
        load(model, tmp_path / "net")
    assert model._dynkern.current == "odd"
