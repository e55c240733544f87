from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from dynkern.data import batches, load_cifar10, normalize, read_parquet


def coded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def write(file: Path, codes: list[Any], labels: list[Any]) -> Path:
    rows = [None if code is None else {"bytes": code, "path": "x.png"} for code in codes]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    parquet.write_table(pa.table({"img": pa.array(rows, kind), "label": pa.array(labels, pa.int64())}), file)
    return file


def test_images_and_labels_come_back(tmp_path: Path) -> None:
    pixels = images(5)
    write(tmp_path / "test.parquet", [coded(p) for p in pixels], [3, 1, 4, 1, 9])
    x, y = load_cifar10(tmp_path)
    assert x.dtype == torch.uint8
    assert y.dtype == torch.int64
    assert x.is_contiguous()
    assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), pixels)
    assert y.tolist() == [3, 1, 4, 1, 9]


def test_split_and_limit(tmp_path: Path) -> None:
    pixels = images(3)
    write(tmp_path / "test.parquet", [coded(pixels[0])], [0])
    write(tmp_path / "train.parquet", [coded(p) for p in pixels], [5, 6, 7])
    assert load_cifar10(tmp_path)[1].tolist() == [0]
    assert load_cifar10(tmp_path, "train")[1].tolist() == [5, 6, 7]
    x, y = load_cifar10(str(tmp_path), "train", limit=2)
    assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), pixels[:2])
    assert y.tolist() == [5, 6]
    assert len(load_cifar10(tmp_path, "train", limit=9)[1]) == 3


def test_a_split_in_parts(tmp_path: Path) -> None:
    pixels = images(4)
    write(tmp_path / "train-00001-of-00002.parquet", [coded(p) for p in pixels[2:]], [2, 3])
    write(tmp_path / "train-00000-of-00002.parquet", [coded(p) for p in pixels[:2]], [0, 1])
    x, y = load_cifar10(tmp_path, "train")
    assert y.tolist() == [0, 1, 2, 3]
    assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), pixels)
    assert load_cifar10(tmp_path, "train", limit=2)[1].tolist() == [0, 1]
    assert load_cifar10(tmp_path, "train", limit=3)[1].tolist() == [0, 1, 2]


def test_jpeg_and_grey_images(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None, None] * 7, (32, 32, 3)).copy()
    x, _ = read_parquet(write(tmp_path / "a.parquet", [coded(smooth, "JPEG"), coded(smooth[..., 0])], [0, 0]))
    # A smooth image survives JPEG to a few grey levels; a grey one has three equal channels.
    assert np.abs(x[0].permute(1, 2, 0).numpy().astype(int) - smooth).max() <= 8
    assert np.array_equal(x[1].permute(1, 2, 0).numpy(), smooth)


def test_normalize() -> None:
    x = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(2, 3, 4, 3)
    y = normalize(x)
    assert y.dtype == torch.float32
    assert y.shape == x.shape
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = torch.tensor([(v / 255 - mean) / std for v in (0, 128, 255)])
        assert torch.allclose(y[1, channel, 2], expected, rtol=4 * torch.finfo().eps, atol=4 * torch.finfo().eps)


def test_batches() -> None:
    x, y = torch.from_numpy(images(7)).permute(0, 3, 1, 2), torch.arange(7)
    parts = list(batches(x, y, 3))
    assert [len(b) for _, b in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([a for a, _ in parts]), normalize(x))
    assert torch.cat([b for _, b in parts]).tolist() == list(range(7))


@pytest.mark.parametrize("bad", [torch.zeros(1, 3, 4, 4), torch.zeros(3, 4, 4).byte(), torch.zeros(1, 1, 4, 4).byte()])
def test_normalize_refuses(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"images: expected \(N, 3, H, W\) uint8, got"):
        normalize(bad)


def test_batches_refuses() -> None:
    x = torch.zeros(2, 3, 4, 4).byte()
    with pytest.raises(ValueError, match="size: expected 1 or more, got 0"):
        batches(x, torch.zeros(2), 0)
    with pytest.raises(ValueError, match=r"labels: expected as many as images \(2\), got 3"):
        batches(x, torch.zeros(3), 1)


def test_missing_folder_and_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"folder: expected a folder with test.parquet, got .*nowhere"):
        load_cifar10(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"folder: expected train.parquet or train-\*.parquet in "):
        load_cifar10(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="file: expected a parquet file, got"):
        read_parquet(tmp_path / "no.parquet")


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split: expected 'train' or 'test', got 'val'"):
        load_cifar10(tmp_path, "val")
    for limit in (0, -1):
        with pytest.raises(ValueError, match=f"limit: expected 1 or more, or None, got {limit}"):
            load_cifar10(tmp_path, limit=limit)


@pytest.mark.parametrize("content", [b"", b"not a parquet file at all"])
def test_a_foreign_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "test.parquet"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"test.parquet: cannot be read as a parquet file"):
        read_parquet(file)


def test_a_truncated_file(tmp_path: Path) -> None:
    file = write(tmp_path / "test.parquet", [coded(p) for p in images(4)], [0] * 4)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"test.parquet: cannot be read as a parquet file"):
        read_parquet(file)


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.parquet: expected at least one row, found none"):
        read_parquet(write(tmp_path / "a.parquet", [], []))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [1]}, "expected a column img.bytes of coded images, found label: int64"),
        ({"img": [b"x"], "label": [1]}, "expected a column img.bytes of coded images, found img: binary, label: int64"),
        ({"img": [{"path": "x"}], "label": [1]}, "expected a column img.bytes of coded images, found"),
        ({"img": [{"bytes": "text"}], "label": [1]}, "expected a column img.bytes of coded images, found"),
        ({"img": [{"bytes": b"x"}]}, "expected a column label of integers, found img: struct<bytes: binary>"),
        ({"img": [{"bytes": b"x"}], "label": ["1"]}, "expected a column label of integers, found"),
        ({"img": [{"bytes": b"x"}], "label": [1.0]}, "expected a column label of integers, found"),
    ],
)
def test_wrong_columns(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table(columns), file)
    with pytest.raises(ValueError, match=r"a.parquet: " + message):
        read_parquet(file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda code: None, "expected an image, got none"),
        (lambda code: b"", "the image cannot be decoded"),
        (lambda code: b"\xff\xd8\xff nonsense", "the image cannot be decoded"),
        (lambda code: code[: len(code) // 2], "the image cannot be decoded"),
        (lambda code: coded(np.zeros((32, 31, 3), np.uint8)), "expected an image of 32x32 pixels, got 31x32"),
        (lambda code: coded(np.zeros((64, 64, 3), np.uint8)), "expected an image of 32x32 pixels, got 64x64"),
    ],
)
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_bad_image(tmp_path: Path, form: str, spoil: Callable[[bytes], bytes | None], message: str) -> None:
    codes: list[bytes | None] = [coded(p, form) for p in images(4)]
    codes[2] = spoil(codes[2] or b"")
    with pytest.raises(ValueError, match=r"a.parquet, row 2: " + message):
        read_parquet(write(tmp_path / "a.parquet", codes, [0] * 4))


def test_an_image_without_bytes(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary())])
    table = pa.table({"img": pa.array([{"bytes": None}], kind), "label": [0]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet, row 0: expected an image, got none"):
        read_parquet(tmp_path / "a.parquet")


@pytest.mark.parametrize("label", [-1, 10, None])
def test_a_bad_label(tmp_path: Path, label: int | None) -> None:
    codes = [coded(p) for p in images(2)]
    with pytest.raises(ValueError, match=rf"a.parquet, row 1: expected a label of 0 to 9, got {label}"):
        read_parquet(write(tmp_path / "a.parquet", codes, [0, label]))


@pytest.mark.parametrize("module", ["pyarrow", "PIL"])
def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    file = write(tmp_path / "a.parquet", [coded(images(1)[0])], [0])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'dynkern\[train\]'"):
        read_parquet(file)


@pytest.mark.shared_data
def test_the_test_images(shared_data: Path) -> None:
    x, y = load_cifar10(shared_data / "data" / "cifar10")
    assert x.shape == (10_000, 3, 32, 32)
    assert y.bincount().tolist() == [1000] * 10
    # Known of CIFAR-10: the mean per channel, on a scale of 0 to 1.
    means = (x / 255).double().mean((0, 2, 3))
    assert torch.allclose(means, torch.tensor([0.494, 0.485, 0.450], dtype=torch.float64), atol=2e-3)
