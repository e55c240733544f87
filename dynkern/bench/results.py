"""The file that a run writes and that tables and plots are drawn from."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
SUITES = ("width", "int8", "sparsity", "ternary-network", "real")
STATUSES = ("ok", "wrong", "failed")
# dynkern's own variants: the drop-in modules (or a packed layer), and the engine.
MODULES, ENGINE, ENGINE_INT8, ENGINE_INT16 = "dynkern", "engine", "engine_int8", "engine_int16"
INT8 = "dynkern_int8"
# The engine on a ternary network's weights as floats.
ENGINE_DENSE = "engine_dense"
OURS = (MODULES, INT8, ENGINE, ENGINE_DENSE, ENGINE_INT8, ENGINE_INT16)
# Baselines with activations of 8 bits, of ternary layers.
LOW_BITS = ("torch_int8", "onnxruntime_int8", "onnxruntime_2bit")
# Baselines that have the whole network as one program, as the engine does.
RUNTIMES = ("torch_compile", "onnxruntime", "openvino")


def rival(variant: str, suite: str) -> str:
    """Which of ours the baseline ``variant`` is compared with: like with like.

    Quantised activations are compared with quantised ones. A runtime is compared with the engine, PyTorch's eager
    modules with the drop-in modules. Single layers, in the suite ``"sparsity"``, have no engine.
    """
    if suite == "int8":
        return ENGINE_INT8
    if suite == "ternary-network":
        return ENGINE_INT8 if variant.endswith("_int8") else ENGINE
    if variant in LOW_BITS:
        return INT8
    return ENGINE if suite == "width" and variant in RUNTIMES else MODULES


@dataclass(frozen=True)
class Row:
    """One variant at one point.

    Attributes:
        suite: one of :data:`SUITES`.
        case: the network or layer.
        value: the width ratio, or the share of weights that are zero.
        batch: inputs per call.
        threads: threads used.
        macs: multiply-accumulates of one call that a sub-net, or the weights that are not zero, need.
        dense_macs: those of the full network, or with every weight.
        variant: what ran.
        status: ``"ok"``; ``"wrong"`` (outputs differ from the reference: no time is given); ``"failed"``.
        reason: why the status is not ``"ok"``.
        error: largest difference from the float64 reference, relative (to the largest output of a network, or to the
            sum of magnitudes behind each output of a layer; with quantised activations, to the greatest input times
            the weights of an output that are not zero).
        tolerance: what ``error`` may be: the unit round-off times the number of terms summed; in the suite ``"int8"``
            what only a wrong program exceeds.
        median_s, p20_s, p80_s: seconds per call.
        rounds: samples taken.
        calls: calls per sample.
        speedup: how many times faster than each other variant at this point (median over the rounds).
    """

    suite: str
    case: str
    value: float
    batch: int
    threads: int
    macs: int
    dense_macs: int
    variant: str
    status: str
    reason: str | None = None
    error: float | None = None
    tolerance: float | None = None
    median_s: float | None = None
    p20_s: float | None = None
    p80_s: float | None = None
    rounds: int = 0
    calls: int = 0
    speedup: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.suite not in SUITES or self.status not in STATUSES:
            raise ValueError(f"suite, status: expected of {SUITES} and {STATUSES}, got {self.suite!r}, {self.status!r}")
        if (self.status == "ok") != (self.median_s is not None):
            raise ValueError(
                f"median_s: expected a time exactly where status is 'ok', got {self.median_s!r}, {self.status!r}"
            )


@dataclass(frozen=True)
class Results:
    """One run.

    Attributes:
        machine: ``cpu``, ``cores``, ``isa``, ``system``.
        versions: of every package that took part.
        commit: of dynkern, or None.
        date: UTC, ISO 8601.
        left_out: baselines that were not measured, or not everywhere, and why.
        rows: every variant at every point.
        accuracy: of a run on real images: see :func:`dynkern.bench.real.accuracy`.
        sizes: bytes of each ternary network, by its case and by what they are of.
    """

    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str | None
    date: str
    left_out: Mapping[str, str]
    rows: tuple[Row, ...]
    accuracy: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def write(results: Results, path: str | os.PathLike[str]) -> Path:
    """Write ``results`` as JSON, one line per row; the file is there whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"schema": SCHEMA, **dataclasses.asdict(results)}
    rows = ",\n".join(f"  {json.dumps(row, allow_nan=False)}" for row in content.pop("rows"))
    head = json.dumps(content, indent=1, allow_nan=False).removesuffix("\n}")
    text = f'{head},\n "rows": [\n{rows}\n ]\n}}'
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read(path: str | os.PathLike[str]) -> Results:
    """Read what :func:`write` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no such file, or of another schema.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, got something else: {error}") from error
    schema = content.pop("schema", None) if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path}: expected results of schema {SCHEMA}, got {schema!r}")
    try:
        return Results(**{**content, "rows": tuple(Row(**row) for row in content["rows"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the fields of schema {SCHEMA}: {error}") from error
