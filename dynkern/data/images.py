"""A data set in memory, whatever it is stored as; decoded once, then kept."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dynkern import tensorfile
from dynkern.data import python_batches
from dynkern.data.cifar import load_cifar10
from dynkern.data.image_folder import read_image_folder
from dynkern.files import cache_folder

SPLITS = ("train", "test")
_KIND = "images"


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        images: (N, 3, H, W) uint8, RGB.
        labels: (N,) int64, from 0.
        classes: how many classes there are.
    """

    images: Tensor
    labels: Tensor
    classes: int

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.shape[1] != 3:
            raise ValueError(f"images: expected (N, 3, H, W) uint8, got {tuple(self.images.shape)} {self.images.dtype}")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels: expected ({len(self.images)},) int64, got {tuple(self.labels.shape)} {self.labels.dtype}"
            )
        if len(self.labels) == 0:
            raise ValueError("images: expected at least one, got none")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= self.classes:
            raise ValueError(
                f"labels: expected 0 to {self.classes - 1}, got {int(self.labels.min())} to {int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> Images:
        """The first ``count`` images, or all if there are fewer."""
        return Images(self.images[:count], self.labels[:count], self.classes)


def load_images(
    folder: str | os.PathLike[str], split: str = "train", *, size: int | None = None, cache: bool = True
) -> Images:
    """Read one split of a data set.

    ``folder`` holds ``train.parquet`` and ``test.parquet`` (CIFAR-10, see :func:`load_cifar10`); or is, or holds,
    ``cifar-10-batches-py`` (:func:`read_python_batches`); or has ``train`` and ``test`` (or ``val``), each with one
    folder of images per class (:func:`read_image_folder`).

    Args:
        folder: where the data set is.
        split: ``"train"`` or ``"test"``.
        size: of images in folders: they are scaled and cut to size x size.
        cache: keep what was decoded in the user's cache folder (``$DYNKERN_CACHE``, or ``~/.cache/dynkern``), by the
            names, sizes and times of the files, and take it from there the next time.

    Raises:
        FileNotFoundError: there is nothing of these in ``folder``.
        ValueError: ``split`` or ``size`` is out of range, or a file is damaged; the message names it.
        ImportError: pyarrow or pillow is missing.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    folder = Path(folder)
    kept = _cache_file(folder, split, size) if cache and folder.is_dir() else None
    if kept is not None and kept.is_file():
        try:
            return _from_cache(kept)
        except (ValueError, KeyError):  # damaged, or of another version: read the originals again
            kept.unlink(missing_ok=True)
    found = _read(folder, split, size)
    if kept is not None:
        _to_cache(found, kept)
    return found


def _read(folder: Path, split: str, size: int | None) -> Images:
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: expected a folder with images, got {folder}, which is none")
    if any(folder.glob(f"{split}*.parquet")):
        return Images(*load_cifar10(folder, split), 10)
    for place in (folder, folder / python_batches.FOLDER):
        if (place / python_batches.FILES[split][0]).is_file():
            return Images(*python_batches.read_python_batches(place, split), 10)
    for name in (split, "val") if split == "test" else (split,):
        if (folder / name).is_dir():
            images, labels, classes = read_image_folder(folder / name, size)
            return Images(images, labels, len(classes))
    raise FileNotFoundError(
        f"folder: expected {split}.parquet, {python_batches.FOLDER} or a folder {split} with one folder per class in "
        f"{folder}, found none of them"
    )


def _cache_file(folder: Path, split: str, size: int | None) -> Path:
    """Where the decoded split is kept: another name whenever any file of ``folder`` changes."""
    text = hashlib.sha256(f"{folder.resolve()}|{split}|{size}".encode())
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        status = file.stat()
        text.update(f"|{file.relative_to(folder)}:{status.st_size}:{status.st_mtime_ns}".encode())
    return cache_folder() / f"{_KIND}-{text.hexdigest()[:24]}.safetensors"


def _from_cache(file: Path) -> Images:
    tensors, classes = tensorfile.read(file)
    return Images(tensors["images"], tensors["labels"], int(classes))


def _to_cache(found: Images, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        tensorfile.write(file, {"images": found.images, "labels": found.labels}, str(found.classes), _KIND)
    except OSError:  # a full disk or a folder that cannot be written costs only the time to decode again
        file.unlink(missing_ok=True)
