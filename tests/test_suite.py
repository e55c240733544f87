"""Sets of runs: what is done, what is skipped, what is reported; and the command that starts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_images import python_batches
from test_train import images

import dynkern as dk
from dynkern.__main__ import main
from dynkern.data import Images
from dynkern.train import Recipe, paper000, paper000_report, suite
from dynkern.train.options import Place
from dynkern.train.suite import Context, Job

pytest.importorskip("rich")
pytest.importorskip("matplotlib")


def context(out: Path, data: Images | None = None) -> Context:
    data = images(16, 10, 32) if data is None else data
    recipe = Recipe(epochs=1, precision="float32")
    return Context(data, data, out, recipe, 8, Place(torch.device("cpu")))


def job(name: str, calls: list[str], after: tuple[str, ...] = ()) -> Job:
    def run(context: Context, name: str) -> dict[str, Any]:
        calls.append(name)
        context.file(name, "run.pt").write_text("state")
        return {"found": len(calls)}

    return Job(name, f"about {name}", run, after)


def test_each_run_is_done_once_and_in_order(tmp_path: Path) -> None:
    calls: list[str] = []
    here, jobs = context(tmp_path), [job("a", calls), job("b", calls, ("a",)), job("c", calls)]
    assert suite.run(jobs, here, ["c"]) == ["c"]
    with pytest.raises(ValueError, match=r"b: expected \['a'\] to be done before"):
        suite.run(jobs, here, ["b"])
    assert "-     a" in suite.table(jobs, here)
    assert suite.run(jobs, here) == ["a", "b"]
    assert suite.run(jobs, here) == []
    assert calls == ["c", "a", "b"]
    result = here.result("b")
    assert result is not None
    assert (result["about"], result["found"]) == ("about b", 3)
    assert {"wall_seconds", "machine", "commit"} <= result.keys()
    # What a run continued from is gone once it is done.
    assert not here.file("b", "run.pt").exists()
    assert suite.table(jobs, here).count("done") == 3
    with pytest.raises(ValueError, match=r"only: expected some of"):
        suite.run(jobs, here, ["z"])


def test_a_run_that_failed_is_not_done(tmp_path: Path) -> None:
    def broken(context: Context, name: str) -> dict[str, Any]:
        context.file(name, "run.pt").write_text("state")
        raise RuntimeError("no")

    here, jobs = context(tmp_path), [Job("a", "", broken)]
    with pytest.raises(RuntimeError, match="no"):
        suite.run(jobs, here)
    assert here.result("a") is None
    assert suite.table(jobs, here).startswith("begun")


def test_paper_000_from_the_background_to_the_fused_network(tmp_path: Path) -> None:
    """A few steps each: the networks and results are there, and fit each other."""
    here = context(tmp_path)
    names = ["background", "single-path", "ours-s", "individual-s-subnet1"]
    assert suite.run(paper000.jobs(), here, names) == names
    sampled, fused = here.result("single-path"), here.result("ours-s")
    assert sampled is not None
    assert fused is not None
    limits = (
        2_617_504,
        10_248_512,
        22_893_024,
    )  # of the uniform sub-nets, which the paper prints as 2.62, 10.26, 22.91
    assert sampled["nested"]
    for name, limit in zip(paper000.NAMES, limits, strict=True):
        assert fused["subnets"][name]["macs"] <= limit
        assert sampled["structure"][name]["conv1"] <= 16
    assert fused["subnets"]["1.0"]["weights"] == 281_914
    net = dk.load(dk.models.resnet20(shortcut="proj_all"), here.file("ours-s", "net.safetensors"))
    assert dk.subnets.keys(net) == (*paper000.NAMES, 1.0)
    alone = here.result("individual-s-subnet1")
    assert alone is not None
    assert alone["macs"] == fused["subnets"]["subnet1"]["macs"]
    assert set(dk.subnets.made(net).subnets[0].channels.values()) <= set(range(65))  # prefixes: counts


def results() -> dict[str, Any]:
    machine = {
        "machine": {"cpu": "some CPU"},
        "commit": "abc",
        "recipe": {"epochs": 7},
        "test_images": 10,
        "images": 20,
    }
    subnets = {
        w: {"accuracy": 0.5 + float(w) / 4, "weights": 1000, "macs": int(1e6 * float(w))}
        for w in paper000_report.WIDTHS
    }
    timed = {"network": "ours-u", "bits": 32, "batch": 1, "threads": 1, "ms_p20": 0.1, "ms_p80": 2.0}
    rows = [{**timed, "subnet": w, "ms": float(w)} for w in paper000_report.WIDTHS]
    path = {
        "reached": {"subnet1": None, "subnet2": 2.5},
        "nested": True,
        "structure": {"subnet1": {"conv1": 3, "linear": 10}},
    }
    return {
        "ours-u": {**machine, "subnets": subnets},
        "individual-0.5": {**machine, "accuracy": 0.777},
        "integers": {**machine, "post_training": {"8": {"0.25": 0.55}}, "aware": {"8": {"0.25": 0.56}}},
        "single-path": {**machine, **path, "seconds": 30.0, "history": [{}] * 3},
        "multi-path": {**machine, **path, "seconds": 100.0, "history": [{}] * 9},
        "latency": {"machine": machine["machine"], "commit": "abc", "rows": rows},
    }


def test_the_report_says_what_was_found_and_nothing_else(tmp_path: Path) -> None:
    written = paper000_report.write(results(), tmp_path)
    assert sorted(f.name for f in written) == [
        "accuracy.svg",
        "results.json",
        "structure.svg",
        "tables.md",
        "tradeoff.svg",
    ]
    text = (tmp_path / "tables.md").read_text()
    assert "some CPU, commit abc" in text
    assert "Epochs: 7: ours-u" in text
    assert "| 0.25 | - | - | - | - | 56.2 | - | 55.0 | 56.0 | 79.5 | 81.0 | 80.7 | 80.6 |" in text
    assert "| 0.5 | - | - | 77.7 | - | 62.5 |" in text
    assert "Single-path takes 0.30 of multi-path's time (3 and 9 epochs)." in text
    assert "cut at the end, 2.50" in text
    assert json.loads((tmp_path / "results.json").read_text()) == results()
    # Nothing done yet.
    (empty,) = [f for f in paper000_report.write({}, tmp_path / "none") if f.suffix == ".md"]
    assert "No run is done yet" in empty.read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYNKERN_CACHE", str(tmp_path / "cache"))
    return python_batches(tmp_path / "data")


def test_the_command_trains_and_continues(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "subnets", "--data", str(folder), "--out", str(tmp_path / "out"), "--widths", "0.25,1.0"]
    argv += ["--epochs", "1", "--batch", "8", "--threads", "1", "--device", "cpu"]
    assert main(argv) == 0
    out = capsys.readouterr()
    assert "0.25: " in out.out
    assert "resnet20: epoch 1/1" in out.err
    net = dk.load(dk.models.resnet20(), tmp_path / "out" / "resnet20.safetensors")
    assert dk.subnets.keys(net) == (0.25, 1.0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert main(argv) == 0  # it is done: loaded, and saved again
    again = dk.load(dk.models.resnet20(), tmp_path / "out" / "resnet20.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())
    capsys.readouterr()
    assert main([*argv, "--lr", "0.3"]) == 2
    assert "another recipe (lr 0.1, now 0.3)" in capsys.readouterr().err
    assert main([*argv, "--suite", "paper000", "--list"]) == 0
    assert "ours-u" in capsys.readouterr().out
    assert main([*argv, "--suite", "paper000", "--report", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "tables.md").is_file()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--data", "nowhere"], "--data: folder: expected a folder with images"),
        (["--epochs", "0"], "epochs"),
        (["--lr", "-1"], "learning rate"),
        (["--batch", "1000"], "batch: expected 1 to 20"),
        (["--threads", "0"], "--threads"),
        (["--images", "0"], "--images"),
        (["--widths", "0.5,2"], "at most 1"),
        (["--widths", "wide"], "--widths"),
        (["--device", "toaster"], "--device"),
        (["--suite", "paper000", "--only", "zebra"], "only: expected some of"),
        (["--suite", "paper999"], "--suite"),
    ],
)
def test_errors_of_the_user_are_one_line(
    tmp_path: Path, folder: Path, change: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["train", "subnets", "--data", str(folder), "--out", str(tmp_path / "out"), "--batch", "8", *change]) == 2
    )
    err = capsys.readouterr().err
    assert err.startswith("dynkern: error: ")
    assert named in err
    assert err.count("\n") == 1
