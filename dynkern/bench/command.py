"""``dynkern bench``: from options to tables, results.json and plots."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dynkern.bench import peers, plots, real, report, results, ternary_network
from dynkern.bench.cases import SUITES, Point, TernaryNetworkCase, plan
from dynkern.bench.extras import need
from dynkern.bench.machine import cores, facts
from dynkern.bench.results import OURS, Results
from dynkern.bench.run import BUDGET, measure
from dynkern.usage import UsageError, asked

# Columns of a table that is not written to a terminal.
PLAIN_WIDTH = 140
QUICK_BUDGET = 2.0
COMPILE_NOTE = (
    "only on ResNet-20 at widths 0.25 and 1, batch 1, one thread: compiling takes long (--peers torch.compile runs it "
    "everywhere)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``dynkern bench``."""
    parser.add_argument(
        "--suite",
        choices=sorted({name for name, _ in SUITES}),
        help="what to measure: 'width' and 'sparsity', together 'all' (default); 'networks', larger ones beside other "
        "runtimes (takes long); 'fine', the engine at 16 widths; 'int8', "
        "integers; 'ternary-network', a whole one",
    )
    parser.add_argument("--models", metavar="NAME,NAME", help="only these networks of the suite, such as mobilenetv2")
    parser.add_argument("--quick", action="store_true", help="a few points, to see that everything works")
    parser.add_argument("--threads", type=numbers, metavar="N,N", help="thread counts (default: 1 and all cores)")
    parser.add_argument("--batch", type=numbers, metavar="N,N", help="inputs per call (default: per case, 1 and more)")
    parser.add_argument(
        "--peers",
        default="auto",
        metavar="NAMES",
        help=f"other runtimes: 'auto' (what is installed), 'none', or some of {','.join(peers.OPTIONAL)}",
    )
    parser.add_argument("--budget", type=float, metavar="SECONDS", help=f"time to spend, roughly (default {BUDGET:g})")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder for results.json and plots/")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results instead")
    parser.add_argument(
        "--replot", type=Path, metavar="FILE", help="measure nothing; show and draw the results in FILE"
    )
    trained = parser.add_argument_group("on real images, instead of the suites")
    trained.add_argument("--checkpoint", type=Path, metavar="FILE", help="a trained CIFAR-10 network (torch.save)")
    trained.add_argument("--data", type=Path, metavar="DIR", help="folder with CIFAR-10's test.parquet")
    trained.add_argument("--model", choices=real.NAMES, default=real.NAMES[0], help="the network (default %(default)s)")
    trained.add_argument(
        "--packed", type=Path, metavar="FILE", help="a packed resnet_binary (dynkern.save), for --suite ternary-network"
    )
    trained.add_argument("--images", type=int, metavar="N", help="only the first images (default: all)")


def numbers(text: str) -> list[int]:
    """``"1,2"`` to [1, 2]."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or any(number < 1 for number in found):
        raise argparse.ArgumentTypeError(f"expected positive integers with commas between, got {text!r}")
    return list(dict.fromkeys(found))


def run(options: argparse.Namespace) -> int:
    """Carry the command out; returns the exit code, 1 if something of dynkern's was wrong or failed."""
    _check(options)
    with asked():
        need("matplotlib")
        console = need("rich.console").Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        choice = peers.choose(options.peers)
    if options.replot is not None:
        with asked("--replot"):
            found = results.read(options.replot)
        _finish(found, options, console, write=False)
        return 0
    threads = options.threads or ([1] if options.quick else list(dict.fromkeys((1, cores()))))
    if options.checkpoint is not None:
        found = _real(options, threads)
        _finish(found, options, console, write=options.json is not None)
    else:
        found = _suites(options, threads, choice)
        _finish(found, options, console, write=True)
    return int(any(row.variant in OURS and row.status != "ok" for row in found.rows))


def _check(options: argparse.Namespace) -> None:
    """Options that do not go together."""
    if options.packed is not None and options.suite != "ternary-network":
        raise UsageError("--packed: expected only with --suite ternary-network")
    if options.packed is None and (options.checkpoint is None) != (options.data is None):
        raise UsageError("--checkpoint and --data: expected both or neither")
    if options.checkpoint is not None and (options.suite or options.quick or options.models):
        raise UsageError(
            "--checkpoint: measures the trained network; expected no --suite, --models or --quick beside it"
        )
    if options.budget is not None and not options.budget > 0:
        raise UsageError(f"--budget: expected seconds above 0, got {options.budget}")
    if options.images is not None and options.images < 1:
        raise UsageError(f"--images: expected 1 or more, got {options.images}")
    for option, place in (("--out", options.out), ("--json", options.json and options.json.parent)):
        if place is not None:
            # Now, and not after three minutes of measuring.
            with asked(option):
                place.mkdir(parents=True, exist_ok=True)


def _suites(options: argparse.Namespace, threads: Sequence[int], choice: peers.Choice) -> Results:
    models = None if options.models is None else options.models.split(",")
    with asked():
        points = plan(options.suite or "all", options.quick, threads, options.batch, models)
    if options.packed is not None:
        with asked("--packed"):
            points = ternary_network.with_file(points, options.packed)
    if options.quick and options.peers == "auto":
        choice = peers.none("left out by --quick")
    budget = options.budget or (QUICK_BUDGET if options.quick else BUDGET)
    began = time.monotonic()
    with progress(len(points)) as advance:
        rows = measure(points, choice, budget_s=budget, started=advance)
    left_out = dict(choice.absent)
    if not choice.everywhere and "torch_compile" not in left_out:
        left_out["torch_compile"] = COMPILE_NOTE
    print(f"{len(points)} points in {time.monotonic() - began:.0f} s", file=sys.stderr)
    networks = {p.case.name: p.case for p in points if isinstance(p.case, TernaryNetworkCase)}
    sizes = {name: ternary_network.network_of(case).sizes() for name, case in networks.items()}
    found: dict[str, float] = {}
    if options.data is not None:
        with asked("--data"):
            images, labels = real.images(options.data, options.images)
        for case in networks.values():
            net = ternary_network.network_of(case)
            same = real.Trained(net.plain, net.packed, net.engine)
            found = real.accuracy(same, images, labels, threads=max(threads))
    return Results(**facts(), left_out=left_out, rows=tuple(rows), accuracy=found, sizes=sizes)


def _real(options: argparse.Namespace, threads: Sequence[int]) -> Results:
    with asked("--checkpoint"):
        trained = real.load(options.model, options.checkpoint)
    with asked("--data"):
        images, labels = real.images(options.data, options.images)
        trained = real.with_training_images(trained, options.data)
    batches = options.batch or real.BATCHES
    if max(batches) > len(images):
        raise UsageError(f"--batch: expected at most {len(images)}, the number of images, got {max(batches)}")
    points = real.plan(options.model, batches, threads)
    steps = real.chunks(len(images)) + len(points)
    with progress(steps) as advance:
        accuracy = real.accuracy(trained, images, labels, threads=max(threads), started=advance)
        rows = real.measure(trained, images, points, budget_s=options.budget or real.BUDGET, started=advance)
    return Results(**facts(), left_out={}, rows=tuple(rows), accuracy=accuracy)


def _finish(found: Results, options: argparse.Namespace, console: Any, write: bool) -> None:
    """Print, write and draw."""
    report.show(found, console)
    with asked("--out"):
        written = [results.write(found, options.json or options.out / "results.json")] if write else []
        written += plots.draw(found, options.out / "plots")
    if written:
        console.print("wrote " + ", ".join(map(str, written)), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress(steps: int) -> Iterator[Callable[[Point | str], None]]:
    """A progress bar on stderr, silent unless that is a terminal; what it gives is called before each step."""
    console = need("rich.console").Console(stderr=True)
    bar = need("rich.progress")
    columns = (bar.BarColumn(), bar.MofNCompleteColumn(), bar.TimeElapsedColumn(), bar.TextColumn("{task.description}"))
    with bar.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task("", total=steps)
        done = 0

        def advance(step: Point | str) -> None:
            nonlocal done
            shown.update(task, completed=done, description=str(step))
            done += 1

        yield advance
