"""What the benchmark gives: the results file, tables, plots, and facts about the machine."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dynkern.bench import plots, report, results
from dynkern.bench.machine import _quota, commit, cores, cpu_model, facts
from dynkern.bench.panels import Panel, break_even, panels
from dynkern.bench.results import Results, Row

image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")
console = pytest.importorskip("rich.console")


def made_results() -> Results:
    """Both suites, two panels each, with a loss, a failure, a gap, and a baseline at one point only."""
    rows = []
    for threads_ in (1, 2):
        for value in (0.25, 0.5, 1.0):
            at = {"suite": "width", "case": "Net", "value": value, "batch": 4, "threads": threads_}
            at |= {"macs": int(1e6 * value**2), "dense_macs": 10**6}
            seconds = {"dynkern": 1e-3 * value, "eager_extracted": 2e-3, "engine": 3e-4 * value, "openvino": 4e-4}
            rows += timed(at, seconds)
        for value in (0.0, 0.5, 0.9):
            at = {"suite": "sparsity", "case": "layer", "value": value, "batch": 1, "threads": threads_}
            at |= {"macs": int(1e6 * (1 - value)), "dense_macs": 10**6}
            rows += timed(at, {"dynkern": 2e-4 * (1.05 - value), "torch_dense": 1e-4})
    rows[1] = dataclasses.replace(
        rows[1], status="failed", reason="RuntimeError: no", median_s=None, p20_s=None, p80_s=None, speedup={}
    )
    return Results(
        machine={"cpu": "A CPU", "cores": 2, "isa": "avx2", "system": "Linux x86_64"},
        versions={"dynkern": "0.1.0", "torch": "2.13.0", "openvino": "2026.4", "triton": "3.5"},
        commit="abc123",
        date="2026-01-02T03:04:05+00:00",
        left_out={"onnxruntime": "onnxruntime is not installed"},
        rows=tuple(rows),
    )


def timed(at: dict, seconds: dict[str, float]) -> list[Row]:
    return [
        Row(
            **at,
            variant=name,
            status="ok",
            error=1e-7,
            tolerance=1e-5,
            median_s=s,
            p20_s=0.9 * s,
            p80_s=1.1 * s,
            rounds=5,
            calls=2,
            speedup={other: t / s for other, t in seconds.items() if other != name},
        )
        for name, s in seconds.items()
    ]


def test_results_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    assert results.write(made_results(), path) == path
    assert results.read(path) == made_results()
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]
    assert json.loads(path.read_text())["schema"] == results.SCHEMA


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = results.write(made_results(), tmp_path / "results.json")
    old = path.read_text()
    with pytest.raises(ValueError, match="nan"):
        results.write(dataclasses.replace(made_results(), accuracy={"plain": math.nan}), path)
    assert path.read_text() == old
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema=99), "schema 1, got 99"),
        (lambda c: c.pop("schema"), "got None"),
        (lambda c: c.pop("machine"), "machine"),
        (lambda c: c.update(color="blue"), "color"),
        (lambda c: c.pop("rows"), "rows"),
        (lambda c: c["rows"][0].pop("variant"), "variant"),
        (lambda c: c["rows"][0].update(status="fine"), "status"),
        (lambda c: c["rows"][0].update(suite="depth"), "suite"),
        (lambda c: c["rows"][0].update(median_s=None), "median_s"),
        (lambda c: c.update(rows=3), "iterable"),
    ],
)
def test_a_foreign_results_file_is_refused(tmp_path: Path, change: Callable, message: str) -> None:
    path = results.write(made_results(), tmp_path / "results.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        results.read(path)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '"results"'])
def test_a_results_file_that_is_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: expected"):
        results.read(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.0, 2.0), (0.5, 3.0)], 0.0),
        ([(0.2, 2.0), (0.5, 3.0)], 0.2),
        ([(0.0, 0.5), (0.9, 0.9)], None),
        ([(0.0, 2.0), (0.5, 0.5)], None),
        ([(0.0, 0.5), (0.8, 2.0)], 0.4),
        ([(0.0, 0.25), (0.6, 2.0)], 0.4),
        ([(0.0, 2.0), (0.4, 0.5), (0.8, 2.0)], 0.6),
        ([(0.0, 0.5), (0.5, 1.0)], 0.5),
        ([], None),
    ],
)
def test_break_even_is_where_the_ratio_passes_one_for_good(
    points: list[tuple[float, float]], expected: float | None
) -> None:
    assert break_even(points) == (None if expected is None else pytest.approx(expected))


def test_ideal_line_is_proportional_to_the_macs_left() -> None:
    width, _ = panels(made_results().rows, "width")
    # From the engine's time, also where the modules have one.
    assert width.ideal() == [pytest.approx(p) for p in ((0.25, 3e-4 / 16), (0.5, 3e-4 / 4), (1.0, 3e-4))]
    without = [row for row in made_results().rows if row.variant != "engine"]
    assert panels(without, "width")[0].ideal()[-1] == (1.0, 1e-3)
    layer, _ = panels(made_results().rows, "sparsity")
    assert layer.ideal() == [pytest.approx(p, rel=1e-5) for p in ((0.0, 2.1e-4), (0.5, 1.05e-4), (0.9, 2.1e-5))]
    # 2 (1.05 - value) passes 1 between 0.5 and 0.9; the interpolation is in the logarithm.
    assert layer.break_even() == pytest.approx(0.5 + 0.4 * math.log(1.1) / math.log(1.1 / 0.3))


def test_plots_are_drawn_from_the_file_alone(tmp_path: Path) -> None:
    found = results.read(results.write(made_results(), tmp_path / "results.json"))
    written = plots.draw(found, tmp_path / "plots")
    assert [path.name for path in written] == ["width.png", "width.svg", "sparsity.png", "sparsity.svg"]
    for path in written:
        if path.suffix == ".png":
            with image.open(path) as png:
                wide, tall = png.size
                assert 900 < wide < 4000
                assert 400 < tall < 4000
                colours = {colour for _, colour in png.convert("RGB").getcolors(wide * tall)}
            # dynkern's lines are there, in their own colours.
            assert (0x00, 0x72, 0xB2) in colours
            assert ((0xD5, 0x5E, 0x00) in colours) == (path.stem == "width")
        else:
            assert path.read_text().rstrip().endswith("</svg>")
    again = plots.draw(found, tmp_path / "again")
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(written, again, strict=True))


def test_a_suite_that_was_not_run_is_not_drawn(tmp_path: Path) -> None:
    rows = tuple(row for row in made_results().rows if row.suite == "sparsity")
    written = plots.draw(dataclasses.replace(made_results(), rows=rows), tmp_path)
    assert {path.stem for path in written} == {"sparsity"}
    assert plots.draw(dataclasses.replace(made_results(), rows=()), tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def shown(found: Results) -> str:
    out = console.Console(width=200, record=True, file=io.StringIO())
    report.show(found, out)
    text: str = out.export_text()
    return text


def test_tables_show_losses_failures_and_what_is_absent() -> None:
    text = shown(made_results())
    assert (
        "A CPU, 2 cores, avx2 · 1 and 2 threads · dynkern 0.1.0 (commit abc123) · torch 2.13.0 · openvino 2026.4"
        in text
    )
    # Not a version that nothing here ran with.
    assert "triton" not in text
    assert "FAILED" in text
    assert "eager, extracted: failed at Net, 0.25: RuntimeError: no" in text
    assert "ONNX Runtime: onnxruntime is not installed." in text
    assert text.count("Net, batch 4, ") == 2
    assert "break-even 53% against dense torch" in text


def test_table_of_real_images_shows_the_accuracy() -> None:
    accuracy = {
        "images": 10_000,
        "plain": 0.8103,
        "dynkern": 0.8102,
        "agree": 0.9999,
        "difference": 2e-5,
        "largest": 38.0,
    }
    engine = {"engine": 0.8104, "engine_agree": 0.9998, "engine_difference": 3e-5}

    def cells(accuracy: dict[str, float]) -> list[list[str]]:
        text = shown(dataclasses.replace(made_results(), accuracy=accuracy))
        lines = text[text.index("10,000 test images") : text.index("Width.")].splitlines()
        return [re.split(r" {2,}", line.strip()) for line in (lines[0], *lines[2:]) if line.strip()]

    assert cells(accuracy | engine) == [
        ["10,000 test images", "PyTorch", "dynkern modules", "dynkern engine"],
        ["right answers", "81.03%", "81.02%", "81.04%"],
        ["answers as PyTorch's", "9,999", "9,998"],
        ["largest difference of a logit", "2.0e-05", "3.0e-05"],
        ["largest logit", "38.0"],
    ]
    # An engine that did not compile, or a file from before there was one.
    assert cells(accuracy)[1:4] == [
        ["right answers", "81.03%", "81.02%", "-"],
        ["answers as PyTorch's", "9,999", "-"],
        ["largest difference of a logit", "2.0e-05", "-"],
    ]


def test_ratios_compare_like_with_like_and_the_caption_says_so() -> None:
    text = shown(made_results())
    lines = [re.split(r" {2,}", line.strip()) for line in text.splitlines() if "250 k" in line]
    # 2 ms eager against the modules' 0.5 ms, OpenVINO's 0.4 ms against the engine's 0.15 ms; none between ours.
    expected = ["0.5", "250 k", "500 us", "2.00 ms (4.00x)", "150 us", "400 us (2.67x)", "1e-07"]
    assert lines == [expected, expected]
    assert "the modules against eager PyTorch, the engine against torch.compile, ONNX Runtime and OpenVINO" in " ".join(
        text.split()
    )
    heads = [line for line in text.splitlines() if "MACs" in line and ("width" in line or "zeros" in line)]
    assert ["modules" in line for line in heads] == [True, False, True, False]


def test_no_ratio_where_its_counterpart_has_no_time() -> None:
    rows = tuple(row for row in made_results().rows if row.variant != "engine")
    text = shown(dataclasses.replace(made_results(), rows=rows))
    assert "400 us (" not in text
    assert "2.00 ms (4.00x)" in text
    assert "Summary." not in text


def test_summary_sets_the_time_saved_beside_the_macs_saved() -> None:
    rows = tuple(dataclasses.replace(row, batch=1) if row.suite == "width" else row for row in made_results().rows)
    found = dataclasses.replace(made_results(), rows=rows)
    # One line per network: not for two threads.
    assert report.summary(found) == ["Net: 0.250 at width 0.25 (75.0 us of 300 us), ideal 0.062"]
    assert shown(found).rstrip().endswith("\nNet: 0.250 at width 0.25 (75.0 us of 300 us), ideal 0.062")
    assert report.summary(made_results()) == []
    one_width = tuple(row for row in rows if row.value == 1.0)
    assert report.summary(dataclasses.replace(found, rows=one_width)) == []


def many_widths(*seconds: float) -> Results:
    rows = []
    for i, time in enumerate(seconds, 1):
        at = {"suite": "width", "case": "Net", "value": i / 16, "batch": 1, "threads": 1}
        rows += timed(at | {"macs": 1000 * i**2, "dense_macs": 10**6}, {"engine": time})
    return dataclasses.replace(made_results(), rows=tuple(rows))


def test_summary_says_where_time_falls_while_the_width_rises() -> None:
    (line,) = report.summary(many_widths(*(1e-3 * i for i in range(1, 17))))
    assert line.endswith("; of 16 widths every one takes longer than the one before")
    (line,) = report.summary(many_widths(1e-3, 3e-3, 2e-3, 4e-3, 5e-3, 1e-3))
    assert line.endswith(
        "; of 6 widths every one takes longer than the one before but from 0.125 to 0.1875, 0.3125 to 0.375"
    )


def test_of_many_widths_the_quarters_are_named(tmp_path: Path) -> None:
    from matplotlib import pyplot

    chosen = panels(many_widths(*(1e-3 * i for i in range(1, 17))).rows, "width")
    with pyplot.rc_context({"backend": "agg"}):
        figure = plots._figure(pyplot, "width", chosen, "")
        (axes,) = figure.axes
        assert [text.get_text() for text in axes.get_xticklabels()] == [
            "0.25\n16.0 k",
            "0.5\n64.0 k",
            "0.75\n144 k",
            "1\n256 k",
        ]
        pyplot.close(figure)


def crowded(case_count: int, batches: tuple[int, ...], variants: tuple[str, ...]) -> list[Panel]:
    rows = []
    for case in range(case_count):
        for batch in batches:
            for value in (0.25, 1.0):
                at = {"suite": "width", "case": f"Net {case}", "value": value, "batch": batch, "threads": 1}
                at |= {"macs": int(1e6 * value**2), "dense_macs": 10**6}
                rows += timed(at, dict.fromkeys(variants, 1e-3 * value))
    return panels(rows, "width")


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
@pytest.mark.parametrize("entries", [2, 6, 7])
@pytest.mark.parametrize("words", [5, 60])
def test_nothing_in_a_plot_overlaps_or_is_cut_off(columns: int, entries: int, words: int) -> None:
    from matplotlib import pyplot

    variants = ("engine", "dynkern", "eager_sliced", "eager_extracted", "torch_compile", "onnxruntime", "openvino")
    chosen = crowded(2, tuple(range(1, columns + 1)), variants[:entries])
    with pyplot.rc_context({"font.size": 9, "backend": "agg"}):
        figure = plots._figure(pyplot, "width", chosen, " ".join(["openvino"] * words))
        figure.canvas.draw()
        page = figure.bbox
        title, foot = (text.get_window_extent() for text in figure.texts)
        legend = figure.legends[0].get_window_extent()
        drawn = [axes.get_tightbbox() for axes in figure.axes if axes.get_visible()]
        pyplot.close(figure)
    for box in (title, legend, foot, *drawn):
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1
    boxes = [title, legend, foot, *drawn]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.5e-6, "2.50 us"),
        (9.996e-6, "10.0 us"),
        (99.96e-6, "100 us"),
        (9.996e-4, "1.00 ms"),
        (0.0123, "12.3 ms"),
        (2, "2.00 s"),
    ],
)
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def test_facts_name_machine_versions_and_date(tmp_path: Path) -> None:
    found = facts()
    assert {"cpu", "cores", "isa", "system"} == set(found["machine"])
    assert {"dynkern", "torch", "numpy", "python"} <= set(found["versions"])
    assert found["date"].endswith("+00:00")
    assert cores() >= 1
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some  CPU @ 2.00GHz\n")
    assert cpu_model(tmp_path / "cpuinfo") == "Some CPU @ 2.00GHz"
    assert cpu_model(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "expected"), [("max 100000", None), ("150000 100000", 2), ("50000 100000", 1), ("?", None)]
)
def test_quota_of_the_control_group(tmp_path: Path, text: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert _quota(tmp_path / "cpu.max") == expected
    assert _quota(tmp_path / "none") is None


def test_no_commit_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dynkern.__file__", str(tmp_path / "site" / "dynkern" / "__init__.py"))
    assert commit() is None
