"""Everything on a machine with a GPU, in one run: build, tests, compute-sanitizer, suites, plots. Downloads nothing.

    python bench/gpu.py [--quick] [--out DIR]      under nine minutes; --quick under two

Every part runs in a process of its own with a limit of its own, and no part takes the time that later ones need: one
that fails or hangs is reported, and the others run. Writes into DIR (``$OUT`` or ``gpu-results``): ``results.json``
(machine, driver, versions, commit, every part, every row), ``log.txt``, ``plots/``. Without a card what needs one is
left out, and the results say "not measured". ``--dry-run`` goes through all of it on the CPU, small and without timing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = 2
# Seconds for everything, full and quick; a part gets no more than is left.
TOTAL = {False: 520.0, True: 110.0}
# Of its limit, what a part that is still to come can count on.
RESERVED = 0.4
THREADS = (1, 2, 4, 8, 16)
SUITES = ("width", "sparsity", "gemlite", "models")
# Exit codes of a part that says itself, in its last line, why it did not run; and of compute-sanitizer's findings.
LEFT_OUT, FOUND = 77, 66


@dataclass(frozen=True)
class Part:
    """One process: its command, and its limit in seconds, full and quick (0: left out). ``gpu``: it needs a card."""

    name: str
    command: tuple[str, ...]
    full_s: float
    quick_s: float
    gpu: bool = True
    environment: tuple[tuple[str, str], ...] = ()

    def limit(self, quick: bool) -> float:
        """Seconds that it may take."""
        return self.quick_s if quick else self.full_s


def parts(out: Path, quick: bool, dry: bool) -> list[Part]:
    """The parts, in order; a dry run builds nothing and runs no tests."""
    python = sys.executable
    flags = [flag for flag, on in (("--quick", quick), ("--dry-run", dry)) if on]

    def suite(name: str, full: float, short: float) -> Part:
        return Part(name, (python, __file__, "--suite", name, "--out", str(out), *flags), full, short, not dry)

    def sanitizer(tool: str, full: float, short: float) -> Part:
        # Each tensor in an allocation of its own, so that what lies beyond it is nobody's.
        own = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
        command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", str(FOUND), python, __file__, "--check")
        return Part(tool, command, full, short, environment=own)

    suites = {
        "sparsity": suite("sparsity", 130, 30), "width": suite("width", 100, 25), "gemlite": suite("gemlite", 70, 0),
        "models": suite("models", 90, 15),
    }  # fmt: skip
    if dry:
        return [Part("check", (python, __file__, "--check", "--dry-run"), 60, 60, False), *suites.values()]
    threads = ",".join(str(n) for n in THREADS if n <= (os.cpu_count() or 1))
    cpu = [python, "-m", "dynkern", "bench", "--threads", threads, "--peers", "none", "--out", str(work(out) / "cpu")]
    return [
        Part("build", (python, __file__, "--build"), 150, 70, False),
        Part("tests", (python, *tests(quick)), 130, 30),
        sanitizer("memcheck", 50, 0),
        *suites.values(),
        sanitizer("racecheck", 40, 0),
        Part("cpu", (*cpu, *(["--quick"] if quick else ["--budget", "45"])), 90, 15, False),
    ]


def tests(quick: bool) -> list[str]:
    """The command of the tests that need a card, on several processes where pytest can: most of it is compiling."""
    files = sorted(str(p) for p in (ROOT / "tests").glob("test_*.py") if "pytest.mark.gpu" in p.read_text())
    found = ["-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-m", "gpu", *files]
    if importlib.util.find_spec("xdist") is not None:
        found += ["-n", str(min(8, os.cpu_count() or 1))]
    return [*found, "-k", "graph or exact"] if quick else found


def work(out: Path) -> Path:
    """Where parts leave what goes into the results; removed at the end, so that few files are to be carried home."""
    return out / "work"


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything, or the one part that an option names; 0 if no part failed."""
    options = arguments(argv)
    out = options.out.resolve()
    if options.build:
        return build()
    if options.check:
        return check(options.dry_run)
    if options.facts:
        print(json.dumps(facts()))
        return 0
    if options.plots:
        return draw(out)
    if options.suite:
        return suite(options.suite, out, options.quick, options.dry_run, options.limit)
    shutil.rmtree(work(out), ignore_errors=True)
    work(out).mkdir(parents=True)
    began = time.monotonic()
    reports: list[dict[str, Any]] = []
    card = None if options.dry_run else gpu()
    todo = parts(out, options.quick, options.dry_run)
    with (out / "log.txt").open("w") as log:
        for i, part in enumerate(todo):
            limit = part.limit(options.quick)
            why = "left out by --quick" if limit == 0 else "no card: not measured" if part.gpu and not card else None
            reserved = RESERVED * sum(p.limit(options.quick) for p in todo[i + 1 :] if card or not p.gpu)
            left = TOTAL[options.quick] - (time.monotonic() - began) - reserved
            reports.append(carry_out(part, min(limit, left), log, why))
            line(reports[-1])
            write(out, reports, options.quick, options.dry_run)
        reports.append(
            carry_out(Part("plots", (sys.executable, __file__, "--plots", "--out", str(out)), 30, 30), 30, log)
        )
    line(reports[-1])
    write(out, reports, options.quick, options.dry_run)
    shutil.rmtree(work(out), ignore_errors=True)
    print(f"wrote {out / 'results.json'}, {out / 'log.txt'}")
    return int(any(report["status"] == "failed" for report in reports))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few cases, in two minutes")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "gpu-results"), metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, small, untimed: to test this script")
    one = parser.add_argument_group("one part alone, in this process")
    one.add_argument("--suite", choices=SUITES, help="this suite")
    one.add_argument("--limit", type=float, metavar="SECONDS", help="the suite begins no case later than this")
    one.add_argument("--build", action="store_true", help="build the extension in place")
    one.add_argument("--facts", action="store_true", help="print machine, versions and commit as JSON")
    one.add_argument("--plots", action="store_true", help="draw what DIR/results.json holds")
    one.add_argument("--check", action="store_true", help="every kernel once against the reference: for sanitizers")
    return parser.parse_args(argv)


def report(name: str, status: str, reason: str | None = None, seconds: float = 0.0) -> dict[str, Any]:
    """What ``results.json`` says about a part."""
    return {"part": name, "status": status, "reason": reason, "seconds": round(seconds, 1)}


def line(found: dict[str, Any]) -> None:
    """Say it on the screen too."""
    why = f": {found['reason']}" if found["reason"] else ""
    print(f"{found['part']:<9} {found['status']:<8} {found['seconds']:>6.1f} s{why}", flush=True)


def carry_out(part: Part, limit_s: float, log: Any, why_not: str | None = None) -> dict[str, Any]:
    """Run a part; what it prints goes to the log. A failure is a report, not an exception.

    The part is a session of its own: when its time is over, the processes that it started end with it.
    """
    began = time.monotonic()
    command = [*part.command, *(["--limit", f"{0.8 * limit_s:.0f}"] if "--suite" in part.command else [])]
    log.write(f"\n== {part.name}: {' '.join(command)}\n")
    log.flush()
    first = log.tell()
    status, reason = "ok", None
    if why_not is None and shutil.which(part.command[0]) is None:
        status, reason = "left out", f"no {part.command[0]} here"
    elif why_not is not None:
        status, reason = "left out", why_not
    elif limit_s <= 0:
        status, reason = "failed", "no time was left"
    else:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment(part.environment), stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(timeout=limit_s)
            finally:
                end(process)
            if code:
                status, reason = "failed", f"exit code {code}: {last_line(Path(log.name), first)}"
            if code == LEFT_OUT:
                status, reason = "left out", last_line(Path(log.name), first)
        except subprocess.TimeoutExpired:
            status, reason = "failed", f"took longer than {limit_s:.0f} s"
        except OSError as error:
            status, reason = "failed", f"{type(error).__name__}: {error}"
    log.seek(0, os.SEEK_END)
    found = report(part.name, status, reason, time.monotonic() - began)
    log.write(f"== {part.name}: {status} after {found['seconds']} s{f' ({reason})' if reason else ''}\n")
    log.flush()
    return found


def environment(more: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
    """What a part finds: the package that was built in place, else the one that is installed."""
    found = {**os.environ, **dict(more), "PYTHONUNBUFFERED": "1"}
    if any((ROOT / "dynkern").glob("_C*.so")):
        found["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the session of ``process``."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(path: Path, first: int) -> str:
    """The last line that is not empty, from byte ``first`` on."""
    lines = path.read_bytes()[first:].decode(errors="replace").split("\n")
    return next((text.strip()[:300] for text in reversed(lines) if text.strip()), "it printed nothing")


def tool(name: str) -> list[str]:
    """How to call a build tool: from the path, beside this Python, or as a package of it."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None and importlib.util.find_spec(name) is None:
        raise FileNotFoundError(f"{name} is neither a program nor a package here")
    return [found] if found else [sys.executable, "-m", name]


def build() -> int:
    """Build the extension in place, with the tools that are installed and for the card that is there."""
    try:
        import pybind11

        cmake = tool("cmake")
    except (ImportError, FileNotFoundError) as error:
        print(f"cannot build: {error}")
        return 1
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    folder = ROOT / "build" / "gpu"
    configure = [
        *cmake, "-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        *(["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
        *([f"-DDYNKERN_CUDA_ARCHITECTURES={real}"] if (real := architecture()) else []),
    ]  # fmt: skip
    for command in (configure, [*cmake, "--build", str(folder), "--parallel", str(os.cpu_count() or 1)]):
        code = subprocess.run(command).returncode
        if code:
            print(f"{command[0]} ended with {code}")
            return code
    for made in folder.glob("_C*.so"):
        place = ROOT / "dynkern" / made.name
        place.unlink(missing_ok=True)
        place.symlink_to(made)
    return 0


def architecture() -> str | None:
    """What to compile for: the machine code of the card alone, which takes a fifth of the time."""
    capability = asked("compute_cap").split("\n")[0].replace(".", "")
    if not capability.isdigit():
        return None
    return f"{capability}{'a' if capability == '90' else ''}-real"


def check(dry: bool) -> int:
    """Every kernel once; on the CPU in a dry run."""
    from dynkern.bench import gpu_check

    gpu_check.check("cpu" if dry else "cuda")
    print("every kernel is right")
    return 0


def suite(name: str, out: Path, quick: bool, dry: bool, limit: float | None) -> int:
    """Run one suite in this process and leave its rows in ``out``; 1 if a row of dynkern's is not right."""
    from dynkern.bench import gpu_suites
    from dynkern.info import info

    if not dry and info().cuda is None:
        print(f"{name}: not measured, no CUDA device: {info().cuda_why_not}")
        return LEFT_OUT
    why = gpu_suites.why_not(name)
    if why is not None:
        print(f"{name}: left out, {why}")
        return LEFT_OUT
    end_at = time.monotonic() + (limit or 600)
    place = gpu_suites.Place("cpu" if dry else "cuda", quick, dry, small=dry)
    rows: list[dict[str, Any]] = []
    work(out).mkdir(parents=True, exist_ok=True)
    for found in gpu_suites.run(name, place, lambda: end_at - time.monotonic()):
        rows += found
        put(work(out) / f"{name}.rows.json", rows)  # now: the next case may be one too many
        for row in found:
            time_of = "not measured" if row["median_s"] is None else f"{1e6 * row['median_s']:.1f} us"
            faster = "" if row["speedup"] is None else f", dynkern is {row['speedup']:.2f}x as fast"
            why = f" ({row['reason']})" if row["reason"] else ""
            print(
                f"{row['case']} at {row['value']}: {row['variant']}, {row['mode']}: {row['status']}{why}, "
                f"{time_of}{faster}"
            )
    bad = [row for row in rows if row["status"] in ("failed", "wrong") and row["variant"].startswith(gpu_suites.OURS)]
    if bad:
        print(f"{len(bad)} rows of dynkern's are not right, the first: {bad[0]['case']}: {bad[0]['reason']}")
    return int(bool(bad))


def put(path: Path, content: Any) -> None:
    """Write JSON; the file is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(path)


def write(out: Path, reports: Sequence[dict[str, Any]], quick: bool, dry: bool) -> None:
    """``results.json``, with what there is by now."""
    rows = []
    for path in sorted(work(out).glob("*.rows.json")):
        rows += json.loads(path.read_text())
    cpu = work(out) / "cpu" / "results.json"
    measured = not dry and any(row["median_s"] is not None for row in rows)
    content = {
        "schema": SCHEMA,
        "measured": measured,
        "figures": "measured" if measured else "not measured",
        "quick": quick,
        **known_facts(work(out) / "facts.json"),
        "parts": list(reports),
        "rows": rows,
        "cpu": json.loads(cpu.read_text()) if cpu.is_file() else None,
    }
    put(out / "results.json", content)


def asked(query: str) -> str:
    """What nvidia-smi says of each card, a line per card; nothing where there is none."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def gpu() -> str | None:
    """The card, its driver, memory and clock, or None where there is none."""
    return asked("name,driver_version,memory.total,clocks.max.sm") or None


def facts() -> dict[str, Any]:
    """Machine, driver, versions and commit."""
    from dynkern.bench import machine

    found = machine.facts()
    # A copy of the tree without its history can be told.
    return {**found, "commit": found["commit"] or os.environ.get("DYNKERN_COMMIT")}


def known_facts(kept: Path) -> dict[str, Any]:
    """``facts()``, asked of a process that finds the package, until it can tell; else what is missing says why."""
    if not kept.is_file():
        command = [sys.executable, __file__, "--facts"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), check=True)
            kept.write_text(json.dumps({**json.loads(done.stdout.splitlines()[-1]), "gpu": gpu() or "no card"}))
        except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
            why = f"unknown: {getattr(error, 'stderr', None) or error}"[-300:]
            return {
                "machine": {},
                "versions": {},
                "commit": None,
                "date": None,
                "gpu": gpu() or "no card",
                "facts": why,
            }
    known: dict[str, Any] = json.loads(kept.read_text())
    return known


def draw(out: Path) -> int:
    """One plot per suite: how many times as fast as each baseline, from ``results.json`` alone."""
    from dynkern.bench import gpu_plots

    for path in gpu_plots.draw(out / "results.json", out / "plots"):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
