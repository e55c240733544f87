"""The command line: what it prints and writes, and that errors of the user are one line and exit code 2."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import dynkern as dk
from dynkern import models
from dynkern.__main__ import main
from dynkern.bench import command, results
from dynkern.bench.run import run as run_point

pytest.importorskip("rich")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-20 as the CIFAR-10 training scripts save it."""
    torch.manual_seed(0)
    state = {f"module.{name}": value for name, value in models.resnet20().state_dict().items()}
    path = tmp_path_factory.mktemp("checkpoint") / "resnet20.th"
    torch.save({"state_dict": state, "best_prec1": 10.0}, path)
    return path


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert capsys.readouterr().out.strip() == str(dk.info())


def test_version_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "dynkern", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"dynkern {dk.__version__}\n")


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("info", "bench", "train", "pack"))


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "{info,bench,train,pack,tune}"),
        (["dance"], "dance"),
        (["info", "--loud"], "--loud"),
        (["bench", "--suite", "depth"], "--suite"),
        (["bench", "--suite", "networks", "--models", "resnet20"], "models: expected some of"),
        (["bench", "--checkpoint", "x.th", "--data", ".", "--models", "resnet20"], "--models"),
        (["bench", "--threads", "0"], "--threads"),
        (["bench", "--threads", "one"], "--threads"),
        (["bench", "--batch", "1,,2"], "--batch"),
        (["bench", "--peers", "tensorrt"], "tensorrt"),
        (["bench", "--budget", "-1"], "--budget"),
        (["bench", "--budget", "nan"], "--budget"),
        (["bench", "--data", "."], "--checkpoint and --data"),
        (["bench", "--checkpoint", "x.th"], "--checkpoint and --data"),
        (["bench", "--checkpoint", "x.th", "--data", ".", "--quick"], "--quick"),
        (["bench", "--checkpoint", "nowhere.th", "--data", "."], "nowhere.th"),
        (["bench", "--checkpoint", "CHECKPOINT", "--data", "nowhere"], "nowhere"),
        (["bench", "--checkpoint", "CHECKPOINT", "--data", "."], "test.parquet"),
        (["bench", "--checkpoint", "CHECKPOINT", "--data", ".", "--model", "resnet56"], "does not fit"),
        (["bench", "--checkpoint", "CHECKPOINT", "--data", ".", "--model", "resnet18"], "resnet18"),
        (["bench", "--checkpoint", "CHECKPOINT", "--data", ".", "--images", "0"], "--images"),
        (["bench", "--replot", "nowhere.json"], "nowhere.json"),
        (["bench", "--quick", "--out", "CHECKPOINT"], "--out"),
        (["bench", "--quick", "--json", "CHECKPOINT/x.json"], "--json"),
        (["pack", "--model", "resnet20", "--checkpoint", "CHECKPOINT"], "OUT.safetensors"),
        (["pack", "--model", "alexnet", "--checkpoint", "CHECKPOINT", "out"], "alexnet"),
        (["pack", "--model", "resnet20", "--checkpoint", "nowhere.th", "out"], "nowhere.th"),
        (["pack", "--model", "resnet32", "--checkpoint", "CHECKPOINT", "out"], "does not fit"),
        (["pack", "--model", "resnet20", "--checkpoint", "CHECKPOINT", "--delta", "1", "out"], "delta"),
        (["pack", "--model", "resnet20", "--checkpoint", "CHECKPOINT", "--delta", "nan", "out"], "delta"),
        (["pack", "--model", "resnet20", "--checkpoint", "CHECKPOINT", "--skip", "head", "out"], "head"),
        (["pack", "--model", "resnet20", "--checkpoint", "CHECKPOINT", "nowhere/out"], "nowhere"),
    ],
)
def test_an_error_of_the_user_is_one_line(
    argv: list[str],
    named: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([arg.replace("CHECKPOINT", str(checkpoint)) for arg in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dynkern: error: ")
    assert captured.err.count("\n") == 1
    assert named in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["matplotlib", "rich"])
def test_a_missing_package_is_told_before_measuring(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["bench", "--quick", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"dynkern: error: the benchmark needs {package}: pip install 'dynkern[bench]'\n"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", stop)
    assert main(["bench", "--quick"]) == 130
    assert capsys.readouterr().err == "dynkern: interrupted\n"


def test_bench_quick_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert main(["bench", "--quick", "--out", str(tmp_path)]) == 0
    assert time.monotonic() - began < 60
    captured = capsys.readouterr()
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    plots = {f"plots/{suite}.{kind}" for suite in ("width", "sparsity") for kind in ("png", "svg")}
    assert files == plots | {"results.json"}
    found = results.read(tmp_path / "results.json")
    assert {row.status for row in found.rows} == {"ok"}
    assert {row.threads for row in found.rows} == {1}
    at = {(row.suite, row.value, row.variant) for row in found.rows}
    eager = ("eager_sliced", "eager_extracted")
    assert at == {("width", v, name) for v in (0.25, 1.0) for name in ("dynkern", "engine", *eager)} | {
        ("sparsity", v, name) for v in (0.0, 0.9) for name in ("dynkern", "dynkern_int8", "torch_dense")
    } | {("int8", v, name) for v in (0.25, 1.0) for name in ("engine", "engine_int8", "engine_int16")}
    for text in ("ResNet-20, 32x32, batch 1, 1 thread", "against dense torch", "left out by --quick", "results.json"):
        assert text in captured.out
    assert re.search(r"\nResNet-20, 32x32: 0\.\d{3} at width 0\.25 \(.* of .*\), ideal 0\.065\n", captured.out)
    # No progress bar where there is no terminal.
    assert len(captured.err.splitlines()) == 1

    assert main(["bench", "--replot", str(tmp_path / "results.json"), "--out", str(tmp_path / "again")]) == 0
    assert sorted(path.name for path in (tmp_path / "again" / "plots").iterdir()) == sorted(Path(p).name for p in plots)
    assert not (tmp_path / "again" / "results.json").exists()
    tables = captured.out.partition("wrote")[0]
    assert capsys.readouterr().out.startswith(tables)


def test_bench_takes_its_options(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    options = ["--suite", "sparsity", "--threads", "1", "--batch", "2,3", "--peers", "none", "--budget", "0.1"]
    assert main(["bench", "--quick", *options, "--json", str(file), "--out", str(tmp_path / "out")]) == 0
    found = results.read(file)
    assert {row.batch for row in found.rows} == {2, 3}
    assert {row.suite for row in found.rows} == {"sparsity"}
    assert found.left_out["openvino"] == "not asked for"
    assert not (tmp_path / "out" / "results.json").exists()


def test_bench_exits_with_1_if_the_engine_alone_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object) -> None:
        raise ValueError("conv1: no such operator")

    monkeypatch.setattr("dynkern.bench.stages.compile", refuse)
    assert main(["bench", "--quick", "--suite", "width", "--out", str(tmp_path)]) == 1
    assert "dynkern engine: failed at ResNet-20, 32x32, 0.25 and 1 more: ValueError: conv1" in capsys.readouterr().out
    statuses = {(row.variant, row.status) for row in results.read(tmp_path / "results.json").rows}
    assert statuses == {
        ("engine", "failed"),
        *((name, "ok") for name in ("dynkern", "eager_sliced", "eager_extracted")),
    }


@pytest.mark.parametrize("variant", ["dynkern", "engine"])
def test_bench_exits_with_1_if_one_output_of_ours_is_wrong(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def off(point, task, share):
        def wrong(build):
            call = build()
            return lambda: 1.001 * call()

        variants = {**task.variants, variant: lambda: wrong(task.variants[variant])}
        return run_point(point, type(task)(**{**vars(task), "variants": variants}), share)

    monkeypatch.setattr("dynkern.bench.run.run", off)
    assert main(["bench", "--quick", "--suite", "width", "--out", str(tmp_path)]) == 1
    assert "WRONG" in capsys.readouterr().out
    rows = results.read(tmp_path / "results.json").rows
    assert {row.variant for row in rows if row.status != "ok"} == {variant}
    assert all((row.median_s is None) == (row.variant == variant) for row in rows)


def test_bench_exits_with_1_if_our_output_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def off(point, task, share):
        return run_point(point, type(task)(**{**vars(task), "error": lambda y: 0.5, "quantised": {}}), share)

    monkeypatch.setattr("dynkern.bench.run.run", off)
    assert main(["bench", "--quick", "--suite", "sparsity", "--out", str(tmp_path)]) == 1
    assert "WRONG" in capsys.readouterr().out
    assert {row.median_s for row in results.read(tmp_path / "results.json").rows} == {None}


@pytest.mark.shared_data
def test_bench_on_real_images(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shared_data / "data"
    argv = ["--checkpoint", str(data / "resnet_cifar10" / "resnet20-12fca82f.th"), "--data", str(data / "cifar10")]
    options = ["--images", "1000", "--threads", "1", "--batch", "1,8", "--budget", "0.5"]
    assert main(["bench", *argv, *options, "--json", str(tmp_path / "r.json"), "--out", str(tmp_path)]) == 0
    found = results.read(tmp_path / "r.json")
    assert found.accuracy["plain"] == found.accuracy["dynkern"] == found.accuracy["engine"] > 0.79
    assert found.accuracy["agree"] == found.accuracy["engine_agree"] == 1
    # 20 layers of float32 in another order.
    assert found.accuracy["difference"] < 1e-5 * found.accuracy["largest"]
    assert found.accuracy["engine_difference"] < 1e-5 * found.accuracy["largest"]
    assert {(row.batch, row.variant, row.status) for row in found.rows} == {
        (batch, variant, "ok") for batch in (1, 8) for variant in ("dynkern", "engine", "eager")
    }
    out = capsys.readouterr().out
    assert re.search(r"1,000 test images +PyTorch +dynkern modules +dynkern engine", out)
    assert re.search(r"answers as PyTorch's +1,000 +1,000", out)


@pytest.mark.shared_data
def test_bench_on_real_images_refuses_a_batch_that_is_too_large(
    shared_data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--checkpoint", str(checkpoint), "--data", str(shared_data / "data" / "cifar10"), "--out", str(tmp_path)]
    assert main(["bench", *argv, "--images", "4", "--batch", "5"]) == 2
    assert "--batch: expected at most 4" in capsys.readouterr().err


def test_pack_prints_and_saves(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "net.safetensors"
    argv = [
        "pack",
        "--model",
        "resnet20",
        "--checkpoint",
        str(checkpoint),
        "--delta",
        "0.05",
        "--skip",
        "linear",
        str(out),
    ]
    assert main(argv) == 0
    text = capsys.readouterr().out
    net = dk.load_checkpoint(models.resnet20(), checkpoint)
    expected = dk.ternary.stats(dk.ternarize(net, delta=0.05, skip=["linear"])).total
    assert expected.weights == 267_696
    assert f"{expected.sparsity:.2%} zeros" in text
    assert f"{expected.entropy:.3f} bits" in text
    # Every row of a ResNet-20's weights fills whole bytes but those of the first layer, of 27.
    assert "66,928 bytes" in text
    assert f"{out.stat().st_size:,} bytes" in text
    loaded = dk.load(models.resnet20(), out).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), dk.pack(net)(x))
