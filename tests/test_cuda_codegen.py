"""What nvcc makes of the CUDA kernels: registers, spills, and the instructions that they are written for.

Needs nvcc; the part about machine code also a cuobjdump, which Triton's package has.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
from cuda_objects import ARCHITECTURES, objects

TYPES = ("int8", "bfloat16", "float16")
KERNELS = [f"Skinny{n}" for n in (1, 2, 4)] + [f"Lists{n}" for n in (1, 2, 4)] + ["Matrix0", "Matrix1"]


@dataclass(frozen=True)
class Usage:
    registers: int
    stack: int
    spills: int


@dataclass(frozen=True)
class Built:
    """One compiled file: for each architecture and kernel, what it uses."""

    kind: str
    object: Path
    usage: dict[tuple[str, str], Usage]


def kernel_name(mangled: str) -> str:
    """``Skinny1``, ``Matrix0``, ... of a mangled entry point."""
    found = re.search(r"\d(Skinny|Lists|Matrix)I.*?EL[ib](\d)E", mangled)
    assert found is not None, mangled
    return found[1] + found[2]


@pytest.fixture(scope="module", params=TYPES)
def built(request: pytest.FixtureRequest) -> Built:
    made = objects()[f"ternary_linear_{request.param}"]
    usage = {}
    entry = re.compile(
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    for mangled, arch, stack, stores, loads, registers in entry.findall(made.report):
        usage[arch, kernel_name(mangled)] = Usage(int(registers), int(stack), int(stores) + int(loads))
    return Built(request.param, made.path, usage)


def test_every_kernel_is_there(built: Built) -> None:
    assert set(built.usage) == {(arch, name) for arch in ARCHITECTURES for name in KERNELS}


def test_registers_let_the_blocks_share_a_multiprocessor(built: Built) -> None:
    """256 threads: 64 registers let four blocks run, 128 two, 255 one."""
    for (arch, name), used in built.usage.items():
        most = 64 if name.startswith("Lists") else 255 if name in ("Skinny2", "Skinny4") else 128
        assert used.registers <= most, (arch, name, used)


def test_nothing_spills_in_a_loop(built: Built) -> None:
    """The sparse int8 product keeps three addresses in memory, outside of its multiplications; nothing else spills."""
    for (arch, name), used in built.usage.items():
        allowed = 24 if name == "Matrix1" and built.kind == "int8" else 0
        assert used.stack <= allowed, (arch, name, used)


@lru_cache(maxsize=1)
def cuobjdump() -> str:
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        shipped = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(shipped) if shipped.is_file() else None
    if found is None:
        pytest.skip("no cuobjdump: neither CUDA's own nor Triton's")
    return found


def instructions(built: Built) -> dict[tuple[str, str], list[str]]:
    """The machine code of each kernel, by opcode with its modifiers."""
    code: dict[tuple[str, str], list[str]] = {}
    for arch in ARCHITECTURES:
        command = [cuobjdump(), "-sass", "-arch", f"sm_{arch}", built.object]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
        for part in text.split("Function : ")[1:]:
            opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", part, re.MULTILINE)
            code[arch, kernel_name(part.split()[0])] = opcodes
    return code


def count(opcodes: list[str], start: str) -> int:
    return sum(opcode.startswith(start) for opcode in opcodes)


def test_the_instructions_are_those_meant(built: Built) -> None:
    dense, sparse = {
        "int8": ("IMMA.16832.S8.S8", "IMMA.SP.16864.S8.S8"),
        "bfloat16": ("HMMA.16816.F32.BF16", "HMMA.SP.16832.F32.BF16"),
        "float16": ("HMMA.16816.F32", "HMMA.SP.16832.F32"),
    }[built.kind]
    for (arch, name), opcodes in instructions(built).items():
        where = (arch, name, Counter(opcodes).most_common(12))
        if name.startswith("Lists"):
            assert count(opcodes, "LDG.E.NA.128") == 2, where  # the first quad, and the next one in the loop
            gathers = 16 * int(name[-1])
            assert count(opcodes, "LDS.U8" if built.kind == "int8" else "LDS.U16") == gathers, where
            # Byte products make the addresses, and the signs of int8.
            assert count(opcodes, "IDP.4A") >= 16, where
            assert count(opcodes, "HMMA") + count(opcodes, "IMMA") == 0, where
        elif name.startswith("Skinny"):
            groups, tiles, ahead = int(name[-1]), 2 if name[-1] == "1" else 4, 4
            word = (1 if built.kind == "int8" else 2) * tiles * groups
            # The ring's steps of four words, and the last step's loop of two.
            assert count(opcodes, dense) == (4 * ahead + 2) * word, where
            assert count(opcodes, "LDG.E.NA.128") == (2 * ahead + 1) * tiles, where
        else:
            assert count(opcodes, sparse if name == "Matrix1" else dense) == (32 if name == "Matrix1" else 64), where
            assert count(opcodes, "LDGSTS") >= 3, where  # activations, weights, and those of the rest
            assert count(opcodes, "LDS.128") >= 8, where


# Instructions of the main loop for 512 bytes of weights (a tile of a step): 4.3 TB/s leave a scheduler of an H200
# 110 slots for that. What is written here is what nvcc 13.0 makes, and a tenth more.
MAIN_LOOP = {
    ("int8", "Skinny1"): 66, ("int8", "Skinny2"): 76, ("int8", "Skinny4"): 85,
    ("bfloat16", "Skinny1"): 103, ("bfloat16", "Skinny2"): 115, ("bfloat16", "Skinny4"): 133,
}  # fmt: skip
# Instructions for an entry of a list, a byte of each lane: 4.3 TB/s leave a scheduler seven.
LIST_LOOP = {
    "int8": {"Lists1": 6.8, "Lists2": 10.2, "Lists4": 16.8},
    "bfloat16": {"Lists1": 8.1, "Lists2": 12.5, "Lists4": 21.3},
    "float16": {"Lists1": 9.2, "Lists2": 14.7, "Lists4": 25.5},
}


def test_the_main_loop_is_short(built: Built) -> None:
    listing = "-sass", "-arch", "sm_90a", str(built.object)
    text = subprocess.run([cuobjdump(), *listing], capture_output=True, text=True, check=True, timeout=120).stdout
    for part in text.split("Function : ")[1:]:
        name = kernel_name(part.split()[0])
        if name.startswith("Matrix"):
            continue
        lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+([^;]*);", part, re.MULTILINE)
        work = "MMA" if name.startswith("Skinny") else "LDS.U"
        multiplies = [int(at, 16) for at, code in lines if work in code]
        spans = []
        for at, code in lines:
            jump = re.search(r"BRA.* 0x([0-9a-f]+)", code)
            if jump is not None and int(jump[1], 16) <= multiplies[0] <= int(at, 16):
                spans.append((int(at, 16) - int(jump[1], 16)) // 16 + 1)
        if name.startswith("Lists"):
            assert min(spans) / 16 <= LIST_LOOP[built.kind][name], (name, min(spans) / 16)
            continue
        tiles = 4 * (2 if name == "Skinny1" else 4)
        most = MAIN_LOOP["int8" if built.kind == "int8" else "bfloat16", name]
        assert min(spans) / tiles <= most, (name, min(spans) / tiles)
