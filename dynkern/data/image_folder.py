"""Images in one folder per class."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp", ".gif", ".tif", ".tiff"})


def read_image_folder(folder: str | os.PathLike[str], size: int | None = None) -> tuple[Tensor, Tensor, list[str]]:
    """Read ``folder/<class>/<image>``; classes are numbered in the order of their names, images sorted by name.

    Args:
        folder: has one folder per class, each with at least one image; other files are ignored.
        size: the shorter side is scaled to it and the middle cut out, size x size; by default all images must be of
            one size already.

    Returns:
        Images (N, 3, H, W) uint8, RGB; labels (N,) int64; the names of the classes.

    Raises:
        FileNotFoundError: there is no such folder, or no folder of a class in it.
        ValueError: a class has no image, an image cannot be decoded, or is of another size than the first one.
        ImportError: pillow is missing.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size: expected an integer of 1 or more, or None, got {size!r}")
    folder = Path(folder)
    classes = sorted(f for f in folder.iterdir() if f.is_dir()) if folder.is_dir() else []
    if not classes:
        raise FileNotFoundError(f"folder: expected a folder with one folder per class, got {folder}")
    files: list[Path] = []
    labels: list[int] = []
    for label, place in enumerate(classes):
        found = sorted(f for f in place.iterdir() if f.suffix.lower() in ENDINGS)
        if not found:
            raise ValueError(f"folder: expected at least one image of each class, found none in {place}")
        files += found
        labels += [label] * len(found)
    # Decoders let go of the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        pixels = list(pool.map(lambda file: _decode(file, size), files))
    for file, image in zip(files, pixels, strict=True):
        if image.shape != pixels[0].shape:
            raise ValueError(
                f"{file}: expected {_size(pixels[0])} pixels as {files[0]} has, got {_size(image)}; size= scales them"
            )
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(labels, dtype=torch.int64), [place.name for place in classes]


def _decode(file: Path, size: int | None) -> np.ndarray:
    """(H, W, 3) uint8, RGB."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("decoding images needs pillow: pip install 'dynkern[train]'") from error
    try:
        with Image.open(file) as image:
            rgb = image.convert("RGB")
        return np.asarray(rgb if size is None else ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR))
    # Pillow's decoders raise whatever their format's parser does.
    except Exception as error:
        raise ValueError(f"{file}: the image cannot be decoded: {error}") from error


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
