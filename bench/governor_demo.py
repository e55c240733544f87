#!/usr/bin/env python3
"""Shows `dynkern.Governor` at work: a second process loads the machine for a while, and the sub-net follows.

python bench/governor_demo.py --out bench/plots/governor          # governor.json, governor.svg
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import torch

import dynkern as dk
from dynkern.bench.machine import facts


def burn(stop: Any, cpu: int | None) -> None:
    """Keep one CPU busy until told to stop."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    a = torch.randn(256, 256)
    torch.set_num_threads(1)
    while not stop.is_set():
        a = torch.tanh(a @ a)


def main() -> None:
    """Run calm, loaded and calm again, a third of the time each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="of the whole demonstration (default %(default)s)")
    parser.add_argument("--load", type=int, default=2, help="processes that load the CPU (default %(default)s)")
    parser.add_argument(
        "--share", type=float, default=1.3, help="target over the whole network's latency (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("governor"), help="folder of governor.json and governor.svg")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    # All on one CPU, so that the others' work is felt for certain.
    cpu = min(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else None
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    net = dk.slim(dk.models.resnet20(), (0.25, 0.5, 0.75, 1.0)).eval()
    x = torch.randn(32, 3, 32, 32)
    dk.calibrate_bn(net, [x])
    run = dk.compile(net, x, threads=1)
    governor = dk.Governor(run, latency_ms=1e6)
    target = options.share * governor.latencies(x)[1.0]
    governor.latency_ms = target
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    workers = [context.Process(target=burn, args=(stop, cpu), daemon=True) for _ in range(options.load)]
    calls: list[dict[str, Any]] = []
    began = time.perf_counter()
    third, loaded = options.seconds / 3, 0
    while (now := time.perf_counter() - began) < options.seconds:
        if now >= third and loaded == 0:
            loaded = 1
            for worker in workers:
                worker.start()
        if now >= 2 * third and loaded == 1:
            loaded = 2
            stop.set()
        before = time.perf_counter()
        governor(x)
        calls.append(
            {"s": now, "ms": 1e3 * (time.perf_counter() - before), "subnet": governor.subnet, "load": governor.load}
        )
    for worker in workers:
        worker.join()
    report(calls, target, third, options)


def report(calls: list[dict[str, Any]], target: float, third: float, options: argparse.Namespace) -> None:
    """Print a line per third, and write what happened."""
    options.out.mkdir(parents=True, exist_ok=True)
    for name, start in (("calm", 0.0), (f"{options.load} processes beside it", third), ("calm again", 2 * third)):
        part = [c for c in calls if start <= c["s"] < start + third]
        met = sum(c["ms"] <= target for c in part) / max(1, len(part))
        share = {
            str(k): round(sum(c["subnet"] == k for c in part) / max(1, len(part)), 2) for k in (0.25, 0.5, 0.75, 1.0)
        }
        print(f"{name}: {len(part)} calls, {met:.0%} within {target:.2f} ms, share of sub-nets {share}")
    text = json.dumps({"target_ms": target, "load_from_s": third, "load_to_s": 2 * third, **facts(), "calls": calls})
    (options.out / "governor.json").write_text(text + "\n")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(8, 5), sharex=True)
    top.plot([c["s"] for c in calls], [c["ms"] for c in calls], ".", markersize=2)
    top.axhline(target, color="black", linewidth=0.8)
    top.set(ylabel="ms per call", ylim=(0, 4 * target))
    bottom.step([c["s"] for c in calls], [c["subnet"] for c in calls], where="post")
    bottom.set(ylabel="width that runs", xlabel="s")
    for axis in (top, bottom):
        axis.axvspan(third, 2 * third, alpha=0.15)
    top.set_title(
        f"batch 32, one CPU, {options.load} processes beside it in the shaded time; target {target:.2f} ms", fontsize=8
    )
    figure.tight_layout()
    figure.savefig(options.out / "governor.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
