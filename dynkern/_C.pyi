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
