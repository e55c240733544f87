"""Ternary training: schedules, the runs of a sweep and how they continue, from training to the packed network."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dynkern as dk
from dynkern.__main__ import main
from dynkern.data import Images, Stream, normalize
from dynkern.ternary import Growth
from dynkern.train import Recipe, fit, fused, suite, ternary_runs
from dynkern.train.options import Place
from dynkern.train.ternary import REGIMES, Regime, best_epoch, cap_epoch, learning_rates, ternary_hooks
from dynkern.train.ternary_runs import Run, agreement

FAST = Recipe(epochs=2, optimizer="adam", lr=5e-3, weight_decay=0.0, schedule={0: 5e-3, 1: 1e-3})


def images(n: int, seed: int = 0, size: int = 32) -> Images:
    """Noise, with the class in the brightness."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 10
    noise = torch.randint(0, 30, (n, 3, size, size), generator=g)
    return Images((noise + labels.view(-1, 1, 1, 1) * 25).to(torch.uint8), labels, 10)


def carried_out(run: Run, out: Path, train: Images, test: Images) -> dict[str, Any]:
    """The result of ``run``, which is carried out unless it was."""
    context = suite.Context(train, test, out, run.recipe, 16, Place(torch.device("cpu")))
    ternary_runs.check([run], context)
    suite.run([run.job()], context)
    return context.result(run.name)


# Schedules.


def test_the_papers_regime() -> None:
    rates = learning_rates(5e-3, 500)
    assert rates == pytest.approx({0: 5e-3, 101: 1e-3, 142: 5e-4, 184: 1e-4, 220: 1e-5})
    assert cap_epoch(500) == 68
    assert Growth.reaching("log", cap_epoch(500)).m == pytest.approx(1.9, abs=5e-3)


def test_a_shorter_run_goes_through_all_rates_and_reaches_the_cap() -> None:
    for epochs in (10, 24, 100, 499):
        rates = learning_rates(0.01, epochs)
        assert list(rates.values()) == sorted(rates.values(), reverse=True)
        assert rates[0] == 0.01
        assert min(rates.values()) == pytest.approx(2e-5)
        assert max(rates) < epochs
        assert 2 <= cap_epoch(epochs) < min(e for e, rate in rates.items() if rate < 0.01)
    assert learning_rates(0.01, 1)[0] > 0


def test_regimes_are_checked() -> None:
    with pytest.raises(ValueError, match="regime: expected one of"):
        Regime("cubic")
    with pytest.raises(ValueError, match="growth: expected one for"):
        Regime("log")
    with pytest.raises(ValueError, match="growth: expected one for"):
        Regime("ttq", Growth())
    with pytest.raises(ValueError, match="spread: expected above 0 and at most 1"):
        Regime("log", Growth(), 1.5)


def test_latent_weights_start_spread() -> None:
    net = Regime("log", Growth(delta0=0.25), 1.0).prepare(nn.Linear(100, 100))
    assert dk.ternary.stats(net).total.sparsity == pytest.approx(0.25, abs=0.03)
    assert net.weight.abs().max() <= 1


# Hooks.


def test_hooks_move_the_threshold_clip_and_tell() -> None:
    net = dk.ternarize(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10)), Growth("linear", m=1))
    data = images(40, size=8)
    seen = []
    hooks = ternary_hooks(net, data)

    def before(epoch: int) -> None:
        hooks.before_epoch(epoch)
        seen.append(net[1].delta)

    history = fit(
        net, Stream(data, batch=20), replace(FAST, schedule={0: 2.0}), hooks=replace(hooks, before_epoch=before)
    )
    assert seen == pytest.approx([0.2, 0.3])
    assert [record["delta"] for record in history] == seen
    assert net[1].weight.abs().max() <= 1
    last, total = history[-1], dk.ternary.report(net).total
    assert last["sparsity"] == total.counts.sparsity
    assert last["entropy"] == total.counts.entropy
    assert last["packed_bytes"] == 10 * 48
    assert 0 <= last["test_accuracy"] <= 1


def test_the_best_epoch_is_the_first_of_the_best() -> None:
    assert best_epoch([{"test_accuracy": a} for a in (0.1, 0.5, 0.5, 0.2)]) == 2


# Runs.


@pytest.mark.parametrize("name", REGIMES)
def test_every_regime_trains_packs_and_answers_alike(name: str, tmp_path: Path) -> None:
    growth = Growth(name, m=1.0) if name in ("log", "linear", "square", "exp", "fixed") else None
    run = Run(Regime(name, growth, 1.0 if growth else None), replace(FAST, epochs=1, schedule="constant"), 1)
    result = carried_out(run, tmp_path, images(32), images(40, 1))
    assert len(result["history"]) == 1
    again = dk.load(dk.models.resnet_binary(inflate=1), tmp_path / run.name / "net.safetensors")
    assert isinstance(again, nn.Module)
    if name == "float":
        assert "sparsity" not in result
        return
    assert result["agree"] == {"module": 40, "packed": 40, "engine": 40}
    assert len(set(result["accuracies"].values())) == 1
    assert result["report"][-1]["name"] == "total"
    assert sum(result["histogram"]["weights"]) == result["report"][-1]["counts"]["minus"] + sum(
        result["report"][-1]["counts"][part] for part in ("zero", "plus")
    )
    assert result["files"]["packed.safetensors"] < result["files"]["net.safetensors"] / 8


def test_a_run_that_is_broken_off_continues_and_a_finished_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = images(32), images(20, 1)
    run = Run(Regime("log", Growth(m=3.0), 1.0), FAST, 1)
    whole = carried_out(run, tmp_path / "whole", train, test)

    class Stop(Exception):
        pass

    real = ternary_runs.ternary_hooks

    def broken(net: nn.Module, data: Images) -> dk.train.Hooks:
        hooks = real(net, data)

        def before(epoch: int) -> None:
            if epoch == 2:
                raise Stop
            hooks.before_epoch(epoch)

        return replace(hooks, before_epoch=before)

    monkeypatch.setattr(ternary_runs, "ternary_hooks", broken)
    with pytest.raises(Stop):
        carried_out(run, tmp_path / "parts", train, test)
    assert not (tmp_path / "parts" / run.name / "result.json").exists()
    monkeypatch.setattr(ternary_runs, "ternary_hooks", real)
    continued = carried_out(run, tmp_path / "parts", train, test)
    assert [r["loss"] for r in continued["history"]] == [r["loss"] for r in whole["history"]]
    assert continued["histogram"] == whole["histogram"]
    assert continued["accuracy"] == whole["accuracy"]
    monkeypatch.setattr(ternary_runs, "train", None)
    assert carried_out(run, tmp_path / "parts", train, test) == continued
    with pytest.raises(ValueError, match="is the result of another run"):
        carried_out(run, tmp_path / "parts", train, images(30))


# Ternary and dynamic.


def test_fused_training_packed_once_runs_at_every_width() -> None:
    """``dk.ternarize(dk.slim(net))``: each width from the one packed store answers as the module does."""
    torch.manual_seed(0)
    net = dk.ternarize(dk.slim(dk.models.resnet20(), (0.25, 0.5, 1.0)), Growth("log", m=2.0), skip=["linear"])
    data = images(48)
    fit(net, Stream(data, 16), replace(FAST, precision="float32"), step=fused(), hooks=ternary_hooks(net))
    net.eval()
    packed = dk.pack(net)
    stored = {name: value.data_ptr() for name, value in packed.state_dict().items() if name.endswith("packed")}
    run = dk.compile(packed, torch.zeros(1, 3, 32, 32))
    x = normalize(images(60, 3).images)
    for width in (0.25, 0.5, 1.0):
        with torch.no_grad(), dk.using(net, width), dk.using(packed, width):
            exact = dk.extract(net, width).double()(x.double())
            close = 2e-5 * exact.abs().max()
            for answer in (net(x), packed(x), run(x, subnet=width)):
                assert (answer - exact).abs().max() <= close
            assert torch.equal(packed(x).argmax(1), net(x).argmax(1))
            assert torch.equal(run(x, subnet=width).argmax(1), net(x).argmax(1))
    assert {name: value.data_ptr() for name, value in packed.state_dict().items() if name in stored} == stored


@pytest.mark.shared_data
def test_ten_thousand_images_are_answered_alike(shared_data: Path) -> None:
    """Trained for a few steps on CIFAR-10, packed, compiled: the same predictions on all test images, in float32."""
    folder = shared_data / "data" / "cifar10"
    train, test = (Images(*dk.data.load_cifar10(folder, *split), 10) for split in (("train", 256), ("test",)))
    torch.manual_seed(0)
    net = Regime("log", Growth.reaching("log", 2), 1.0).prepare(dk.models.resnet_binary(inflate=1))
    fit(net, Stream(train, 64), FAST, hooks=ternary_hooks(net))
    net.eval()
    packed = dk.pack(net)
    answers = {"module": net, "packed": packed, "engine": dk.compile(packed, torch.zeros(1, 3, 32, 32))}
    found = agreement(answers, test)
    assert found["agree"] == dict.fromkeys(answers, 10_000)


# The command.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """CIFAR-10's layout with 40 images in each split."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from io import BytesIO

    from PIL import Image

    for split in ("train", "test"):
        data, rows = images(40), []
        for image in data.images:
            coded = BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(coded, "PNG")
            rows.append({"bytes": coded.getvalue(), "path": None})
        parquet.write_table(pa.table({"img": rows, "label": data.labels.tolist()}), tmp_path / f"{split}.parquet")
    return tmp_path


def test_a_sweep_with_its_plots(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out = folder / "out"
    arguments = ["train", "ternary", "--data", str(folder), "--out", str(out), "--epochs", "1", "--batch", "20"]
    arguments += ["--inflate", "1", "--regime", "log,float", "--m", "2,4", "--cap", "0.8", "--spread", "1"]
    arguments += ["--schedule", "one_cycle", "--lr", "0.02", "--float-lr", "0.01"]
    assert main(arguments) == 0
    first = capsys.readouterr()
    names = {"log-delta0.1-m2-cap0.8-x1-seed0", "log-delta0.1-m4-cap0.8-x1-seed0", "float-x1-seed0"}
    assert {f.parent.name for f in out.glob("*/result.json")} == names
    assert {line.split()[0] for line in first.out.splitlines()} == names
    assert "packed answers alike on 40 of 40" in first.out
    files = {f.parent.name.split("-")[0]: json.loads(f.read_text()) for f in out.glob("*/result.json")}
    recipes = {name: result["run"]["recipe"] for name, result in files.items()}
    assert {name: (r["lr"], r["schedule"]) for name, r in recipes.items()} == {
        "log": (0.02, "one_cycle"),
        "float": (0.01, "one_cycle"),
    }
    plots = {f.name for f in (out / "plots").iterdir()}
    assert plots == {"histograms.svg", "epochs.svg", "sparsity.svg", "entropy.svg", "speed.svg"}
    # All of it is there: nothing is trained again.
    states = {f: f.stat().st_mtime_ns for f in out.glob("*/*.safetensors")}
    assert main(arguments) == 0
    assert capsys.readouterr().out == first.out
    assert {f: f.stat().st_mtime_ns for f in out.glob("*/*.safetensors")} == states
    assert main([*arguments, "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["done"] * 3 + ["delta"] * 2
    assert main([*arguments, "--batch", "10"]) == 2
    assert "is the result of another run" in capsys.readouterr().err


def test_five_hundred_epochs_are_the_papers_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "ternary", "--data", str(folder), "--out", str(folder / "out"), "--list", "--batch", "20"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.split()[:2] == ["-", "log-delta0.1-m1.9-cap0.9-x5-seed0"]
    assert main([*arguments, "--epochs", "20"]) == 0
    # As the paper's epoch 68 of its first 240, 6 of 20.
    out = capsys.readouterr().out
    assert out.split()[1] == f"log-delta0.1-m{8 / math.log(6):.4g}-cap0.9-x5-seed0"
    deltas = [float(text) for text in out.splitlines()[-1].partition(": ")[2].split()]
    assert deltas == pytest.approx(Growth.reaching("log", 6).table(20), rel=5e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--regime", "log,cubic"], "expected some of"),
        (["--m", "a"], "expected numbers with commas between, got 'a'"),
        (["--m", "2", "--cap-epoch", "3"], "not allowed with argument"),
        (["--cap", "1"], "cap: expected 0 <= cap < 1"),
        (["--cap-epoch", "1"], "epoch: expected 2 to"),
        (["--spread", "2"], "spread: expected above 0"),
        (["--repeats", "0"], "--repeats: expected 1 or more, got 0"),
        (["--inflate", "0"], "--inflate: expected 1 or more, got 0"),
        (["--data", "/nowhere"], "folder"),
    ],
)
def test_bad_options(folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["train", "ternary", "--data", str(folder), "--out", str(folder / "out"), *options])
    assert code == 2
    assert message in capsys.readouterr().err
