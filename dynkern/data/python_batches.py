"""CIFAR-10 as its authors distribute it, and torchvision downloads it: a folder of pickled batches."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynkern.data.cifar import CLASSES, SIZE

FOLDER = "cifar-10-batches-py"
FILES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
# All that an array of numbers is made of: anything else in the file is refused, so that nothing in it is executed.
_ALLOWED = {
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in ((f"{package}.multiarray", "_reconstruct"), (f"{package}.multiarray", "scalar"))
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of an array")
        return super().find_class(module, name)


def read_python_batches(folder: str | os.PathLike[str], split: str = "train") -> tuple[Tensor, Tensor]:
    """Read one split of the folder ``cifar-10-batches-py``.

    Only arrays, lists and dictionaries are taken from the files; whatever else a pickle can hold is refused.

    Args:
        folder: holds ``data_batch_1`` to ``data_batch_5`` and ``test_batch``.
        split: ``"train"`` or ``"test"``.

    Returns:
        Images (N, 3, 32, 32) uint8, RGB, and labels (N,) int64 of 0 to 9.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: ``split`` is none of the two, or a file is damaged or holds something else; it is named.
    """
    if split not in FILES:
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    parts = [_read(Path(folder) / name) for name in FILES[split]]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def _read(file: Path) -> tuple[Tensor, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"folder: expected the file {file}, found none")
    try:
        with file.open("rb") as stream:
            content = _Unpickler(stream, encoding="bytes").load()
    # A damaged file makes the unpickler raise nearly anything.
    except Exception as error:
        raise ValueError(f"{file}: cannot be read as a batch of CIFAR-10: {error}") from error
    named = (
        {k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()} if isinstance(content, dict) else {}
    )
    data, labels = named.get("data"), named.get("labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIZE * SIZE:
        raise ValueError(f"{file}: expected 'data' of (N, {3 * SIZE * SIZE}) uint8, got {_describe(data)}")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise ValueError(f"{file}: expected 'labels', a list of {len(data)}, got {_describe(labels)}")
    wrong = [v for v in labels if not isinstance(v, int) or not 0 <= v < CLASSES]
    if wrong:
        raise ValueError(f"{file}: expected labels of 0 to {CLASSES - 1}, got {wrong[0]!r}")
    return torch.from_numpy(data.copy()).view(-1, 3, SIZE, SIZE), torch.tensor(labels, dtype=torch.int64)


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype}"
    return f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__
