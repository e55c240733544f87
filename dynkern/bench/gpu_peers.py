"""gemlite (Apache-2.0, https://github.com/dropbox/gemlite): Triton kernels for few bits, as a baseline.

Never a dependency: where it cannot be imported its rows are left out, with the reason. Its kernels tune themselves in
the first call of a shape, which takes a while.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Its class for weights of {-1, 0, +1} and 16-bit activations, by version.
_NAMES = ("A16W158_INT", "A16W158")


def why_no_gemlite() -> str | None:
    """Why gemlite cannot be measured here; None if it can."""
    try:
        helper = importlib.import_module("gemlite.helper")
    # Whatever goes wrong while a foreign package is imported is the reason.
    except Exception as error:
        return f"gemlite: {type(error).__name__}: {error}"
    if not any(hasattr(helper, name) for name in _NAMES):
        return f"gemlite: this version has none of {', '.join(_NAMES)}"
    return None


def bit_linear(signs: Tensor) -> Callable[[Tensor], Tensor]:
    """gemlite's layer with the weight ``signs`` (O, I), bfloat16 of {-1, 0, +1}, packed at two bits each."""
    helper = importlib.import_module("gemlite.helper")
    make = next(getattr(helper, name) for name in _NAMES if hasattr(helper, name))
    layer: Any = make(device=str(signs.device), dtype=signs.dtype).from_weights(signs, torch.tensor(1.0))
    return layer
