"""A few PTX instructions, carried out on the CPU: what the decoding of ternary weights is written in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def run(text: str, inputs: Sequence[int], outputs: int) -> list[int]:
    """Registers ``$0`` to ``$(outputs - 1)`` after ``text``, whose inputs are the registers that follow them."""
    registers = {f"${outputs + i}": value for i, value in enumerate(inputs)}
    for line in text.strip().removeprefix("{").removesuffix("}").split(";"):
        line = line.strip()
        if not line or line.startswith(".reg"):
            continue
        name, rest = line.split(None, 1)
        target, *operands = (part.strip() for part in rest.split(","))
        values = [registers[o] if o in registers else int(o, 0) for o in operands]
        registers[target] = _INSTRUCTIONS[name](*values) & 0xFFFFFFFF
    return [registers[f"${i}"] for i in range(outputs)]


def _prmt(a: int, b: int, selector: int) -> int:
    pool = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    picks = [selector >> 4 * i & 0xF for i in range(4)]
    assert all(pick < 8 for pick in picks), "sign replication is not modelled"
    return int.from_bytes(bytes(pool[pick] for pick in picks), "little")


def _lop3(a: int, b: int, c: int, table: int) -> int:
    result = 0
    for i in range(32):
        index = (a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)
        result |= (table >> index & 1) << i
    return result


def _fma(dtype: torch.dtype, a: int, b: int, c: int) -> int:
    x, y, z = (halves(value, dtype).double() for value in (a, b, c))
    exact = x * y + z
    rounded = exact.to(dtype)
    assert torch.equal(rounded.double(), exact), "the decoding relies on exact results"
    low, high = (int(v) & 0xFFFF for v in rounded.view(torch.int16).tolist())
    return low | high << 16


def halves(value: int, dtype: torch.dtype) -> torch.Tensor:
    """The two 16-bit numbers in a register, the lower first."""
    return torch.from_numpy(np.array([value & 0xFFFF, value >> 16], np.uint16).view(np.int16)).view(dtype)


_INSTRUCTIONS = {
    "mov.b32": lambda a: a,
    "shr.u32": lambda a, b: a >> b,
    "add.u32": lambda a, b: a + b,
    "xor.b32": lambda a, b: a ^ b,
    "prmt.b32": _prmt,
    "lop3.b32": _lop3,
    "fma.rn.bf16x2": lambda a, b, c: _fma(torch.bfloat16, a, b, c),
    "fma.rn.f16x2": lambda a, b, c: _fma(torch.float16, a, b, c),
}
