"""Everything on a machine with a GPU, in one run: build, tests, suites, plots. Downloads nothing.

    python bench/gpu.py [--quick] [--out DIR]      under nine minutes; --quick under two

Every part runs in a process of its own with a limit of its own: one that fails or hangs is reported, and the others
run. Writes into DIR (``$OUT`` or ``gpu-results``): ``results.json`` (machine, driver, versions, commit, every part,
every row), ``log.txt``, ``plots/``. ``--dry-run`` goes through all of it on the CPU, small and without timing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = 1
# Seconds for everything, full and quick; a part gets no more than is left.
TOTAL = {False: 520.0, True: 110.0}
THREADS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Part:
    """One process: its command, and its limit in seconds, full and quick."""

    name: str
    command: tuple[str, ...]
    full_s: float
    quick_s: float

    def limit(self, quick: bool) -> float:
        """Seconds that it may take."""
        return self.quick_s if quick else self.full_s


def parts(out: Path, quick: bool, dry: bool) -> list[Part]:
    """The parts, in order; a dry run builds nothing and runs no tests."""
    python = sys.executable
    flags = [flag for flag, on in (("--quick", quick), ("--dry-run", dry)) if on]
    found = [
        Part(suite, (python, __file__, "--suite", suite, "--out", str(out), *flags), limit, limit_quick)
        for suite, limit, limit_quick in (("width", 150, 30), ("sparsity", 90, 20), ("models", 60, 15))
    ]
    if dry:
        return found
    threads = ",".join(str(n) for n in THREADS if n <= (os.cpu_count() or 1))
    cpu = ["-m", "dynkern", "bench", "--threads", threads, "--peers", "none", "--out", str(out / "cpu")]
    cpu += ["--quick"] if quick else ["--budget", "60"]
    build = (python, __file__, "--build")
    tests = (python, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests"))
    return [
        Part("build", build, 120, 90),
        Part("tests", tests, 120, 25),
        *found,
        Part("cpu", (python, *cpu), 100, 20),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything, or the one part that an option names; 0 if all parts went well."""
    options = arguments(argv)
    out = options.out.resolve()
    if options.build:
        return build()
    if options.suite:
        return suite(options.suite, out, options.quick, options.dry_run)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    reports = []
    with (out / "log.txt").open("w") as log:
        for part in parts(out, options.quick, options.dry_run):
            left = TOTAL[options.quick] - (time.monotonic() - began)
            reports.append(carry_out(part, min(part.limit(options.quick), left), log))
            write(out, reports, options.quick, options.dry_run)
    try:
        draw(out)
    except Exception as error:
        reports.append(
            {"part": "plots", "status": "failed", "reason": f"{type(error).__name__}: {error}", "seconds": 0}
        )
        write(out, reports, options.quick, options.dry_run)
    show(out, reports)
    return int(any(report["status"] != "ok" for report in reports))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few cases, in two minutes")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "gpu-results"), metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, small, untimed: to test this script")
    parser.add_argument("--suite", choices=("width", "sparsity", "models"), help="only this suite, in this process")
    parser.add_argument("--build", action="store_true", help="only build the extension in place")
    return parser.parse_args(argv)


def carry_out(part: Part, limit_s: float, log: Any) -> dict[str, Any]:
    """Run a part; what it prints goes to the log. A failure is a report, not an exception."""
    began = time.monotonic()
    log.write(f"\n== {part.name}: {' '.join(part.command)}\n")
    log.flush()
    status, reason = "ok", None
    if limit_s <= 0:
        status, reason = "failed", "no time was left"
    else:
        environment = dict(os.environ)
        if any((ROOT / "dynkern").glob("_C*.so")):  # built in place; else the package that is installed
            environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        try:
            done = subprocess.run(
                part.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=limit_s
            )
            if done.returncode:
                status, reason = "failed", f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            status, reason = "failed", f"took longer than {limit_s:.0f} s"
        except OSError as error:
            status, reason = "failed", f"{type(error).__name__}: {error}"
    seconds = round(time.monotonic() - began, 1)
    log.write(f"== {part.name}: {status} after {seconds} s{f' ({reason})' if reason else ''}\n")
    return {"part": part.name, "status": status, "reason": reason, "seconds": seconds}


def build() -> int:
    """Build the extension in place, with CMake and Ninja as they are installed."""
    import pybind11

    folder = ROOT / "build" / "gpu"
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(folder)]):
        code = subprocess.run(command).returncode
        if code:
            return code
    for made in folder.glob("_C*.so"):
        place = ROOT / "dynkern" / made.name
        place.unlink(missing_ok=True)
        place.symlink_to(made)
    return 0


def suite(name: str, out: Path, quick: bool, dry: bool) -> int:
    """Run one suite in this process and leave its rows in ``out``; 1 if a row of dynkern's is not right."""
    from dynkern.bench import gpu_suites
    from dynkern.info import info

    if not dry and info().cuda is None:
        print(f"{name}: no CUDA device: {info().cuda_why_not}")
        return 2
    limit = next(part.limit(quick) for part in parts(out, quick, dry) if part.name == name)
    end = time.monotonic() + 0.8 * limit
    place = gpu_suites.Place("cpu" if dry else "cuda", quick, dry)
    rows = gpu_suites.run(name, place, lambda: end - time.monotonic())
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.rows.json").write_text(json.dumps(rows))
    for row in rows:
        time_of = "not measured" if row["median_s"] is None else f"{1e6 * row['median_s']:.1f} us"
        faster = "" if row["speedup"] is None else f", dynkern is {row['speedup']:.2f}x as fast"
        print(f"{row['case']} at {row['value']}: {row['variant']}, {row['mode']}: {row['status']}, {time_of}{faster}")
    return int(any(row["status"] != "ok" and row["variant"] == gpu_suites.OURS for row in rows))


def write(out: Path, reports: Sequence[dict[str, Any]], quick: bool, dry: bool) -> None:
    """``results.json``, with what there is by now."""
    rows = []
    for path in sorted(out.glob("*.rows.json")):
        rows += json.loads(path.read_text())
    cpu = out / "cpu" / "results.json"
    content = {
        "schema": SCHEMA,
        "measured": not dry and any(row["median_s"] is not None for row in rows),
        "quick": quick,
        **facts(),
        "parts": list(reports),
        "rows": rows,
        "cpu": json.loads(cpu.read_text()) if cpu.is_file() else None,
    }
    temporary = out / f".results.json.{os.getpid()}"
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(out / "results.json")


def facts() -> dict[str, Any]:
    """Machine, driver, versions, commit; what cannot be found out says so instead of failing the run."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        gpu = f"unknown ({type(error).__name__})"
    try:
        from dynkern.bench import machine

        found = machine.facts()
    except Exception as error:  # the extension is not built: the build's report says why
        found = {
            "machine": {},
            "versions": {},
            "commit": None,
            "date": None,
            "facts": f"{type(error).__name__}: {error}",
        }
    return {**found, "gpu": gpu}


def draw(out: Path) -> None:
    """One plot per suite: how many times as fast as each baseline, from ``results.json`` alone."""
    from dynkern.bench import gpu_plots

    gpu_plots.draw(out / "results.json", out / "plots")


def show(out: Path, reports: Sequence[dict[str, Any]]) -> None:
    """A line per part."""
    for report in reports:
        reason = f": {report['reason']}" if report["reason"] else ""
        print(f"{report['part']:<9} {report['status']:<7} {report['seconds']:>6.1f} s{reason}")
    print(f"wrote {out / 'results.json'}, {out / 'log.txt'}")


if __name__ == "__main__":
    sys.exit(main())
