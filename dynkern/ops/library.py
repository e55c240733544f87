"""How the operators are registered with PyTorch, and when the dispatcher can be left out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

log = logging.getLogger("dynkern")
lib = torch.library.Library("dynkern", "DEF")

_PLAIN = (Tensor, Parameter)


def call(
    op: Any, tensors: Sequence[Tensor | None], args: tuple, run: Callable, shape: Callable, reference: Callable
) -> Tensor:
    """Run an operator on ``args``, of which ``tensors`` may be differentiated, the shortest way that is right.

    A call through the dispatcher costs more than a small layer does, so the common case of inference goes straight to
    ``run``. The transforms of torch.func see PyTorch's own operators (``reference``); everything else, autograd and
    tracing, goes through the registered ``op``. ``shape`` checks the arguments first, so that errors are the same.
    """
    if eager(*tensors):
        return run(*args)
    if torch.compiler.is_compiling():
        return op(*args)
    shape(*args)
    return reference(*args) if torch._C._are_functorch_transforms_active() else op(*args)


def autocast(x: Any, dtype: torch.dtype) -> Any:
    """``x`` in the weight's ``dtype`` where autocast is on: what runs before may have lowered it."""
    if isinstance(x, Tensor) and x.dtype != dtype and torch.is_autocast_enabled(x.device.type):
        return x.to(dtype)
    return x


def eager(*tensors: Tensor | None) -> bool:
    """True when native code may run on ``tensors`` at once: nothing is traced, transformed or differentiated."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    ):
        return False
    grad = torch.is_grad_enabled()
    return not any(t is not None and (type(t) not in _PLAIN or (grad and t.requires_grad)) for t in tensors)


@lru_cache(maxsize=256)
def fallback(op: str, why: str) -> None:
    """Say, once per reason, that PyTorch runs ``op``; with ``DYNKERN_STRICT=1`` refuse instead."""
    if os.environ.get("DYNKERN_STRICT", "0") not in ("", "0"):
        raise RuntimeError(f"{op}: no dynkern kernel for {why}, and DYNKERN_STRICT is set")
    log.warning("%s: no dynkern kernel for %s; PyTorch runs it on the active slice", op, why)


def native(op: str, x: Tensor) -> bool:
    """True when ``op`` has a kernel for the dtype and device of ``x``; otherwise the fallback is announced."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return True
    fallback(op, f"{x.dtype} on {x.device.type}")
    return False


def taken(op: str, y: Tensor | None) -> Tensor:
    """``y``, the result of a native call whose arguments were checked."""
    if y is None:
        raise RuntimeError(f"{op}: internal error, the kernel refused arguments that were found right")
    return y
