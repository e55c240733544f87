from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynkern import data, models
from dynkern.checkpoint import load_checkpoint


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def trained() -> nn.Sequential:
    model = net()
    model(torch.randn(8, 3, 4, 4))
    return model


def prefixed(state: dict[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    return {prefix + k: v for k, v in state.items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("place", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_it_loads(tmp_path: Path, legacy: bool, place: str | None, prefix: str) -> None:
    source = trained()
    state: dict[str, Any] = prefixed(source.state_dict(), prefix)
    content = state if place is None else {place: state, "best_prec1": 91.78, "epoch": 200}
    torch.save(content, tmp_path / "a.th", _use_new_zipfile_serialization=not legacy)
    model = net()
    assert load_checkpoint(model, tmp_path / "a.th") is model
    assert same(model, source)


def test_another_prefix(tmp_path: Path) -> None:
    source = trained()
    torch.save(prefixed(source.state_dict(), "teacher."), tmp_path / "a.th")
    assert same(load_checkpoint(net(), str(tmp_path / "a.th"), prefix="teacher."), source)
    with pytest.raises(ValueError, match=r"unexpected: teacher\.0\.weight"):
        load_checkpoint(net(), tmp_path / "a.th")


def test_files_older_than_the_step_counter(tmp_path: Path) -> None:
    source = trained()
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "a.th")
    model = load_checkpoint(net(), tmp_path / "a.th").eval()
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(model(x), source.eval()(x))


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_what_does_not_fit_is_listed_and_changes_nothing(tmp_path: Path, change: str) -> None:
    state = prefixed(trained().state_dict())
    message = {
        "missing": r"a.th: does not fit Sequential; missing: 3.weight, 3.bias$",
        "unexpected": r"a.th: does not fit Sequential; unexpected: extra.weight$",
        "shape": r"of another shape: 3.weight \(expected \(2, 16\), got \(2, 8\)\)$",
    }[change]
    if change == "missing":
        del state["module.3.weight"], state["module.3.bias"]
    elif change == "unexpected":
        state["module.extra.weight"] = torch.zeros(1)
    else:
        state["module.3.weight"] = torch.zeros(2, 8)
    torch.save(state, tmp_path / "a.th")
    model, before = net(), net()
    before.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=message):
        load_checkpoint(model, tmp_path / "a.th")
    assert same(model, before)


def test_all_that_does_not_fit_is_listed_at_once(tmp_path: Path) -> None:
    torch.save(models.resnet32().state_dict(), tmp_path / "a.th")
    with pytest.raises(ValueError, match=r"unexpected: layer1.3.conv1.weight, .* and \d+ more$"):
        load_checkpoint(models.resnet20(), tmp_path / "a.th")
    torch.save(models.resnet20(width=0.5).state_dict(), tmp_path / "a.th")
    with pytest.raises(ValueError, match=r"shape: conv1.weight \(expected \(16, 3, 3, 3\), got \(8, 3, 3, 3\)\)"):
        load_checkpoint(models.resnet20(), tmp_path / "a.th")


def test_a_name_with_and_without_prefix(tmp_path: Path) -> None:
    state = trained().state_dict()
    torch.save({**prefixed(state), "3.bias": state["3.bias"]}, tmp_path / "a.th")
    with pytest.raises(ValueError, match=r"holds '3.bias' twice, with the prefix 'module.' and without"):
        load_checkpoint(net(), tmp_path / "a.th")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([torch.zeros(1)], "list"),
        (torch.zeros(1), "Tensor"),
        ({}, "a dict of nothing"),
        ({"state_dict": {}}, "a dict of nothing"),
        ({"epoch": 3}, "a dict of epoch: int"),
        ({0: torch.zeros(1)}, "a dict of 0: Tensor"),
    ],
)
def test_no_state_dict(tmp_path: Path, content: object, found: str) -> None:
    torch.save(content, tmp_path / "a.th")
    with pytest.raises(ValueError, match=rf"expected a dict of named tensors, .*, got {found}$"):
        load_checkpoint(net(), tmp_path / "a.th")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched"),))


def test_nothing_in_the_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "a.th")
    with pytest.raises(ValueError, match=r"a.th: cannot be read as a checkpoint of tensors"):
        load_checkpoint(net(), "a.th")
    assert not Path("touched").exists()


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("left", [0, 10, 200, -1])
def test_a_truncated_file(tmp_path: Path, legacy: bool, left: int) -> None:
    file = tmp_path / "a.th"
    torch.save(trained().state_dict(), file, _use_new_zipfile_serialization=not legacy)
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"a.th: cannot be read as a checkpoint of tensors"):
        load_checkpoint(net(), file)


@pytest.mark.parametrize("content", [b"not a checkpoint", pickle.dumps({"a": 1}, 2), b"\x80\x02" + bytes(100)])
def test_a_foreign_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.th").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.th: "):
        load_checkpoint(net(), tmp_path / "a.th")


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "no.th", tmp_path):
        with pytest.raises(FileNotFoundError, match="path: expected a checkpoint file, got"):
            load_checkpoint(net(), path)


@pytest.mark.shared_data
@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_the_trained_networks_load(shared_data: Path, depth: int) -> None:
    (file,) = (shared_data / "data" / "resnet_cifar10").glob(f"resnet{depth}-*.th")
    model = load_checkpoint(models.build(f"resnet{depth}"), file)
    stored = torch.load(file, "cpu", weights_only=True)["state_dict"]
    state = model.state_dict()
    assert all(torch.equal(state[k.removeprefix("module.")], v) for k, v in stored.items())


@pytest.mark.shared_data
def test_accuracy_of_the_trained_resnet20(shared_data: Path) -> None:
    (file,) = (shared_data / "data" / "resnet_cifar10").glob("resnet20-*.th")
    model = load_checkpoint(models.resnet20(), file).eval()
    images, labels = data.load_cifar10(shared_data / "data" / "cifar10")
    with torch.inference_mode():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.batches(images, labels, 250))
    assert abs(right / len(labels) * 100 - 81.03) <= 0.02
