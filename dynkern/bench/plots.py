"""The two plots, drawn from results alone."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from dynkern.bench.cases import counted
from dynkern.bench.extras import need
from dynkern.bench.panels import Panel, panels
from dynkern.bench.peers import LABELS, label
from dynkern.bench.report import big, caption, even_text
from dynkern.bench.results import ENGINE, OURS, Results

# Okabe and Ito's palette, which colour-blind readers can tell apart, with markers that do so without colour.
# The two strong colours, blue and vermilion, are dynkern's own.
STYLE = {
    "engine": ("#D55E00", "o"),
    "dynkern": ("#0072B2", "o"),
    "dynkern_int8": ("#D55E00", "o"),
    "eager_sliced": ("#999999", "v"),
    "eager_extracted": ("#E69F00", "s"),
    "torch_dense": ("#E69F00", "s"),
    "torch_sparse": ("#999999", "v"),
    "torch_int8": ("#F0E442", "s"),
    "onnxruntime_int8": ("#009E73", "v"),
    "onnxruntime_2bit": ("#009E73", "D"),
    "torch_compile": ("#CC79A7", "D"),
    "onnxruntime": ("#009E73", "^"),
    "openvino": ("#56B4E9", "P"),
}
OTHER = ("#666666", "x")
INK, FAINT = "#222222", "#767676"
IDEAL = "ideal"
TITLES = {
    "width": ("Latency against width", "ideal: time proportional to MACs"),
    "sparsity": ("Latency of ternary layers against zeros", "ideal: time proportional to nonzeros"),
}
# Inches: the axes of a panel, the gaps between them, the margins around all of them, and what each further line of the
# legend or of the text at the foot adds to these.
WIDE, TALL = 2.75, 1.85
GAP_WIDE, GAP_TALL = 0.62, 0.95
LEFT, RIGHT, TOP, BOTTOM = 0.75, 0.28, 1.2, 0.95
LEGEND_LINE, FOOT_LINE = 0.19, 0.14
# Widths that have room for their MACs below the axis; of more only the quarters are named.
MOST_TICKS = 8
# Letters of the foot on an inch.
FOOT_LETTERS = 17


def draw(results: Results, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``width`` and ``sparsity`` as .png and .svg into ``folder``; a suite that was not run is left out.

    Raises:
        ImportError: matplotlib is missing.
    """
    need("matplotlib").use("agg")
    plt = need("matplotlib.pyplot")
    folder = Path(folder)
    written = []
    style = {"font.size": 9, "svg.hashsalt": "dynkern", "axes.spines.top": False, "axes.spines.right": False}
    for suite in TITLES:
        chosen = [panel for panel in panels(results.rows, suite) if panel.curves]
        if not chosen:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with plt.rc_context({**style, "axes.edgecolor": FAINT, "text.color": INK, "axes.labelcolor": INK}):
            foot = caption(results)
            if any(ENGINE in panel.curves for panel in chosen):
                foot += "\nThe ideal line starts from the engine's time at full width."
            figure = _figure(plt, suite, chosen, foot)
            for kind, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
                written.append(folder / f"{suite}.{kind}")
                figure.savefig(written[-1], **options)
            plt.close(figure)
    return written


def _figure(plt: Any, suite: str, chosen: Sequence[Panel], foot: str) -> Any:
    rows = [list(group) for _, group in groupby(chosen, lambda panel: panel.case)]
    columns = max(map(len, rows))
    wide = LEFT + max(columns * WIDE + (columns - 1) * GAP_WIDE, 6.2) + RIGHT
    entries = _entries(chosen)
    per_line = _per_line(len(entries), wide)
    top = TOP + LEGEND_LINE * ((len(entries) - 1) // per_line)
    letters = int(FOOT_LETTERS * (wide - LEFT - RIGHT))
    lines = [line for part in foot.splitlines() for line in textwrap.wrap(part, letters)]
    bottom = BOTTOM + FOOT_LINE * (len(lines) - 1)
    tall = top + len(rows) * TALL + (len(rows) - 1) * GAP_TALL + bottom
    figure = plt.figure(figsize=(wide, tall))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(
        left=LEFT / wide,
        right=1 - RIGHT / wide,
        bottom=bottom / tall,
        top=1 - top / tall,
        wspace=GAP_WIDE / WIDE,
        hspace=GAP_TALL / TALL,
    )
    handles: dict[str, Any] = {}
    for row, line in zip(grid, rows, strict=True):
        for axes in row[len(line) :]:
            axes.set_visible(False)
        for axes, panel in zip(row, line, strict=False):
            handles |= _panel(axes, panel)
        row[0].set_ylabel("time of one call")
    figure.align_ylabels(grid[:, 0])
    for axes in grid[-1]:
        axes.set_xlabel("width (MACs per call)" if suite == "width" else "zeros among the weights (%)")
    title, ideal = TITLES[suite]
    figure.text(LEFT / wide, 1 - 0.12 / tall, title, fontsize=14, fontweight="bold", va="top")
    figure.legend(
        [handles[entry] for entry in entries],
        [ideal if entry == IDEAL else label(entry, suite) for entry in entries],
        loc="upper left",
        bbox_to_anchor=((LEFT - 0.06) / wide, 1 - 0.4 / tall),
        ncols=per_line,
        frameon=False,
        borderaxespad=0,
        columnspacing=1.6,
        handlelength=2.2,
    )
    figure.text(LEFT / wide, 0.1 / tall, "\n".join(lines), fontsize=7.5, color=FAINT, va="bottom")
    return figure


def _entries(chosen: Sequence[Panel]) -> list[str]:
    """What the legend lists, in its order: variants and the ideal line."""
    drawn = dict.fromkeys(variant for panel in chosen for variant in panel.curves)
    ideal = [IDEAL] if any(len(panel.ideal()) > 1 for panel in chosen) else []
    return [*(v for v in LABELS if v in drawn), *(v for v in drawn if v not in LABELS), *ideal]


def _per_line(entries: int, wide: float) -> int:
    """How many entries of the legend stand in one line: as many as fit, or as few as fill two lines evenly."""
    most = 7 if wide > 12 else 4 if wide > 9 else 3
    return entries if entries <= most else min(most, max(3, math.ceil(entries / 2)))


def _panel(axes: Any, panel: Panel) -> dict[str, Any]:
    """Draw one panel; returns a line of each kind for the legend."""
    handles: dict[str, Any] = {}
    scale = 100 if panel.suite == "sparsity" else 1
    ideal = panel.ideal()
    if len(ideal) > 1:
        (handles[IDEAL],) = axes.plot(
            [scale * value for value, _ in ideal],
            [seconds for _, seconds in ideal],
            color=INK,
            ls=(0, (4, 3)),
            lw=1,
            zorder=9,
        )
    # dynkern's own last, so that they lie on top, the engine above all.
    for variant in sorted(panel.curves, key=lambda name: OURS.index(name) if name in OURS else -1):
        curve = panel.curves[variant]
        color, marker = STYLE.get(variant, OTHER)
        x = [scale * row.value for row in curve]
        low, mid, high = ([getattr(row, f"{q}_s") for row in curve] for q in ("p20", "median", "p80"))
        axes.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
        bold = {"lw": 2.4, "ms": 5} if variant in OURS else {"lw": 1.3, "ms": 4}
        (handles[variant],) = axes.plot(x, mid, color=color, marker=marker, **bold)
    axes.set_yscale("log")
    _ticks(axes, panel)
    axes.grid(True, color="#E4E4E4", lw=0.6)
    axes.set_axisbelow(True)
    axes.set_title(panel.case, loc="left", fontsize=9.5, fontweight="bold", pad=16)
    where = f"{counted(panel.batch, 'batch')}, {counted(panel.threads, 'thread')}"
    axes.text(0, 1.025, where, transform=axes.transAxes, fontsize=8.5, color=FAINT, va="bottom")
    if panel.suite == "sparsity":
        _mark_even(axes, panel)
    return handles


def _ticks(axes: Any, panel: Panel) -> None:
    ticker = need("matplotlib.ticker")
    low, high = axes.get_ylim()
    # Few decades leave room for more than their powers of ten.
    subs = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda seconds, _: _tick(seconds)))
    axes.tick_params(length=2.5, color=FAINT, labelsize=8)
    if panel.suite == "sparsity":
        axes.set_xlim(-3, 101)
        axes.set_xticks([0, 20, 40, 60, 80, 100])
        return
    at = {row.value: row.macs for curve in panel.curves.values() for row in curve}
    if len(at) > MOST_TICKS:
        axes.set_xticks(list(at), minor=True)
        at = {value: macs for value, macs in at.items() if value % 0.25 == 0}
    axes.set_xticks(list(at), [f"{value:g}\n{big(macs)}" for value, macs in at.items()])


def _tick(seconds: float) -> str:
    unit, scale = ("s", 1.0) if seconds >= 0.9995 else ("ms", 1e3) if seconds >= 0.9995e-3 else ("µs", 1e6)
    return f"{seconds * scale:g} {unit}"


def _mark_even(axes: Any, panel: Panel) -> None:
    even = panel.break_even()
    if even is not None and even > 0:
        axes.axvline(100 * even, color=INK, lw=0.8, ls=":")
    text = even_text(even)
    axes.text(1, 1.025, text, transform=axes.transAxes, fontsize=8.5, ha="right", va="bottom")
