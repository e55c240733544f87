"""Results as tables of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from dynkern.bench.cases import counted
from dynkern.bench.extras import need
from dynkern.bench.panels import Panel, panels
from dynkern.bench.peers import LABELS, label
from dynkern.bench.results import ENGINE, ENGINE_INT8, MODULES, OURS, Results, Row, rival

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_HOW = (
    "Median time of one call; in brackets, how many times faster {faster} (median over the rounds; below 1: slower). "
    "Error: the largest of all variants against float64, relative to the {relative}."
)
HEAD = {
    "width": "[bold]Width.[/] "
    + _HOW.format(
        faster="dynkern is, like against like: the modules against eager PyTorch, the engine against torch.compile, "
        "ONNX Runtime and OpenVINO",
        relative="largest output",
    ),
    "int8": "[bold]Integers.[/] "
    + _HOW.format(faster="dynkern's engine in int8 is", relative="largest output; it is that of rounding to 8 bits"),
    "sparsity": "[bold]Sparsity.[/] "
    + _HOW.format(
        faster="dynkern is, int8 activations against int8 activations",
        relative="sum of magnitudes behind an output (with int8 activations, to the greatest input times the weights "
        "that are not zero)",
    ),
    "ternary-network": "[bold]Ternary network.[/] "
    + _HOW.format(faster="dynkern's engine with the packed weights is", relative="largest output"),
    "real": "[bold]Trained network.[/] "
    + _HOW.format(faster="dynkern's modules are, like against like", relative="largest output"),
}
SUMMARY = (
    "[bold]Summary.[/] Time of dynkern's engine at the least width as a share of that at the full width; ideal: the "
    "share of the MACs. Batch 1, 1 thread.\n"
)
# Columns of a head before it is broken into lines.
HEAD_WIDTH = 13
USUAL_WIDTHS = 4


def show(results: Results, console: Console) -> None:
    """Print everything: the machine, a table per case, batch and thread count, what was not measured, a summary."""
    console.print(caption(results), highlight=False, markup=False)
    if results.accuracy:
        _show_accuracy(results.accuracy, console)
    for name, sizes in results.sizes.items():
        _show_sizes(name, sizes, console)
    for suite, rows in groupby(results.rows, lambda row: row.suite):
        console.print(f"\n{HEAD[suite]}\n", highlight=False)
        for _, group in groupby(rows, lambda row: (row.case, row.batch, row.threads)):
            _show_panel(list(group), console)
    for line in notes(results):
        console.print(line, highlight=False, markup=False)
    if lines := summary(results):
        console.print(f"\n{SUMMARY}", highlight=False)
        for line in lines:
            console.print(line, highlight=False, markup=False)
        console.print()


def _show_panel(rows: Sequence[Row], console: Console) -> None:
    first = rows[0]
    title = f"{first.case}, {counted(first.batch, 'batch')}, {counted(first.threads, 'thread')}"
    console.print(title, style="bold", highlight=False)
    console.print(table(rows))
    if first.suite == "sparsity":
        console.print(f"{even_text(panels(rows, 'sparsity')[0].break_even())} against dense torch", highlight=False)
    console.print()


def _show_accuracy(found: Mapping[str, float], console: Console) -> None:
    """What a run on real images found: a column per variant."""
    images = int(found["images"])
    ours = {MODULES: "", ENGINE: "engine_", ENGINE_INT8: "engine_int8_"}
    if ENGINE_INT8 not in found:
        del ours[ENGINE_INT8]
    made = _table([f"{images:,} test images", *(LABELS[name] for name in ("eager", *ours))])
    made.add_row("right answers", *(_known("{:.2%}", found.get(key)) for key in ("plain", *ours)))
    agree = [found.get(f"{prefix}agree") for prefix in ours.values()]
    made.add_row("answers as PyTorch's", "", *(_known("{:,}", a if a is None else round(a * images)) for a in agree))
    differences = [found.get(f"{prefix}difference") for prefix in ours.values()]
    made.add_row("largest difference of a logit", "", *(_known("{:.1e}", d) for d in differences))
    made.add_row("largest logit", f"{found['largest']:.1f}", *[""] * len(ours))
    console.print()
    console.print(made)


def _show_sizes(name: str, sizes: Mapping[str, int], console: Console) -> None:
    """The bytes of one network, and how many times less than float32 they are."""
    made = _table([name, "bytes", "float32 is larger"])
    for what, count in sizes.items():
        whole = sizes[f"float32 {what.split()[-1]}"]
        made.add_row(what, f"{count:,}", f"{whole / count:.1f} times")
    console.print()
    console.print(made)


def _known(form: str, value: float | None) -> str:
    return "-" if value is None else form.format(value)


def summary(results: Results) -> list[str]:
    """How far the engine's time falls with the width, a line per network."""
    lines = []
    for panel in panels(results.rows, "width"):
        ends = panel.scaling() if (panel.batch, panel.threads) == (1, 1) else None
        if ends is None:
            continue
        (least, low), (full, high) = ((row, row.median_s or 0.0) for row in ends)
        lines.append(
            f"{panel.case}: {low / high:.3f} at width {least.value:g} ({duration(low)} of {duration(high)}), "
            f"ideal {least.macs / full.macs:.3f}{_monotone(panel)}"
        )
    return lines


def _monotone(panel: Panel) -> str:
    """Whether time rises with the width, of more widths than the usual four."""
    count = len(panel.curves[ENGINE])
    if count <= USUAL_WIDTHS:
        return ""
    down = ", ".join(f"{a:g} to {b:g}" for a, b in panel.steps_down())
    return f"; of {count} widths every one takes longer than the one before" + (f" but from {down}" if down else "")


def caption(results: Results) -> str:
    """Machine, threads, versions, commit and date in one line."""
    machine, versions = results.machine, results.versions
    threads = sorted({row.threads for row in results.rows})
    ran = {"torch"} | {row.variant.removesuffix("_int8") for row in results.rows if row.variant not in OURS}
    parts = [
        f"{machine['cpu']}, {counted(machine['cores'], 'core')}, {machine['isa']}",
        f"{' and '.join(map(str, threads))} {'thread' if threads == [1] else 'threads'}",
        f"dynkern {versions['dynkern']}" + (f" (commit {results.commit})" if results.commit else ""),
        *(f"{name} {version}" for name, version in versions.items() if name in ran),
        results.date[:10],
    ]
    return " · ".join(parts)


def table(rows: Sequence[Row]) -> Table:
    """One case with one batch size and thread count: a line per width or share of zeros, a column per variant."""
    sparse = rows[0].suite in ("sparsity", "ternary-network")
    variants = list(dict.fromkeys(row.variant for row in rows))
    heads = [textwrap.fill(label(variant, rows[0].suite), HEAD_WIDTH) for variant in variants]
    made = _table(["zeros" if sparse else "width", "MACs", *heads, "error"])
    for value, group in groupby(rows, lambda row: row.value):
        at = {row.variant: row for row in group}
        cells = [_cell(at.get(variant), at.get(rival(variant, rows[0].suite))) for variant in variants]
        made.add_row(
            f"{value:.0%}" if sparse else f"{value:g}", big(next(iter(at.values())).macs), *cells, _error(at.values())
        )
    return made


def _table(heads: Sequence[str]) -> Table:
    made: Table = need("rich.table").Table(box=need("rich.box").SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    for head in heads:
        made.add_column(head, justify="right", overflow="fold")
    return made


def _cell(row: Row | None, ours: Row | None) -> str:
    if row is None:
        return "-"
    if row.median_s is None:
        return f"[bold red]{row.status.upper()}[/]"
    factor = ours.speedup.get(row.variant) if ours and row.variant not in OURS else None
    if factor is None:
        return duration(row.median_s)
    color = "green" if factor >= 1 else "red"
    return f"{duration(row.median_s)} [{color}]({factor:.2f}x)[/]"


def _error(rows: Iterable[Row]) -> str:
    known = [row.error for row in rows if row.error is not None]
    return f"{max(known):.0e}" if known else "-"


def notes(results: Results) -> list[str]:
    """What was not measured, and why; what went wrong."""
    lines = [f"{LABELS.get(variant, variant)}: {why}." for variant, why in results.left_out.items()]
    failures: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        if row.status != "ok":
            failures.setdefault((row.variant, row.reason or row.status), []).append(row)
    for (variant, reason), rows in failures.items():
        where = f"{rows[0].case}, {rows[0].value:g}" + (f" and {len(rows) - 1} more" if len(rows) > 1 else "")
        lines.append(f"{label(variant, rows[0].suite)}: {rows[0].status} at {where}: {reason}")
    return lines


def even_text(share: float | None) -> str:
    """The answer of :meth:`~dynkern.bench.panels.Panel.break_even` in words."""
    if share is None:
        return "no break-even"
    return f"break-even {share:.0%}" if share > 0 else "faster throughout"


def duration(seconds: float) -> str:
    """Three digits with the unit that suits: us, ms or s."""
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        if seconds * scale < 999.5:
            value = seconds * scale
            return f"{value:.{_places(value)}f} {unit}"
    return f"{seconds:.{_places(seconds)}f} s"


def _places(value: float) -> int:
    return 2 if value < 9.995 else 1 if value < 99.95 else 0


def big(number: float) -> str:
    """``2.62 M``, ``1.81 G``."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.{_places(number / scale)}f} {unit}"
    return f"{number:.0f}"
