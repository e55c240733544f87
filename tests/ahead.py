"""Compiles the Triton kernels for GPUs that are not there, as a call would compile them, and reads what came out."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dynkern.ops import TernaryWeight
from dynkern.ops.gpu import configs
from dynkern.ops.gpu.configs import DEPTHWISE, Config, Device
from dynkern.ops.gpu.epilogue import Epilogue
from dynkern.ops.quantize import Activation
from dynkern.ops.sliced_conv2d import triton as sliced
from dynkern.ops.ternary_conv2d import triton as ternary

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int8: "i8", torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.float16}


@dataclass(frozen=True)
class Case:
    """One kernel to compile: the arguments are those of a row of a table; ``width`` is "wide" or "narrow"."""

    op: str
    dtype: str
    last: bool
    width: str
    config: Config
    capability: tuple[int, int]
    taps: int = 9

    def __str__(self) -> str:
        c = self.config
        tile = f"{c.block_p}x{c.block_o}x{c.block_k}-{c.warps}-{c.stages}"
        where = "last" if self.last else "first"
        card = f"sm_{self.capability[0]}{self.capability[1]}"
        return f"{card}-{self.op}-{self.dtype}-{where}-{self.width}-{tile}-{self.taps}"


@dataclass(frozen=True)
class Compiled:
    """What the compiler made.

    Attributes:
        kernel: its name.
        ptx: the text of the whole kernel.
        registers, stack: per thread, in registers and bytes; spilled registers lie on the stack.
        shared: bytes of shared memory that the launch asks for.
    """

    kernel: str
    ptx: str
    registers: int
    stack: int
    shared: int

    def tensor_core(self) -> set[str]:
        """The kinds of tensor-core instructions in it."""
        kinds = {"wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma", "mma": "mma.sync"}
        return {kind for kind, text in kinds.items() if text in self.ptx}


class Recorder:
    """Stands in for a kernel and keeps the arguments that it would be launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.args: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}
        self.launches = 0

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            self.args, self.options = args, options
            self.launches += 1

        return launch


def launch_of(case: Case) -> Recorder:
    """The launch that a call of the case's operator would make on the case's device."""
    x = torch.zeros(1, 64, 4, 4, dtype=DTYPES[case.dtype])
    x = x.contiguous(memory_format=torch.channels_last) if case.last else x
    side = round(case.taps**0.5)
    groups = 64 if case.op == DEPTHWISE else 1
    w = torch.zeros(64, 64 // groups, side, side, dtype=x.dtype)
    w = w.contiguous(memory_format=torch.channels_last) if case.last else w
    pad = side // 2
    geometry = (1, 1, pad, pad, pad, pad, 1, 1)
    vector = torch.zeros(64)
    epilogue = Epilogue(vector, vector, torch.zeros_like(x), "clamp")
    config = (case.config, 8 if case.width == "wide" else 0)
    where = (groups, None, None, None)
    if case.op.startswith("ternary"):
        recorder = Recorder(ternary.ternary_kernel)
        packed = TernaryWeight.pack(w.float().sign()).packed
        args = (x, packed, vector, vector.to(x.dtype), w.shape, geometry, *where)
        quantized = (torch.zeros_like(x, dtype=torch.int8), torch.zeros(1))
        with (
            mock.patch.object(ternary, "ternary_kernel", recorder),
            mock.patch.object(ternary, "quantize_rows", return_value=quantized),
            mock.patch.object(configs, "NO_DEVICE", Device("a GPU", case.capability, 132)),
        ):
            ternary.run(*args, Activation(case.dtype == "int8"), epilogue=epilogue, config=config)
        return recorder
    name = "depthwise_kernel" if groups > 1 else "conv_kernel"
    recorder = Recorder(getattr(sliced, name))
    with mock.patch.object(sliced, name, recorder):
        sliced.run(x, w, vector.to(x.dtype), geometry, *where, epilogue=epilogue, config=config)
    return recorder


def build(case: Case) -> Compiled:
    """Compile the launch of ``case`` for its device."""
    recorder = launch_of(case)
    return build_launch(recorder.kernel, recorder.args, recorder.options, case.capability)


def build_launch(kernel: Any, args: tuple[Any, ...], options: dict[str, Any], capability: tuple[int, int]) -> Compiled:
    """Compile ``kernel[grid](*args, **options)``: tensors are taken to be aligned, as PyTorch allocates them."""
    options = dict(options)
    names = ("num_warps", "num_stages", "enable_fp_fusion")
    size = {name: options.pop(name) for name in names if name in options}
    given = {**dict(zip(kernel.arg_names, args, strict=False)), **options}
    signature, constants, attributes = {}, {}, {}
    for i, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        value = given[name]
        if parameter.is_constexpr or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            assert parameter.do_not_specialize, f"{name} would be specialised"
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    compiled = triton.compile(source, target=target, options=size)
    usage = resources(compiled.asm["cubin"])
    return Compiled(kernel.__name__, compiled.asm["ptx"], usage["REG"], usage["STACK"], compiled.metadata.shared)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and stack of the only kernel in ``cubin``."""
    from tempfile import NamedTemporaryFile

    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", text)}


def shipped_cases(both_halves: bool = False) -> list[Case]:
    """Every kernel with every configuration of the shipped tables, for each of the row's dtypes.

    Of the two half precisions, which differ in one letter of the instructions, only one unless ``both_halves``: one on
    one device, the other on the next.
    """
    found = {}
    for i, table in enumerate(configs.shipped()):
        left_out = None if both_halves else ("bfloat16", "float16")[i % 2]
        for row in table.rows:
            for case in _cases(row, table.capability, left_out):
                found[str(case)] = case
    return list(found.values())


def ruled_cases(capability: tuple[int, int]) -> list[Case]:
    """Every kernel with what the rule gives for layers that no table knows, on a device of ``capability``."""
    device = Device("a card that no table knows", capability, 80)
    found = {}
    for op in (configs.DEPTHWISE, "sliced_conv2d", "ternary_conv2d", "ternary_linear"):
        for dtype in ("float32", "float16", *(("int8",) if op.startswith("ternary") else ())):
            for last, outputs, pixels in itertools.product((True, False), (8, 512), (1, 4000)):
                layer = configs.Layer(op, dtype, outputs, 64, 9, pixels, last)
                if last or op != "ternary_linear":
                    for case in _cases(configs.by_rule(device, layer), capability, None):
                        found[str(case)] = case
    return list(found.values())


def _cases(row: configs.Row, capability: tuple[int, int], left_out: str | None) -> Iterator[Case]:
    taps = 1 if row.op == "ternary_linear" else 9
    for dtype in (d for d in row.dtypes if d != left_out):
        for last in (True, False) if row.last is None else (row.last,):
            for width, config in (("wide", row.wide), ("narrow", row.narrow)):
                if config is not None:
                    yield Case(row.op, dtype, last, width, config, capability, taps)
