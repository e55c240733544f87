"""The facts that a measurement means nothing without: machine, versions, commit, date."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dynkern
from dynkern.info import info

PACKAGES = ("onnxruntime", "openvino", "triton")


def facts() -> dict[str, Any]:
    """``machine``, ``versions``, ``commit`` (None outside a checkout of dynkern) and ``date`` (UTC)."""
    found = info()
    versions = dict(found.versions)
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "machine": {
            "cpu": cpu_model(),
            "cores": cores(),
            "isa": found.isa,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": versions,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the CPU as it gives it itself."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return " ".join(value.split())
    return platform.processor() or platform.machine()


def cores() -> int:
    """Physical cores that this process may use: affinity and the container's quota are obeyed."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    quota = _quota()
    physical = len({_siblings(cpu) for cpu in allowed})
    return max(1, physical if quota is None else min(physical, quota))


def _siblings(cpu: int) -> str:
    """The logical CPUs on the core of ``cpu``."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)


def _quota(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """The CPUs that the control group grants, rounded up; None if it sets no limit."""
    try:
        quota, period = limit.read_text().split()
        return None if quota == "max" else math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return None


def commit() -> str | None:
    """The commit of the checkout of dynkern that this code, or else the working directory, lies in.

    ``+changes`` is appended where tracked files differ from it.
    """
    for place in (Path(dynkern.__file__).parent, Path.cwd()):
        top = _git(place, "rev-parse", "--show-toplevel")
        if top and (Path(top) / "dynkern" / "__init__.py").is_file():
            head = _git(place, "rev-parse", "--short=12", "HEAD")
            changes = _git(place, "status", "--porcelain", "--untracked-files=no")
            return f"{head}{'+changes' if changes else ''}" if head else None
    return None


def _git(place: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(place), *command], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
