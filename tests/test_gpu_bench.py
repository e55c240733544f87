"""``bench/gpu.py`` and ``dynkern tune``, as far as a machine without a GPU can tell."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from dynkern import tune
from dynkern.__main__ import main
from dynkern.bench import gpu_plots, gpu_suites, gpu_timer
from dynkern.ops.gpu import configs
from dynkern.ops.gpu.configs import Config, Device, Layer

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "gpu.py"
H200 = Device("NVIDIA H200", (9, 0), 132)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_script"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a dry run leaves."""
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, str(SCRIPT), "--dry-run", "--quick", "--out", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr + (out / "log.txt").read_text()
    return out


def test_a_dry_run_goes_through_all_suites_and_prints_no_figure(dry: Path) -> None:
    content = json.loads((dry / "results.json").read_text())
    assert content["measured"] is False
    assert content["figures"] == "not measured"
    found = {p["part"]: p["status"] for p in content["parts"]}
    assert list(found) == ["check", "sparsity", "width", "gemlite", "models", "plots"]
    assert found.pop("gemlite") == "left out"
    assert set(found.values()) == {"ok"}
    assert {row["suite"] for row in content["rows"]} == {"width", "sparsity", "models"}
    for row in content["rows"]:
        assert row["status"] == "ok"
        assert row["reason"] == "not measured"
        assert all(row[name] is None for name in ("median_s", "p20_s", "p80_s", "speedup"))
        assert row["error"] is not None
    assert {"machine", "versions", "commit", "date", "gpu"} <= set(content)
    assert " us" not in (dry / "log.txt").read_text()
    # Few files, which are easy to carry home.
    assert sorted(p.name for p in dry.iterdir()) == ["log.txt", "results.json"]


def test_a_part_that_fails_or_hangs_is_reported_and_the_others_run(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def part(name: str, program: str, limit: float = 60) -> Any:
        return script.Part(name, (sys.executable, "-c", program), limit, limit)

    # A process that leaves a trace if it is not ended with the one that started it.
    touch = f"import time, pathlib; time.sleep(3); pathlib.Path({str(tmp_path / 'later')!r}).touch()"
    found = [
        part("crash", "import os; os.abort()"),
        part(
            "hang", f"import subprocess, time; subprocess.Popen({[sys.executable, '-c', touch]!r}); time.sleep(60)", 1.5
        ),
        script.Part("absent", (str(tmp_path / "no such program"),), 5, 5),
        part("says why", "import sys; print('nothing to do'); sys.exit(77)"),
        part("fine", "print('all is well')"),
        script.Part("card", (sys.executable, "-c", "raise SystemExit(1)"), 5, 5),
        part("no time", "print(1)", -1),
    ]
    found = [replace(p, gpu=p.name == "card") for p in found]
    monkeypatch.setattr(script, "parts", lambda out, quick, dry: found)
    monkeypatch.setattr(script, "gpu", lambda: None)
    assert script.main(["--out", str(tmp_path / "out")]) == 1
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (content["figures"], content["gpu"]) == ("not measured", "no card")
    assert content["versions"]["torch"] == torch.__version__  # asked of a process that finds the package
    reports = {r["part"]: (r["status"], r["reason"]) for r in content["parts"]}
    assert reports["crash"][0] == "failed"
    assert reports["crash"][1].startswith("exit code -6: it printed nothing")
    assert reports["hang"] == ("failed", "took longer than 2 s")
    assert reports["absent"] == ("left out", f"no {tmp_path / 'no such program'} here")
    assert reports["says why"] == ("left out", "nothing to do")
    assert reports["fine"] == ("ok", None)
    assert reports["card"] == ("left out", "no card: not measured")
    assert reports["no time"] == ("failed", "no time was left")
    assert "all is well" in (tmp_path / "out" / "log.txt").read_text()
    time.sleep(2)
    assert not (tmp_path / "later").exists(), "what a part had started outlived it"


@pytest.mark.parametrize(("quick", "most"), [(False, 540), (True, 120)])
def test_all_parts_together_fit_the_time(script: ModuleType, tmp_path: Path, quick: bool, most: float) -> None:
    """Under nine minutes, and under two, whatever the parts do; every command names a program that is there."""
    assert script.TOTAL[quick] + 10 <= most
    found = script.parts(tmp_path, quick, False)
    names = ["build", "tests", "memcheck", "sparsity", "width", "gemlite", "models", "racecheck", "cpu"]
    assert [part.name for part in found] == names
    assert {part.command[0] for part in found} == {sys.executable, "compute-sanitizer"}
    # However long each part takes, the later ones have what is reserved for them.
    left = script.TOTAL[quick]
    for i, part in enumerate(found):
        reserved = script.RESERVED * sum(p.limit(quick) for p in found[i + 1 :])
        assert left - reserved >= script.RESERVED * part.limit(quick)
        left -= min(part.limit(quick), left - reserved)
    assert left >= 0
    cpu = found[-1].command
    assert cpu[cpu.index("--threads") + 1].split(",")[0] == "1"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_suite_without_a_gpu_says_why(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--suite", "width", "--out", str(tmp_path)]) == script.LEFT_OUT
    assert "not measured, no CUDA device: " in capsys.readouterr().out


def test_tests_that_need_a_card_are_found(script: ModuleType) -> None:
    command = script.tests(False)
    assert {Path(name).name for name in command if name.endswith(".py")} >= {"test_gpu_device.py", "test_cuda_gpu.py"}
    done = subprocess.run(
        [sys.executable, *command, "--collect-only"], capture_output=True, text=True, timeout=120, env={**os.environ}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_build_is_for_the_card_that_is_there(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """cmake and ninja as found, and one architecture; without cmake or pybind11 it says so."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setitem(sys.modules, "pybind11", SimpleNamespace(get_cmake_dir=lambda: "pybind11"))
    monkeypatch.setattr(script.shutil, "which", lambda name, **_: name)
    for capability, real in (("9.0", "90a-real"), ("8.0\n8.0", "80-real"), ("", None)):
        monkeypatch.setattr(script, "asked", lambda query, found=capability: found)
        commands.clear()
        assert script.build() == 0
        assert len(commands) == 2
        given = [c for c in commands[0] if c.startswith("-DDYNKERN_CUDA_ARCHITECTURES=")]
        assert given == ([] if real is None else [f"-DDYNKERN_CUDA_ARCHITECTURES={real}"])
    monkeypatch.setattr(script.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    assert script.build() == 1


def case(call: Callable[[Any], torch.Tensor]) -> gpu_suites.Case:
    variants = (gpu_suites.Variant("dynkern", call), gpu_suites.Variant("peer", lambda d: d + 0))
    return gpu_suites.Case("width", "one", 1.0, lambda: torch.ones(3), 12, variants, lambda d: d, 1e-3)


def test_a_wrong_or_failing_variant_gets_no_time() -> None:
    place = gpu_suites.Place("cpu", dry=True)
    wrong, peer = gpu_suites.measure(case(lambda d: d * 1.1), place)
    assert (wrong.status, wrong.median_s, peer.status) == ("wrong", None, "ok")
    assert "off by 1.0e-01" in str(wrong.reason)
    failed, _ = gpu_suites.measure(case(lambda d: d.nonsense), place)
    assert failed.status == "failed"
    assert "nonsense" in str(failed.reason)
    nan, _ = gpu_suites.measure(case(lambda d: d * torch.nan), place)
    assert nan.status == "wrong"


def test_times_are_those_of_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantiles and ratios from made-up samples; a graph that cannot be captured is a row of its own."""

    def interleave(variants: Mapping[str, Any], calls: int, rounds: int) -> dict[str, gpu_timer.Sample]:
        return {name: gpu_timer.Sample([1.0, 2.0, 3.0] if name == "dynkern" else [4.0, 4.0, 4.0]) for name in variants}

    def graph(calls: gpu_timer.Calls) -> Callable[[], object]:
        raise RuntimeError("no graphs here")

    monkeypatch.setattr(gpu_timer, "interleave", interleave)
    monkeypatch.setattr(gpu_timer, "graph", graph)
    rows = gpu_suites.measure(case(lambda d: d + 0), gpu_suites.Place("cpu"))
    found = {(row.variant, row.mode): row for row in rows}
    assert found["dynkern", "eager"].median_s == 2.0
    assert found["peer", "eager"].speedup == 2.0  # the median of 4, 2 and 4/3
    assert found["peer", "graph"].status == "failed"
    assert found["peer", "graph"].reason == "RuntimeError: no graphs here"


def test_copies_outgrow_the_cache() -> None:
    assert gpu_timer.copies(2**30) == 2
    assert gpu_timer.copies(8 * 2**20) * 8 * 2**20 >= gpu_timer.ROTATED
    assert gpu_timer.copies(1) == gpu_timer.MOST_COPIES


def test_plots_show_only_what_was_timed(tmp_path: Path) -> None:
    row = {"suite": "width", "case": "c", "value": 0.5, "variant": "cuDNN", "mode": "graph", "speedup": 1.5}
    untimed = {**row, "suite": "models", "speedup": None}
    content = {"gpu": "made up", "commit": None, "date": "today", "rows": [row, untimed]}
    (tmp_path / "results.json").write_text(json.dumps(content))
    written = gpu_plots.draw(tmp_path / "results.json", tmp_path / "plots")
    assert [path.name for path in written] == ["width.png"]
    assert written[0].stat().st_size > 1000


LAYER = Layer("sliced_conv2d", "float16", 64, 64, 9, 1000, True)


def test_tune_keeps_the_best_and_leaves_to_torch_what_torch_wins() -> None:
    best = {True: Config(128, 64, 64, 4, 3), False: Config(64, 32, 32, 4, 4)}

    def measure(layer: Layer, config: Config | None, full: bool) -> float:
        if config is None:
            return 5.0 if layer.outputs == 64 else 0.5
        if config.stages == 4 and full:
            raise RuntimeError("too much shared memory")
        return 1.0 if config == best[full] else 2.0

    lost = Layer("sliced_conv2d", "float16", 65, 64, 9, 1000, True)
    table = tune.tune(H200, iter([LAYER, lost]), measure, lambda: 1.0)
    first, second = table.rows
    assert (first.wide, first.narrow, first.origin) == (best[True], best[False], "tuned")
    assert first.fits(LAYER)
    assert (second.wide, second.narrow) == (None, None)
    assert not tune.tune(H200, iter([LAYER]), measure, lambda: -1.0).rows


def test_tune_keeps_one_layout_per_ternary_weight() -> None:
    layer = Layer("ternary_linear", "bfloat16", 64, 64, 1, 16, True)

    def measure(layer: Layer, config: Config | None, full: bool) -> float:
        if config is None:
            return 9.0
        return 1.0 if config.block_k == (256 if full else 128) else 2.0

    (row,) = tune.tune(H200, iter([layer]), measure, lambda: 1.0).rows
    assert row.wide is not None
    assert row.narrow is not None
    assert row.wide.block_k == row.narrow.block_k == 256


def test_what_tune_saves_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNKERN_CACHE", str(tmp_path / "new"))
    table = tune.tune(H200, iter([LAYER]), lambda *_: 1.0, lambda: 1.0)
    tune.save(table, configs.user_table(H200))
    configs.forget()
    try:
        assert configs.row_for(H200, LAYER) == table.rows[0]
        assert list((tmp_path / "new").iterdir()) == [configs.user_table(H200)]
    finally:
        monkeypatch.delenv("DYNKERN_CACHE")
        configs.forget()


def test_every_tuned_layer_has_candidates() -> None:
    for layer in tune.layers():
        assert len(list(tune.candidates(layer))) >= 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_command_needs_a_gpu_and_says_why_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune"]) == 2
    assert "tune: needs a CUDA device, and there is none: " in capsys.readouterr().err
    assert main(["tune", "--budget", "0"]) == 2
    assert "--budget: expected seconds above 0" in capsys.readouterr().err
