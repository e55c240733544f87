"""CIFAR-10 from parquet files, each row one coded image and its label."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SIZE = 32
CLASSES = 10
# Of ImageNet, per RGB channel on a scale of 0 to 1: what akamaster's CIFAR-10 networks were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def load_cifar10(
    folder: str | os.PathLike[str], split: str = "test", limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """Read one split of CIFAR-10.

    Args:
        folder: holds ``{split}.parquet``, or parts of it as ``{split}-*.parquet``; see :func:`read_parquet`.
        split: ``"train"`` or ``"test"``.
        limit: read only the first images; all by default.

    Returns:
        Images (N, 3, 32, 32) uint8, RGB, and labels (N,) int64 of 0 to 9.

    Raises:
        FileNotFoundError: no such folder, or no such file in it.
        ValueError: ``split`` or ``limit`` is out of range, or a file is damaged; the message names file and row.
        ImportError: pyarrow or pillow is missing.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    _check_limit(limit)
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: expected a folder with {split}.parquet, got {folder}, which is none")
    whole = folder / f"{split}.parquet"
    files = [whole] if whole.is_file() else sorted(folder.glob(f"{split}-*.parquet"))
    if not files:
        raise FileNotFoundError(f"folder: expected {whole.name} or {split}-*.parquet in {folder}, found neither")
    images, labels = [], []
    left = limit
    for file in files:
        if left != 0:
            x, y = read_parquet(file, left)
            images.append(x)
            labels.append(y)
            left = None if left is None else left - len(y)
    return torch.cat(images), torch.cat(labels)


def read_parquet(file: str | os.PathLike[str], limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Read and decode one parquet file of 32x32 images.

    Args:
        file: has the columns ``img.bytes`` (binary, an image in JPEG or PNG code) and ``label`` (integer, 0 to 9);
            others are ignored.
        limit: read only the first rows; all by default.

    Returns:
        Images (N, 3, 32, 32) uint8, RGB, and labels (N,) int64.

    Raises:
        FileNotFoundError: no such file.
        ValueError: ``limit`` is below 1, the file is no parquet file, lacks a column or holds no rows, or a row has no
            label of 0 to 9 or no 32x32 image; the message names file and row (the first row is 0).
        ImportError: pyarrow or pillow is missing.
    """
    _check_limit(limit)
    coded, given = _columns(Path(file))
    coded, given = coded[:limit], given[:limit]
    if not coded:
        raise ValueError(f"{file}: expected at least one row, found none")
    images = np.empty((len(coded), SIZE, SIZE, 3), np.uint8)
    for row, (code, label) in enumerate(zip(coded, given, strict=True)):
        where = f"{file}, row {row}"
        if label is None or not 0 <= label < CLASSES:
            raise ValueError(f"{where}: expected a label of 0 to {CLASSES - 1}, got {label}")
        images[row] = _decode(code, where)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(given, dtype=torch.int64)


def normalize(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) uint8 to float32: ``(image / 255 - mean) / std``, ImageNet's mean and std per channel."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images: expected (N, 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}")
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    return (images / 255 - mean) / std


def batches(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images and labels, ``size`` at a time and in order; the last batch may be smaller.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        size: 1 or more.

    Raises:
        ValueError: ``size`` is below 1, or there are not as many labels as images.
    """
    if size < 1:
        raise ValueError(f"size: expected 1 or more, got {size}")
    if len(images) != len(labels):
        raise ValueError(f"labels: expected as many as images ({len(images)}), got {len(labels)}")
    return ((normalize(x), y) for x, y in zip(images.split(size), labels.split(size), strict=True))


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected 1 or more, or None, got {limit}")


def _columns(file: Path) -> tuple[list[bytes | None], list[int | None]]:
    """The coded images and the labels of ``file``."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"reading {file.name} needs pyarrow: pip install 'dynkern[train]'") from error
    if not file.is_file():
        raise FileNotFoundError(f"file: expected a parquet file, got {file}, which is none")
    try:
        schema = parquet.read_schema(file)
        _check_columns(file, schema)
        table = parquet.read_table(file, columns=["img", "label"])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: cannot be read as a parquet file: {error}") from error
    return table.column("img").combine_chunks().field("bytes").to_pylist(), table.column("label").to_pylist()


def _check_columns(file: Path, schema: Any) -> None:
    from pyarrow import types

    found = {field.name: field.type for field in schema}
    img = found.get("img")
    parts = {field.name: field.type for field in img} if img is not None and types.is_struct(img) else {}
    code = parts.get("bytes")
    if code is None or not (types.is_binary(code) or types.is_large_binary(code)):
        raise ValueError(f"{file}: expected a column img.bytes of coded images, found {_named(found)}")
    if "label" not in found or not types.is_integer(found["label"]):
        raise ValueError(f"{file}: expected a column label of integers, found {_named(found)}")


def _named(found: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in found.items()) or "no column"


def _decode(code: bytes | None, where: str) -> np.ndarray:
    """(32, 32, 3) uint8, RGB."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("decoding images needs pillow: pip install 'dynkern[train]'") from error
    if code is None:
        raise ValueError(f"{where}: expected an image, got none")
    try:
        with Image.open(io.BytesIO(code)) as image:
            size = image.size
            # The size comes from the header: a wrong one is refused before anything is decoded.
            pixels = np.asarray(image.convert("RGB")) if size == (SIZE, SIZE) else None
    # Pillow's decoders raise whatever their format's parser does.
    except Exception as error:
        raise ValueError(f"{where}: the image cannot be decoded: {error}") from error
    if pixels is None:
        raise ValueError(f"{where}: expected an image of {SIZE}x{SIZE} pixels, got {size[0]}x{size[1]}")
    return pixels
