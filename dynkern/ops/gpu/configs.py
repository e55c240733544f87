"""How a Triton kernel is cut into tiles: from tables, one JSON file per device, and by rule where no row fits.

Nothing is tuned while a network is built or runs. ``python -m dynkern tune`` measures on the card at hand and writes a
table of its own into the user's cache, whose rows come before those that are shipped.

A row's conditions are about the full layer, never about the width that runs. So a layer has one row, hence at most two
variants of the compiled kernel over all its widths: ``wide`` where at least half of its tile is active and
everything is a multiple of eight, ``narrow`` for the rest.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynkern.files import cache_folder

SCHEMA = 1
# What tables call the convolutions that have a kernel of their own.
DEPTHWISE = "depthwise_conv2d"
TABLES = resources.files("dynkern.ops.gpu") / "tables"


@dataclass(frozen=True)
class Config:
    """One way to cut the work.

    Attributes:
        block_p, block_o: pixels (rows, for a linear layer) and outputs of a tile.
        block_k: the reduction taken at a time.
        warps, stages: Triton's ``num_warps`` and ``num_stages``.
    """

    block_p: int
    block_o: int
    block_k: int
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Layer:
    """What a row is chosen by.

    Attributes:
        op: the operator.
        dtype: of the activations: ``float16``, ``bfloat16``, ``float32`` or ``int8``.
        outputs, inputs: of the full layer (per group); a depthwise one has one input.
        taps: of the kernel.
        pixels: of all images together, or rows.
        last: channels are the last axis in memory.
    """

    op: str
    dtype: str
    outputs: int
    inputs: int
    taps: int
    pixels: int
    last: bool


@dataclass(frozen=True)
class Row:
    """One row of a table: for layers as it says, ``wide`` and ``narrow``; or neither, where PyTorch is faster.

    ``outputs``, ``inputs`` and ``pixels`` are ranges, both ends included, None for no end; ``origin`` tells where the
    row comes from: ``arithmetic`` (never timed) or what ``tune`` measured.
    """

    op: str
    dtypes: tuple[str, ...]
    last: bool | None
    outputs: tuple[int, int | None]
    inputs: tuple[int, int | None]
    taps: tuple[int, int | None]
    pixels: tuple[int, int | None]
    wide: Config | None
    narrow: Config | None
    origin: str

    def fits(self, layer: Layer) -> bool:
        """Whether ``layer`` is one of this row's."""
        ranges = ("outputs", "inputs", "taps", "pixels")
        return (
            self.op == layer.op
            and layer.dtype in self.dtypes
            and self.last in (None, layer.last)
            and all(_within(getattr(layer, name), getattr(self, name)) for name in ranges)
        )


@dataclass(frozen=True)
class Table:
    """The rows for one device, or one kind of device.

    Attributes:
        device: its name, or the first words of it.
        capability: of the devices that the table is also for, where none has their name.
        rows: the first that fits is taken.
    """

    device: str
    capability: tuple[int, int]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Device:
    """The facts of a device that a choice needs."""

    name: str
    capability: tuple[int, int]
    processors: int


# Stands in for a card where there is none: in the interpreter.
NO_DEVICE = Device("none", (9, 0), 132)


def device_of(x: Tensor) -> Device:
    """The device that ``x`` is on."""
    return _device(x.get_device()) if x.is_cuda else NO_DEVICE


@cache
def _device(index: int) -> Device:
    found = torch.cuda.get_device_properties(index)
    return Device(found.name, (found.major, found.minor), found.multi_processor_count)


@lru_cache(maxsize=4096)
def row_for(device: Device, layer: Layer) -> Row:
    """The first row that fits ``layer``: of the user's cache, then of the shipped tables, then by rule."""
    for table in tables(device):
        for row in table.rows:
            if row.fits(layer):
                return row
    return by_rule(device, layer)


@cache
def tables(device: Device) -> tuple[Table, ...]:
    """The tables for ``device``, in the order in which they are asked."""
    found = [read(path) for path in (user_table(device),) if path.is_file()]
    known = shipped()
    named = [t for t in known if device.name.startswith(t.device)]
    return (*found, *(named or [t for t in known if t.capability == device.capability])[:1])


def pick(row: Row, active_outputs: int, aligned: bool) -> tuple[Config, int] | None:
    """The configuration for a width, and the alignment it may rely on (8 or none: 0); None where PyTorch runs.

    This is the promise of two variants: (wide, 8) and (narrow, 0), and no other.
    """
    if row.wide is None or row.narrow is None:
        return None
    if aligned and 2 * active_outputs >= row.wide.block_o:
        return row.wide, 8
    return row.narrow, 0


def by_rule(device: Device, layer: Layer) -> Row:
    """The row for a layer of which no table knows: small tiles, which fit every card and leave few processors idle."""
    ends = ((layer.outputs, layer.outputs), (layer.inputs, layer.inputs), (layer.taps, layer.taps))
    where = (layer.op, (layer.dtype,), layer.last, *ends, (layer.pixels, layer.pixels))
    if layer.op == DEPTHWISE:
        tile = Config(32, 64, 0) if layer.last else Config(128, 8, 0)
        return Row(*where, tile, tile, "rule")
    rows = 16 if layer.pixels <= 16 else 64
    if layer.op.startswith("ternary"):
        # A tile of 64 outputs decodes weights for all its pixels at once; half of it where processors would idle.
        tiles = -(-layer.pixels // rows) * -(-layer.outputs // 64)
        outputs = 64 if tiles >= device.processors else 32
        if layer.dtype == "float32":  # its three parts spill registers in other shapes
            rows, outputs = rows if layer.last else min(rows, 32), 64
        tile = Config(rows, outputs, 128, 4, 2)
        return Row(*where, tile, tile, "rule")
    outputs = min(64, _power(layer.outputs, 16))
    return Row(*where, Config(rows, outputs, 32, 4, 2), Config(rows, min(outputs, 32), 32, 4, 2), "rule")


def _power(value: int, least: int) -> int:
    """The power of two from ``value`` up, at least ``least``."""
    return max(least, 1 << (value - 1).bit_length())


def _within(value: int, ends: tuple[int, int | None]) -> bool:
    return ends[0] <= value and (ends[1] is None or value <= ends[1])


def user_table(device: Device) -> Path:
    """Where ``tune`` puts what it measured on ``device``."""
    return cache_folder() / f"{'-'.join(device.name.lower().split())}.json"


@lru_cache(maxsize=1)
def shipped() -> tuple[Table, ...]:
    """The tables that come with dynkern."""
    paths = sorted(p.name for p in TABLES.iterdir() if p.name.endswith(".json"))
    return tuple(parse((TABLES / name).read_text(), name) for name in paths)


def forget() -> None:
    """Read the tables anew at the next call."""
    for cached in (row_for, tables, shipped):
        cached.cache_clear()


def read(path: Path) -> Table:
    """A table from a file; ``ValueError`` if it is none."""
    return parse(path.read_text(), str(path))


def parse(text: str, name: str) -> Table:
    """A table from JSON; ``ValueError`` that names ``name`` if it is none."""
    try:
        content = json.loads(text)
        if content["schema"] != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA}, got {content['schema']!r}")
        rows = tuple(_row(row) for row in content["rows"])
        return Table(str(content["device"]), _pair(content["capability"]), rows)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected a table of configurations: {type(error).__name__}: {error}") from error


def dump(table: Table) -> str:
    """``table`` as JSON, a line per row."""
    head = {"schema": SCHEMA, "device": table.device, "capability": table.capability}
    rows = ",\n".join(f"  {json.dumps(dataclasses.asdict(row))}" for row in table.rows)
    return f'{json.dumps(head)[:-1]}, "rows": [\n{rows}\n]}}\n'


def _row(content: Mapping[str, Any]) -> Row:
    values = dict(content)
    for name in ("outputs", "inputs", "taps", "pixels"):
        values[name] = _pair(values.get(name, (0, None)))
    values["dtypes"] = tuple(values["dtypes"])
    for name in ("wide", "narrow"):
        values[name] = None if values.get(name) is None else Config(**values[name])
    return Row(**{"last": None, "origin": "arithmetic", **values})


def _pair(value: Any) -> Any:
    first, second = value
    return first, second
