"""Named tensors and a text in one safetensors file: written whole or not at all, read with a checksum."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dynkern.files import replacing

FORMAT_VERSION = 1
_KEYS = {"format_version", "dynkern", "net", "crc32"}


def write(path: str | os.PathLike[str], tensors: dict[str, Tensor], net: str, dynkern: str) -> None:
    """Write ``tensors`` and, as metadata, the texts ``net`` and ``dynkern`` (the version that writes).

    The bytes go to a new file in the same folder, which then takes the place of the old one in one step.
    """
    metadata = {"format_version": str(FORMAT_VERSION), "dynkern": dynkern, "net": net}
    metadata["crc32"] = checksum(tensors, metadata)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors and the text ``net`` of a file; ``ValueError`` if :func:`write` did not write it as it is."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"not a whole safetensors file: {error}") from error
    if not metadata.keys() >= _KEYS:
        raise ValueError("a safetensors file, but not one that dynkern.save wrote: it lacks the metadata")
    if metadata["format_version"] != str(FORMAT_VERSION):
        raise ValueError(f"format version {metadata['format_version']}; this dynkern reads version {FORMAT_VERSION}")
    if metadata.pop("crc32") != checksum(tensors, metadata):
        raise ValueError("damaged: its checksum does not match")
    return tensors, metadata["net"]


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 of names, dtypes, shapes, values and metadata; safetensors itself has no guard against flipped bits."""
    crc = 0
    for name in sorted(metadata):
        crc = zlib.crc32(f"{name}={metadata[name]};".encode(), crc)
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode(), crc)
        crc = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def distinct(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor of ``state`` once, on the CPU, and for further names of a tensor the one that it is under.

    Raises ``ValueError`` for what is no dense tensor with values.
    """
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta or value.is_quantized:
            kind = (
                f"{value.layout}, {value.dtype}, {value.device}" if isinstance(value, Tensor) else type(value).__name__
            )
            raise ValueError(f"net: expected dense tensors with values in its state, got {kind} for {name!r}")
        place = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype)
        if value.numel() and place in first:
            tied[name] = first[place]
        else:
            first[place] = name
            # A copy in row-major order: views of one storage would be refused by safetensors.
            tensors[name] = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
    return tensors, tied
