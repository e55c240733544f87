"""Which kernel runs an operator on a GPU."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from dynkern import _C
from dynkern.ops.gpu.layout import output_format
from dynkern.ops.library import fallback, lib
from dynkern.ops.quantize import Activation

# The backends of every operator, the preferred one first: dynkern/ops/<operator>/<backend>.py.
BACKENDS: Mapping[str, tuple[str, ...]] = {
    "sliced_conv2d": ("triton",),
    "sliced_linear": ("triton",),
    "ternary_conv2d": ("triton",),
    "ternary_linear": ("triton",) if _C.cuda_architectures is None else ("cuda", "triton"),
}
TORCH = "torch"
# What the name of an operator whose activations are quantised ends with.
INT8 = "_int8"


class Backend(Protocol):
    """What a backend's module has. Both functions take the operator's own arguments, which were checked.

    Those of the ternary operators take one more, an :class:`dynkern.ops.quantize.Activation`, where activations are
    quantised.
    """

    def why_not(self, *args: Any) -> str | None:
        """Why this backend should not run the call, in words that name no size; None if it should."""

    def run(self, *args: Any) -> Tensor:
        """The result."""


def register(op: str, shape: Callable[..., object], reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give ``op`` its implementation for CUDA tensors, and return it.

    ``shape`` checks the arguments; ``reference`` is what PyTorch runs where no backend takes the call. The int8 form
    of an operator, which has two more arguments, is for the operator's own backends.
    """
    int8 = op.endswith(INT8)

    def on_gpu(*args: Any) -> Tensor:
        shape(*args)
        theirs = (*args[:-2], Activation(True, *args[-2:])) if int8 else args
        return run(op.removesuffix(INT8), theirs, lambda *_: reference(*args))

    lib.impl(op, on_gpu, "CUDA")
    return on_gpu


def run(op: str, args: tuple[Any, ...], reference: Callable[..., Tensor]) -> Tensor:
    """The result of ``op`` by the first backend that takes the call, or by PyTorch, which is logged.

    Raises:
        RuntimeError: CUDA is off; or PyTorch would have to run the call, and ``DYNKERN_STRICT`` is set; or the one
            backend that ``DYNKERN_BACKEND`` names does not take it.
    """
    x: Tensor = args[0]
    if not torch.cuda.is_available():
        raise RuntimeError(f"{op}: x is on {x.device}, but CUDA is off here: {why_cuda_is_off()}")
    forced = os.environ.get("DYNKERN_BACKEND", "")
    reasons = []
    for name in (forced,) if forced else BACKENDS[op]:
        if name == TORCH:
            return by_torch(op, args, reference)
        found = backend(op, name)
        reason = found if isinstance(found, str) else found.why_not(*args)
        if reason is None:
            with torch.cuda.device_of(x):
                return cast(Backend, found).run(*args)
        reasons.append(f"{name}: {reason}")
    if forced:
        raise RuntimeError(f"{op}: DYNKERN_BACKEND asks for one that does not take this call; {reasons[0]}")
    quantized = ", int8 activations," if isinstance(args[-1], Activation) else ""
    fallback(op, f"{x.dtype}{quantized} on {x.device.type} ({'; '.join(reasons)})")
    return by_torch(op, args, reference)


def by_torch(op: str, args: tuple[Any, ...], reference: Callable[..., Tensor]) -> Tensor:
    """The result of ``reference``, in the memory format that the operators promise."""
    form = output_format(args[0]) if op.endswith("conv2d") else torch.contiguous_format
    return reference(*args).contiguous(memory_format=form)


@cache
def backend(op: str, name: str) -> Backend | str:
    """The module of a backend, or why there is none."""
    if name not in BACKENDS[op]:
        return f"expected one of {', '.join(BACKENDS[op])} or {TORCH}"
    try:
        return cast(Backend, importlib.import_module(f"dynkern.ops.{op}.{name}"))
    except ImportError as error:
        return f"not installed ({error}; pip install 'dynkern[{name}]')"


def backends() -> dict[str, tuple[str, ...]]:
    """The backends of every operator that can be loaded here, preferred first."""
    return {op: tuple(n for n in names if not isinstance(backend(op, n), str)) for op, names in BACKENDS.items()}


def why_cuda_is_off() -> str:
    """Why PyTorch has no CUDA device here, in its own words."""
    if torch.version.cuda is None:
        return "this build of torch has no CUDA"
    try:
        torch.cuda.init()
        torch.cuda.get_device_name(0)
    # Whatever the driver says is the answer that is asked for.
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return "torch.cuda.is_available() is False"
