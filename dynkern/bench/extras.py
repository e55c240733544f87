"""Packages that only the benchmark needs."""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str) -> Any:
    """``module``, imported.

    Raises:
        ImportError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"the benchmark needs {package}: pip install 'dynkern[bench]'") from error
