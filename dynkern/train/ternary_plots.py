"""The plots of a sweep, drawn from its results alone: figures 1, 3, 4 and 5 of Dordoni et al., MLSP 2024."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]
_DPI = 100


def draw(results: Sequence[Result], out: Path) -> list[Path]:
    """Draw what the results allow for into ``out / "plots"``; returns the files.

    ``histograms``: the latent weights after training (figure 1); ``epochs``: accuracy and zeros by epoch (figure 3);
    ``sparsity`` and ``entropy``: what the last epoch's accuracy is paid with (figure 4); ``speed``: the epoch of the
    best accuracy (figure 5). Runs without zeros are drawn as lines there.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'dynkern[train]'") from error
    ternary = [r for r in results if "sparsity" in r]
    plots: dict[str, Callable[[Any], None]] = {"epochs": lambda f: _epochs(f, results)}
    plots["speed"] = lambda f: _speed(f, results)
    if ternary:
        plots["histograms"] = lambda f: _histograms(f, ternary)
        plots["sparsity"] = lambda f: _against(f, results, "sparsity", "zeros")
        plots["entropy"] = lambda f: _against(f, results, "entropy", "entropy, bits per weight")
    folder = out / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, fill in plots.items():
        figure = Figure(figsize=(8, 6), dpi=_DPI, layout="constrained")
        fill(figure)
        figure.supxlabel(_caption(results), fontsize=7)
        files.append(folder / f"{name}.svg")
        figure.savefig(files[-1], metadata={"Date": None})
    return files


def _epochs(figure: Any, results: Sequence[Result]) -> None:
    above, below = figure.subplots(2, 1, sharex=True)
    for result in results:
        history = result["history"]
        epochs = [record["epoch"] for record in history]
        (line,) = above.plot(epochs, [100 * r["test_accuracy"] for r in history], label=_label(result))
        if "sparsity" in history[-1]:
            below.plot(epochs, [100 * r["sparsity"] for r in history], color=line.get_color())
    above.set_ylabel("test accuracy, %")
    below.set_ylabel("zeros, %")
    below.set_xlabel("epoch")
    above.legend(fontsize=7)


def _against(figure: Any, results: Sequence[Result], name: str, label: str) -> None:
    axes = figure.subplots()
    for result in results:
        accuracy = 100 * result["accuracy"]
        if name not in result or (name == "sparsity" and result[name] == 0):
            axes.axhline(accuracy, linestyle=":", color="black" if name not in result else "gray")
            axes.annotate(_label(result), (0.01, accuracy), xycoords=("axes fraction", "data"), fontsize=7)
        else:
            axes.scatter(result[name] * (100 if name == "sparsity" else 1), accuracy, label=_label(result))
    axes.set_xlabel(label + (", %" if name == "sparsity" else ""))
    axes.set_ylabel("test accuracy after the last epoch, %")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)


def _speed(figure: Any, results: Sequence[Result]) -> None:
    axes = figure.subplots()
    for result in results:
        axes.scatter(result["best_epoch"], 100 * result["best_glance"], label=_label(result))
    axes.set_xlabel("epoch of the best test accuracy")
    axes.set_ylabel("best accuracy on the test images looked at after each epoch, %")
    axes.legend(fontsize=7)


def _histograms(figure: Any, results: Sequence[Result]) -> None:
    rows = figure.subplots(len(results), 1, sharex=True, squeeze=False)[:, 0]
    for axes, result in zip(rows, results, strict=True):
        found = result["histogram"]
        total = sum(found["weights"])
        axes.stairs([n / total for n in found["weights"]], found["edges"], fill=True)
        axes.set_yscale("log")
        axes.set_ylabel("share", fontsize=7)
        axes.set_title(f"{_label(result)}: {result['sparsity']:.1%} zeros", fontsize=8)
    rows[-1].set_xlabel("latent weight (the outer bins hold what is outside)")


def _label(result: Result) -> str:
    return str(result["name"])


def _caption(results: Sequence[Result]) -> str:
    run = results[0]["run"]
    machines = sorted({str(r["machine"]["cpu"]) if r["device"] == "cpu" else str(r["device"]) for r in results})
    return (
        f"{run['model']}, inflate {run['inflate']}, {run['recipe']['epochs']} epochs of {run['train_images']} images, "
        f"batch {run['batch']}, {run['recipe']['precision']}, {', '.join(machines)}"
    )
