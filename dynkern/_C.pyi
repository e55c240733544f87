"""The native module (csrc/bindings.cpp). Operators return None for a call that no kernel takes."""

from collections.abc import Sequence

from torch import Tensor

def isa() -> str: ...
def isas() -> list[str]: ...
def force_isa(name: str) -> None: ...
def kernels() -> list[str]: ...

class TernaryLists:
    def __init__(self, packed: Tensor, shape: Sequence[int]) -> None: ...
    @property
    def nonzeros(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class TernaryLayouts:
    def __init__(self, packed: Tensor, shape: Sequence[int]) -> None: ...
    @property
    def nonzeros(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

def set_ternary_break_even(isa: str, entries: Sequence[tuple[int, int, str, float]], /) -> None: ...
def ternary_kernel(rows: int, weights: int, zeros: float, /) -> str: ...
def ternary_conv2d_int8(
    x: Tensor,
    layouts: TernaryLayouts,
    packed: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    kernel_height: int,
    kernel_width: int,
    geometry: Sequence[int],
    groups: int,
    out_channels: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    activation_scale: float,
    per_row: bool,
    threads: int,
    kernel: str,
    /,
) -> Tensor | None: ...
def ternary_linear_int8(
    x: Tensor,
    layouts: TernaryLayouts,
    packed: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    activation_scale: float,
    per_row: bool,
    threads: int,
    kernel: str,
    /,
) -> Tensor | None: ...
def sliced_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Sequence[int],
    groups: int,
    out_channels: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    threads: int,
    /,
) -> Tensor | None: ...
def ternary_conv2d(
    x: Tensor,
    lists: TernaryLists,
    scale: Tensor | None,
    bias: Tensor | None,
    kernel_height: int,
    kernel_width: int,
    geometry: Sequence[int],
    groups: int,
    out_channels: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    threads: int,
    /,
) -> Tensor | None: ...
def sliced_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    threads: int,
    /,
) -> Tensor | None: ...
def ternary_linear(
    x: Tensor,
    lists: TernaryLists,
    scale: Tensor | None,
    bias: Tensor | None,
    out_features: int | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    threads: int,
    /,
) -> Tensor | None: ...

class Epilogue:
    def __init__(
        self,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: int,
        residual_scale: Tensor | None,
        activation: str,
        low: float,
        high: float,
    ) -> None: ...

class Store:
    def __init__(self) -> None: ...
    def add_dense(self, weight: Tensor, /) -> int: ...
    def add_quantized(self, weight: Tensor, /) -> int: ...
    def add_codes(self, packed: Tensor, shape: Sequence[int], /) -> int: ...
    def add_ternary(self, packed: Tensor, shape: Sequence[int], /) -> int: ...
    @property
    def weight_bytes(self) -> int: ...

class Program:
    def __init__(self, store: Store, /) -> None: ...
    def value(
        self, channels: int, height: int, width: int, element: str, zero: int, across: int, left: int, /
    ) -> int: ...
    def conv2d(
        self,
        x: int,
        y: int,
        weight: int,
        kernel: Sequence[int],
        geometry: Sequence[int],
        groups: int,
        in_index: Sequence[int],
        out_index: Sequence[int],
        epilogue: Epilogue,
        /,
    ) -> None: ...
    def linear(
        self, x: int, y: int, weight: int, in_index: Sequence[int], out_index: Sequence[int], epilogue: Epilogue, /
    ) -> None: ...
    def pool2d(
        self, x: int, y: int, maximum: bool, kernel: Sequence[int], geometry: Sequence[int], count_padding: bool, /
    ) -> None: ...
    def adaptive_average(self, x: int, y: int, /) -> None: ...
    def pointwise(self, x: int, y: int, epilogue: Epilogue, /) -> None: ...
    def multiply(self, x: int, y: int, gate: int, /) -> None: ...
    def concat(self, xs: Sequence[int], y: int, /) -> None: ...
    def crop(
        self, x: int, y: int, first: Sequence[int], step: Sequence[int], count: Sequence[int], offset: Sequence[int], /
    ) -> None: ...
    def flatten(self, x: int, y: int, /) -> None: ...
    def softmax(self, x: int, y: int, log: bool, /) -> None: ...
    def finish(self, inputs: Sequence[int], outputs: Sequence[int], /) -> None: ...
    def run(self, x: Tensor, dimensions: int, threads: int, /) -> Tensor | None: ...
    def run_many(self, xs: list[Tensor], threads: int, /) -> list[Tensor]: ...
    def describe(self) -> list[dict]: ...
    @property
    def constant_bytes(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...

# The CUDA kernels, where the build has them (csrc/cuda/bindings.cpp); what they were compiled for, or None.
cuda_architectures: str | None

def cuda_pack(
    packed: bytes, outputs: int, inputs: int, form: int, multiprocessors: int, threads: int = 1
) -> tuple[bytes, bytes, bytes, bytes, int]: ...

class CudaTernaryLinear:
    def __init__(
        self,
        form: int,
        outputs: int,
        inputs: int,
        words: int,
        starts: int,
        bases: int,
        rest: int,
        chunk_groups: int,
        device: int,
        multiprocessors: int,
    ) -> None: ...
    def needs(self, x_type: int, rows: int, inputs: int, outputs: int) -> tuple[int, int, int]: ...
    def run(
        self,
        x: int,
        x_type: int,
        rows: int,
        inputs: int,
        x_row: int,
        row_scale: int,
        scale: int,
        bias: int,
        bias_type: int,
        y: int,
        y_type: int,
        outputs: int,
        partial: int,
        arrived: int,
        stream: int,
    ) -> None: ...
