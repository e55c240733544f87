"""Data sets in memory: what they are read from, how they are kept, augmented and cut into batches."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import coded, write
from test_data import images as pixels_of

from dynkern import tensorfile
from dynkern.data import Augment, Images, Stream, load_images, normalize, read_image_folder, read_python_batches


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYNKERN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def python_batches(folder: Path, content: Any = None, count: int = 4) -> Path:
    """A folder as torchvision downloads it, with ``count`` images in each file."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        data = pixels_of(count, seed=i).transpose(0, 3, 1, 2).reshape(count, -1)
        batch = {b"data": data, b"labels": [(i + k) % 10 for k in range(count)], b"batch_label": b"x"}
        (folder / name).write_bytes(pickle.dumps(batch if content is None else content, protocol=2))
    return folder


def test_python_batches(tmp_path: Path) -> None:
    folder = python_batches(tmp_path / "cifar-10-batches-py")
    x, y = read_python_batches(folder)
    assert x.shape == (20, 3, 32, 32)
    assert np.array_equal(x[4:8].permute(0, 2, 3, 1).numpy(), pixels_of(4, seed=1))
    assert y[4:8].tolist() == [1, 2, 3, 4]
    # Also from the folder that holds it.
    for place in (folder, tmp_path):
        assert torch.equal(load_images(place, "train", cache=False).images, x)
        assert len(load_images(place, "test", cache=False)) == 4


class Evil:
    def __reduce__(self) -> Any:
        return (os.system, ("touch /tmp/should-not-be-here",))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Evil(), "asks for posix.system"),
        ([1, 2], "expected 'data'"),
        ({b"data": np.zeros((2, 5), np.uint8), b"labels": [0, 0]}, "expected 'data'"),
        ({b"data": np.zeros((2, 3072)), b"labels": [0, 0]}, "expected 'data'"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "a list of 2"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}, "labels of 0 to 9, got 10"),
    ],
)
def test_damaged_python_batches(tmp_path: Path, content: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        read_python_batches(python_batches(tmp_path / "c", content))


def test_cut_off_python_batches(tmp_path: Path) -> None:
    folder = python_batches(tmp_path / "c")
    (folder / "data_batch_3").write_bytes((folder / "data_batch_3").read_bytes()[:300])
    with pytest.raises(ValueError, match="data_batch_3"):
        read_python_batches(folder)
    (folder / "data_batch_2").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_2"):
        read_python_batches(folder)
    with pytest.raises(ValueError, match="split"):
        read_python_batches(folder, "val")


def image_folder(folder: Path, size: tuple[int, int] = (6, 4)) -> Path:
    for k, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", size, (40 * k, 10 * i, 0)).save(folder / name / f"{i}.png")
    (folder / "cat" / "notes.txt").write_text("no image")
    return folder


def test_image_folders(tmp_path: Path) -> None:
    x, y, classes = read_image_folder(image_folder(tmp_path / "train"))
    assert classes == ["cat", "dog"]
    assert y.tolist() == [0, 0, 1, 1]
    assert x.shape == (4, 3, 4, 6)
    assert x[3, :, 0, 0].tolist() == [40, 10, 0]
    assert read_image_folder(tmp_path / "train", size=8)[0].shape == (4, 3, 8, 8)
    data = load_images(tmp_path, size=5)
    assert (data.classes, data.images.shape) == (2, (4, 3, 5, 5))
    image_folder(tmp_path / "val")
    assert len(load_images(tmp_path, "test")) == 4


def test_bad_image_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="folder per class"):
        read_image_folder(tmp_path)
    folder = image_folder(tmp_path / "train")
    with pytest.raises(ValueError, match="size"):
        read_image_folder(folder, 0)
    Image.new("RGB", (9, 9)).save(folder / "dog" / "9.png")
    with pytest.raises(ValueError, match=r"9\.png: expected 6x4 pixels"):
        read_image_folder(folder)
    (folder / "dog" / "9.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"9\.png: the image cannot be decoded"):
        read_image_folder(folder)
    (folder / "eel").mkdir()
    with pytest.raises(ValueError, match=r"found none in .*eel"):
        read_image_folder(folder)


def test_decoded_once(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.parquet", [coded(p) for p in pixels_of(3)], [5, 6, 7])
    first = load_images(folder)
    (kept,) = cache.iterdir()
    kept_bytes = kept.read_bytes()
    assert torch.equal(load_images(folder).images, first.images)
    # Damaged: decoded again, and replaced.
    kept.write_bytes(kept_bytes[:-1] + bytes([kept_bytes[-1] ^ 1]))
    assert torch.equal(load_images(folder).images, first.images)
    assert torch.equal(tensorfile.read(kept)[0]["images"], first.images)
    # Another file: another entry.
    write(folder / "train.parquet", [coded(p) for p in pixels_of(2, seed=1)], [1, 2])
    assert load_images(folder).labels.tolist() == [1, 2]
    assert len(list(cache.iterdir())) == 2


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected train\.parquet, cifar-10-batches-py or a folder train"):
        load_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="is none"):
        load_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="split"):
        load_images(tmp_path, "validation")


def test_images_are_checked() -> None:
    x, y = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    for images, labels, classes, named in (
        (x.float(), y, 2, "uint8"),
        (x[:, :1], y, 2, "images"),
        (x, y[:1], 2, "labels"),
        (x, y.int(), 2, "int64"),
        (x, y, 1, "0 to 0"),
        (x[:0], y[:0], 1, "at least one"),
    ):
        with pytest.raises(ValueError, match=named):
            Images(images, labels, classes)


def test_crops_and_mirror_images_are_those_of_the_definition() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (40, 3, 7, 5), dtype=torch.uint8, generator=g)
    augment = Augment(pad=2)
    shifts, mirrored = augment.draw(40, g)
    assert shifts.min() == 0
    assert shifts.max() == 4
    assert 5 < int(mirrored.sum()) < 35
    y = augment.apply(x, shifts, mirrored)
    for i in range(40):
        padded = torch.zeros(3, 11, 9, dtype=torch.uint8)
        padded[:, 2:9, 2:7] = x[i]
        top, left = shifts[i].tolist()
        expected = padded[:, top : top + 7, left : left + 5]
        assert torch.equal(y[i], expected.flip(2) if mirrored[i] else expected)
    shifts, mirrored = Augment(pad=0, flip=False).draw(40, g)
    assert torch.equal(Augment(pad=0, flip=False).apply(x, shifts, mirrored), x)
    with pytest.raises(ValueError, match="pad"):
        Augment(pad=-1)


def data(n: int = 21) -> Images:
    x = torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(n, 3, 4, 4).contiguous()
    return Images(x, torch.arange(n), n)


def test_every_epoch_shuffles_anew_and_repeats_for_its_seed() -> None:
    stream = Stream(data(), batch=4, augment=None, seed=3)
    assert stream.steps == 5
    orders = [torch.cat([y for _, y in stream.epoch(e)]).tolist() for e in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert len(set(orders[0])) == 20
    assert torch.cat([y for _, y in Stream(data(), 4, None, seed=4).epoch(1)]).tolist() != orders[0]
    for x, y in stream.epoch(1):
        assert torch.equal(x, normalize(data().images[y]))


def test_processes_share_a_batch() -> None:
    together = list(Stream(data(), batch=6, seed=1).epoch(2))
    parts = [list(Stream(data(), batch=6, seed=1, rank=r, processes=3).epoch(2)) for r in range(3)]
    for i, (x, y) in enumerate(together):
        assert torch.equal(torch.cat([p[i][0] for p in parts]), x)
        assert torch.equal(torch.cat([p[i][1] for p in parts]), y)


def test_bad_streams() -> None:
    for change, named in (
        ({"batch": 0}, "batch"),
        ({"batch": 22}, "1 to 21"),
        ({"batch": 5, "processes": 2}, "multiple of 2"),
        ({"batch": 4, "processes": 2, "rank": 2}, "rank"),
    ):
        with pytest.raises(ValueError, match=named):
            Stream(data(), **change)
