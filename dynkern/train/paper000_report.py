"""Tables and plots of the runs of paper 000, drawn from their results alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dynkern.files import replacing

# What Yang & Fan print, in percent: tables 1 and 3, the latter with dynamic and individual training. Its row of the
# slimmable network repeats that of the group lasso digit for digit, and is left out.
WIDTHS = ("0.25", "0.5", "0.75", "1.0")
SUBNETS = ("subnet1", "subnet2", "subnet3", "1.0")
TABLE1 = {
    "S-NN": (79.5, 85.6, 88.4, 89.8),
    "Ours-U": (81.0, 87.5, 90.2, 91.1),
    "Ours-U, 16 bit": (80.7, 87.0, 89.8, 91.0),
    "Ours-U, 8 bit": (80.6, 86.9, 89.8, 91.1),
}
TABLE3 = {
    "Group lasso": ((79.0, 85.4, 88.6, 89.7), (76.5, 85.5, 89.1, 91.4)),
    "Ours-M": ((80.7, 86.3, 88.4, 89.9), (81.3, 87.0, 89.3, 91.4)),
    "Ours-S": ((79.5, 85.9, 88.2, 89.9), (80.3, 86.8, 88.9, 91.4)),
}
SOURCES = {
    "Group lasso": ("group-lasso", "lasso", "g"),
    "Ours-M": ("ours-m", "multi-path", "m"),
    "Ours-S": ("ours-s", "single-path", "s"),
}
Results = Mapping[str, Mapping[str, Any]]


def write(results: Results, folder: Path) -> list[Path]:
    """Write ``results.json``, ``tables.md`` and the plots into ``folder``; what is not there yet is a dash."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in (("results.json", json.dumps(results, indent=1) + "\n"), ("tables.md", tables(results))):
        with replacing(folder / name) as temporary:
            temporary.write_text(text)
        written.append(folder / name)
    for name, draw in (("structure", _structure), ("tradeoff", _tradeoff), ("accuracy", _accuracy)):
        file = folder / f"{name}.svg"
        if draw(results, file):
            written.append(file)
    return written


def tables(results: Results) -> str:
    """Tables 1 and 3, the sampling times and the latencies, in Markdown."""
    parts = [_caption(results), _table1(results), _table3(results), _sampling(results), _latency(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _caption(results: Results) -> str:
    runs = {name: r for name, r in results.items() if "recipe" in r}
    if not runs:
        return "No run is done yet."
    first = next(iter(runs.values()))
    lengths: dict[int, list[str]] = {}
    for name, r in runs.items():
        lengths.setdefault(r["recipe"]["epochs"], []).append(name)
    epochs = "; ".join(f"{n}: {', '.join(names)}" for n, names in sorted(lengths.items()))
    machine = first["machine"]
    images = next((r["images"] for r in runs.values() if "images" in r), "?")
    return (
        f"Accuracy in percent on the {first.get('test_images', '?')} test images (CIFAR-10, JPEG-coded), "
        f"trained on {images} images. "
        f"{machine['cpu']}, commit {first['commit']}. Epochs: {epochs}. "
        "The columns marked *paper* are what Yang & Fan print, with their own schedule and the original images: "
        "another experiment, for orientation."
    )


def _table1(results: Results) -> str:
    integers = results.get("integers", {})
    own: dict[str, Callable[[str], float | None]] = {
        "Individual": lambda w: results.get(f"individual-{w}", {}).get("accuracy"),
        "S-NN": lambda w: _of(results, "s-nn", w, "accuracy"),
        "Ours-U": lambda w: _of(results, "ours-u", w, "accuracy"),
        "Ours-U, 16 bit": lambda w: integers.get("post_training", {}).get("16", {}).get(w),
        "Ours-U, 8 bit": lambda w: integers.get("post_training", {}).get("8", {}).get(w),
        "Ours-U, 8 bit, aware": lambda w: integers.get("aware", {}).get("8", {}).get(w),
    }
    head = ["width", "weights", "MACs", *own, *(f"*paper* {name}" for name in TABLE1)]
    rows = []
    for i, width in enumerate(WIDTHS):
        row = [width, _count(_of(results, "s-nn", width, "weights")), _count(_of(results, "s-nn", width, "macs"))]
        row += [_percent(found(width)) for found in own.values()]
        rows.append(row + [f"{values[i]:.1f}" for values in TABLE1.values()])
    return "### Uniform sub-nets (table 1)\n\n" + _markdown(head, rows)


def _table3(results: Results) -> str:
    head = ["sub-nets", "", "weights", "MACs", "dynamic", "individual", "*paper* dynamic", "*paper* individual"]
    rows = []
    for name, (fused, _, short) in SOURCES.items():
        for i, subnet in enumerate(SUBNETS):
            alone = "background" if subnet == "1.0" else f"individual-{short}-{subnet}"
            rows.append(
                [
                    name, "whole" if subnet == "1.0" else subnet,
                    _count(_of(results, fused, subnet, "weights")), _count(_of(results, fused, subnet, "macs")),
                    _percent(_of(results, fused, subnet, "accuracy")), _percent(results.get(alone, {}).get("accuracy")),
                    *(f"{values[i]:.1f}" for values in TABLE3[name]),
                ]
            )  # fmt: skip
    return "### Non-uniform sub-nets (table 3)\n\n" + _markdown(head, rows)


def _sampling(results: Results) -> str:
    runs = {name: results[source] for name, (_, source, _) in SOURCES.items() if source in results}
    if not runs:
        return ""
    rows = []
    for name, run in runs.items():
        epochs = ["cut at the end" if when is None else f"{when:.2f}" for when in run["reached"].values()]
        rows.append([name, str(len(run["history"])), f"{run['seconds']:.0f}", ", ".join(epochs), str(run["nested"])])
    text = "### Sampling (equations 3 and 4)\n\n" + _markdown(
        ["", "epochs in all", "seconds", "sub-nets reached after epochs", "nested"], rows
    )
    if "Ours-S" in runs and "Ours-M" in runs:
        text += (
            f"\n\nSingle-path takes {runs['Ours-S']['seconds'] / runs['Ours-M']['seconds']:.2f} of multi-path's time "
            f"({len(runs['Ours-S']['history'])} and {len(runs['Ours-M']['history'])} epochs)."
        )
    return text


def _latency(results: Results) -> str:
    rows = [
        [
            r["network"],
            r["subnet"],
            f"{r['bits']} bit",
            str(r["batch"]),
            f"{r['ms']:.3f}",
            f"{r['ms_p20']:.3f}-{r['ms_p80']:.3f}",
        ]
        for r in results.get("latency", {}).get("rows", ())
    ]
    if not rows:
        return ""
    return "### Latency of the engine, one thread (figure 6)\n\n" + _markdown(
        ["network", "sub-net", "", "batch", "ms", "p20-p80"], rows
    )


def _structure(results: Results, file: Path) -> bool:
    runs = {name: results[source] for name, (_, source, _) in SOURCES.items() if source in results}
    if not runs:
        return False
    plt = _pyplot()
    figure, axes = plt.subplots(len(runs), 1, figsize=(9, 2.6 * len(runs)), sharex=True, squeeze=False)
    for axis, (name, run) in zip(axes[:, 0], runs.items(), strict=True):
        for subnet, channels in run["structure"].items():
            layers = [layer for layer in channels if "shortcut" not in layer and layer != "linear"]
            axis.plot(range(1, len(layers) + 1), [channels[layer] for layer in layers], marker=".", label=subnet)
        axis.set_title(f"{name}: output channels of each convolution", fontsize=9)
        axis.set_ylabel("channels")
        axis.legend(fontsize=7, ncols=4)
    axes[-1, 0].set_xlabel("convolution")
    return _finish(figure, file)


def _tradeoff(results: Results, file: Path) -> bool:
    rows = [r for r in results.get("latency", {}).get("rows", ()) if r["batch"] == 1 and r["bits"] == 32]
    if not rows:
        return False
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(6, 4))
    for network in dict.fromkeys(r["network"] for r in rows):
        points = [(r["ms"], _of(results, network, r["subnet"], "accuracy")) for r in rows if r["network"] == network]
        found = sorted((ms, 100 * value) for ms, value in points if value is not None)
        axis.plot([ms for ms, _ in found], [value for _, value in found], marker="o", label=network)
    axis.set(xlabel="ms for one image, one thread, engine", ylabel="accuracy, %")
    axis.legend(fontsize=8)
    axis.set_title(f"{results['latency']['machine']['cpu']}, commit {results['latency']['commit']}", fontsize=8)
    return _finish(figure, file)


def _accuracy(results: Results, file: Path) -> bool:
    found = [name for name in ("s-nn", "ours-u", "ours-s", "ours-m", "group-lasso") if name in results]
    if not found:
        return False
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(6, 4))
    for name in found:
        points = sorted((s["macs"] / 1e6, 100 * s["accuracy"]) for s in results[name]["subnets"].values())
        epochs = results[name]["recipe"]["epochs"]
        axis.plot([x for x, _ in points], [y for _, y in points], marker="o", label=f"{name} ({epochs} epochs)")
    axis.set(xlabel="million multiply-accumulates", ylabel="accuracy, %")
    axis.legend(fontsize=8)
    return _finish(figure, file)


def _finish(figure: Any, file: Path) -> bool:
    figure.tight_layout()
    with replacing(file) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    _pyplot().close(figure)
    return True


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'dynkern[train]'") from error
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "dynkern"
    from matplotlib import pyplot

    return pyplot


def _of(results: Results, job: str, subnet: str, what: str) -> Any:
    return results.get(job, {}).get("subnets", {}).get(subnet, {}).get(what)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,}"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
