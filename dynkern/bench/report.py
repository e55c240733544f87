"""Results as tables of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from dynkern.bench.cases import counted
from dynkern.bench.extras import need
from dynkern.bench.panels import panels
from dynkern.bench.peers import LABELS
from dynkern.bench.results import OURS, Results, Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_HOW = (
    "Median time of one call; in brackets, how many times faster dynkern is (median over the rounds; below 1 it is "
    "slower). Error: the largest of all variants against float64, {relative}."
)
HEAD = {
    "width": "[bold]Width.[/] " + _HOW.format(relative="relative to the largest output"),
    "sparsity": "[bold]Sparsity.[/] " + _HOW.format(relative="relative to the sum of magnitudes behind an output"),
    "real": "[bold]Trained network.[/] " + _HOW.format(relative="relative to the largest output"),
}


def show(results: Results, console: Console) -> None:
    """Print everything: the machine, one table per case, batch and thread count, and what was not measured."""
    console.print(caption(results), highlight=False, markup=False)
    for line in accuracy(results):
        console.print(line, highlight=False)
    for suite, rows in groupby(results.rows, lambda row: row.suite):
        console.print(f"\n{HEAD[suite]}\n", highlight=False)
        for _, group in groupby(rows, lambda row: (row.case, row.batch, row.threads)):
            _show_panel(list(group), console)
    for line in notes(results):
        console.print(line, highlight=False, markup=False)


def _show_panel(rows: Sequence[Row], console: Console) -> None:
    first = rows[0]
    title = f"{first.case}, {counted(first.batch, 'batch')}, {counted(first.threads, 'thread')}"
    console.print(title, style="bold", highlight=False)
    console.print(table(rows))
    if first.suite == "sparsity":
        console.print(f"{even_text(panels(rows, 'sparsity')[0].break_even())} against dense torch", highlight=False)
    console.print()


def accuracy(results: Results) -> list[str]:
    """What a run on real images found."""
    found = results.accuracy
    if not found:
        return []
    count = int(found["images"])
    return [
        f"Accuracy on {count:,} test images: PyTorch {found['plain']:.2%}, dynkern {found['dynkern']:.2%}.",
        f"Largest difference of a logit: {found['difference']:.1e} (the largest logit is {found['largest']:.1f}).",
        f"Same answer on {round(found['agree'] * count):,} of {count:,} images.",
    ]


def caption(results: Results) -> str:
    """Machine, threads, versions, commit and date in one line."""
    machine, versions = results.machine, results.versions
    threads = sorted({row.threads for row in results.rows})
    ran = {"torch"} | {row.variant for row in results.rows if row.variant != OURS}
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
    sparse = rows[0].suite == "sparsity"
    made: Table = need("rich.table").Table(
        box=need("rich.box").SIMPLE_HEAD,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    variants = list(dict.fromkeys(row.variant for row in rows))
    heads = [
        "zeros" if sparse else "width",
        "MACs",
        *(LABELS.get(v, v).replace(", ", ",\n") for v in variants),
        "error",
    ]
    for head in heads:
        made.add_column(head, justify="right", overflow="fold")
    for value, group in groupby(rows, lambda row: row.value):
        at = {row.variant: row for row in group}
        label = f"{value:.0%}" if sparse else f"{value:g}"
        cells = [_cell(at.get(variant), at.get(OURS)) for variant in variants]
        made.add_row(label, big(next(iter(at.values())).macs), *cells, _error(at.values()))
    return made


def _cell(row: Row | None, ours: Row | None) -> str:
    if row is None:
        return "-"
    if row.median_s is None:
        return f"[bold red]{row.status.upper()}[/]"
    factor = ours.speedup.get(row.variant) if ours else None
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
        lines.append(f"{LABELS.get(variant, variant)}: {rows[0].status} at {where}: {reason}")
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
