"""Counts what PyTorch would put into a CUDA graph beside our kernels, without a card."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Made(TorchDispatchMode):
    """Counts PyTorch's operators that would be a node of a graph: all but those that only make or view tensors."""

    FREE = ("aten.empty", "aten.view", "aten.slice", "aten.detach", "aten.as_strided", "aten.reshape", "aten.alias",
            "aten._unsafe_view", "aten.unsqueeze", "aten.select", "aten.expand")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not str(op).startswith(self.FREE):
            self.nodes.append(str(op))
        return op(*args, **(kwargs or {}))
