"""Plots of what a GPU measured, drawn from its results alone."""

from __future__ import annotations

import json
from pathlib import Path

from dynkern.bench.extras import need

TITLES = {
    "width": "Sliced convolutions against cuDNN",
    "sparsity": "Ternary layers, 90 % zeros, against dense ones",
    "gemlite": "Ternary layers, 90 % zeros, against gemlite and dense ones",
    "models": "Whole networks against PyTorch",
}


def draw(results: Path, folder: Path) -> list[Path]:
    """Write ``<suite>.png`` into ``folder`` for every suite that has a time; nothing where no card measured any.

    A bar is how many times as fast as the baseline dynkern is, in a CUDA graph; the line is parity.
    """
    content = json.loads(results.read_text())
    written = []
    for suite, title in TITLES.items():
        rows = [
            row
            for row in content["rows"]
            if row["suite"] == suite and row["mode"] == "graph" and row["speedup"] and row["variant"] != "dynkern"
        ]
        if not rows:
            continue
        need("matplotlib").use("agg")
        plt = need("matplotlib.pyplot")
        figure, axes = plt.subplots(figsize=(8, 0.9 + 0.22 * len(rows)))
        names = [f"{row['case']}, {row['value']:g}, {row['variant']}" for row in rows]
        axes.barh(range(len(rows)), [row["speedup"] for row in rows], color="#0072B2")
        axes.axvline(1, color="#D55E00")
        axes.set_yticks(range(len(rows)), names, fontsize=6)
        axes.invert_yaxis()
        axes.set_xlabel("times as fast as the baseline (CUDA graph, data beyond the second-level cache)")
        axes.set_title(title)
        figure.text(0.01, 0.005, f"{content['gpu']}; commit {content['commit']}; {content['date']}", fontsize=6)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{suite}.png"
        figure.savefig(path, dpi=130, bbox_inches="tight")
        plt.close(figure)
        written.append(path)
    return written
