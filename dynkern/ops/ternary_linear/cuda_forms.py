"""The forms of a packed weight that the CUDA kernels read, and which one is for which call.

A form is derived from the packed codes, on the host, once per device; it is never saved. csrc/cuda/layout.h says what
each one is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from dynkern import _C
from dynkern.ops.gpu.derived import Derived
from dynkern.ops.ternary_linear import cuda_counters
from dynkern.ops.ternary_weight import check_codes, codes_of

TABLE = resources.files("dynkern.ops.ternary_linear") / "cuda_forms.json"
SCHEMA = 1
# The numbers of csrc/cuda/types.h.
TYPES = {torch.int8: 0, torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
FORMS = {"dense": 0, "lists": 1, "sparse8": 2, "sparse16": 3}
# What is derived when a module is moved: the forms for so many rows of activations. Others follow at first use.
_PREPARED_ROWS = (1, 16)


@dataclass(frozen=True)
class Row:
    """One row of the table: ``form`` is for activations ``x`` (``int8``, or ``float`` of 16 bits), for ``rows`` of them
    and a share of ``zeros`` in the weight; ranges include both ends, None is no end. No form: another backend is
    expected to be faster.
    """

    x: str
    rows: tuple[int, int | None]
    zeros: tuple[float, float]
    form: str | None

    def fits(self, x: str, rows: int, zeros: float) -> bool:
        low, high = self.rows
        return (
            x == self.x and low <= rows and (high is None or rows <= high) and self.zeros[0] <= zeros <= self.zeros[1]
        )


@lru_cache(maxsize=1)
def table() -> tuple[Row, ...]:
    """The rows of the table, the first that fits being the one to take.

    Raises:
        ValueError: the file is of another schema or names a form that does not exist.
    """
    return read_table(json.loads(TABLE.read_text(encoding="utf-8")))


def read_table(data: dict[str, Any]) -> tuple[Row, ...]:
    """The rows of a table in its JSON form; raises ``ValueError`` for one that this version cannot follow."""
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema: expected {SCHEMA}, got {data.get('schema')!r}")
    rows = tuple(Row(r["x"], tuple(r["rows"]), tuple(r["zeros"]), r["form"]) for r in data["rows"])
    for row in rows:
        if row.form is not None and row.form not in FORMS:
            raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {row.form!r}")
        if row.x not in ("int8", "float"):
            raise ValueError(f"x: expected 'int8' or 'float', got {row.x!r}")
    return rows


def choose(dtype: torch.dtype, rows: int, zeros: float) -> str | None:
    """The form for ``rows`` rows of activations of ``dtype`` and a weight whose share of zeros is ``zeros``.

    None where another backend is expected to be faster than any.
    """
    kind = "int8" if dtype == torch.int8 else "float"
    return next(row.form for row in table() if row.fits(kind, rows, zeros))


class Weight:
    """A packed weight on a CUDA device, in the forms that were asked for.

    Args:
        packed: (O, ceil(I / 4)) uint8 codes on the device; read here, not kept.
        inputs: I.
    """

    def __init__(self, packed: Tensor, inputs: int) -> None:
        self.shape = (packed.shape[0], inputs)
        self.device = packed.device
        self.multiprocessors: int = torch.cuda.get_device_properties(self.device).multi_processor_count
        self.zeros = share_of_zeros(packed, self.shape)
        self._forms: dict[str, tuple[_C.CudaTernaryLinear, tuple[Tensor, ...]]] = {}
        cuda_counters.reserve(self.device)

    def form(self, name: str, packed: Tensor) -> _C.CudaTernaryLinear:
        """The kernel's view of the weight in that form, derived from ``packed`` at first use.

        Raises:
            RuntimeError: the form is not there yet and a CUDA graph is being captured, which cannot derive it.
        """
        known = self._forms.get(name)
        if known is None:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"ternary_linear: the weight's {name} form is not derived yet, which a CUDA graph cannot capture; "
                    "run the layer once on an input of this shape before the capture"
                )
            known = self._derive(name, packed)
            self._forms[name] = known
        return known[0]

    def _derive(self, name: str, packed: Tensor) -> tuple[_C.CudaTernaryLinear, tuple[Tensor, ...]]:
        codes = packed.detach().cpu().contiguous().numpy().tobytes()
        *parts, chunk = _C.cuda_pack(codes, *self.shape, FORMS[name], self.multiprocessors, torch.get_num_threads())
        tensors = tuple(as_tensor(part).to(self.device) for part in parts)
        # The copies ran on this stream; the form may be used on any.
        torch.cuda.current_stream(self.device).synchronize()
        words, starts, bases, rest = (t.data_ptr() for t in tensors)
        device = self.device.index or 0
        outputs, inputs = self.shape
        view = _C.CudaTernaryLinear(
            FORMS[name], outputs, inputs, words, starts, bases, rest, chunk, device, self.multiprocessors
        )
        return view, tensors

    @property
    def nbytes(self) -> int:
        """Bytes on the device of the forms derived so far."""
        return sum(t.nbytes for _, tensors in self._forms.values() for t in tensors)


def as_tensor(part: bytes) -> Tensor:
    """Bytes as a uint8 tensor."""
    return torch.frombuffer(bytearray(part), dtype=torch.uint8) if part else torch.empty(0, dtype=torch.uint8)


def share_of_zeros(packed: Tensor, shape: Sequence[int]) -> float:
    """The share of zeros among the weights of ``shape``; the padding's codes are zero and are not counted."""
    return 1 - int((codes_of(packed) != 0).sum()) / math.prod(shape)


_weights: Derived[Weight] = Derived()


def weight_of(packed: Tensor, inputs: int) -> Weight:
    """The forms of ``packed``, kept with it and renewed when it was written to."""

    def derive() -> Weight:
        check_codes(packed, (packed.shape[0], inputs))
        return Weight(packed, inputs)

    return _weights.get((packed,), ("cuda", inputs), derive)


def prepare(packed: Tensor, inputs: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Derive the forms that one row and a few rows of activations need; for when a module comes to a device."""
    weight = weight_of(packed, inputs)
    for rows in _PREPARED_ROWS:
        form = choose(dtype, rows, weight.zeros)
        if form is not None:
            weight.form(form, packed)
