"""Reading of trained networks that others saved with ``torch.save``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

# What training scripts name the state dict when they save more than that.
NESTED = ("state_dict", "model")
# A step counter that batch norms only have since PyTorch 0.4.1, and that inference never reads.
OPTIONAL = "num_batches_tracked"
_SHOWN = 8


def load_checkpoint(model: Module, path: str | os.PathLike[str], prefix: str = "module.") -> Module:
    """Load the weights of a file written by ``torch.save`` into ``model``, on whatever device that is.

    The file holds a state dict, or a dict that has one under ``"state_dict"`` or ``"model"``. It is read with
    ``weights_only=True``: nothing in it is executed. The model is changed only if all of it fits.

    Args:
        model: takes the weights, in place.
        path: the file.
        prefix: taken off the front of the names that have it; ``DataParallel`` puts it there.

    Returns:
        ``model``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no such checkpoint, or names or shapes differ; the message lists which.
    """
    path = Path(path)
    return fill(model, read_state(path, prefix), path)


def read_state(path: Path, prefix: str = "module.") -> dict[str, Tensor]:
    """The state dict in the file, without ``prefix``; errors as of :func:`load_checkpoint`."""
    return _strip(_read(path), prefix, path)


def fill(model: Module, found: Mapping[str, Tensor], path: Path) -> Module:
    """Load ``found``, which was read from ``path``, if all of it fits; ``ValueError`` lists what does not."""
    expected = model.state_dict()
    missing = [k for k in expected if k not in found and k.rpartition(".")[2] != OPTIONAL]
    unexpected = [k for k in found if k not in expected]
    shapes = [
        f"{k} (expected {tuple(expected[k].shape)}, got {tuple(found[k].shape)})"
        for k in found
        if k in expected and expected[k].shape != found[k].shape
    ]
    problems = [
        f"{what}: {_list(which)}"
        for what, which in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if which
    ]
    if problems:
        raise ValueError(f"{path}: does not fit {type(model).__name__}; " + "; ".join(problems))
    model.load_state_dict(found, strict=False)
    return model


def _read(path: Path) -> Mapping[str, Tensor]:
    """The state dict in the file."""
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a checkpoint file, got {path}, which is none")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or foreign file makes the unpickler raise nearly anything.
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as a checkpoint of tensors: {error}") from error
    if isinstance(content, Mapping):
        content = next((content[name] for name in NESTED if isinstance(content.get(name), Mapping)), content)
    if not _is_state_dict(content):
        raise ValueError(
            f"{path}: expected a dict of named tensors, alone or under one of {list(NESTED)}, got {_describe(content)}"
        )
    return content


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )


def _describe(content: Any) -> str:
    if not isinstance(content, Mapping):
        return type(content).__name__
    return "a dict of " + (_list([f"{k}: {type(v).__name__}" for k, v in content.items()]) or "nothing")


def _strip(found: Mapping[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
    """The same tensors without ``prefix`` in front of their names."""
    stripped: dict[str, Tensor] = {}
    for key, value in found.items():
        name = key.removeprefix(prefix)
        if name in stripped:
            raise ValueError(f"{path}: holds {name!r} twice, with the prefix {prefix!r} and without")
        stripped[name] = value
    return stripped


def _list(which: list[str]) -> str:
    more = len(which) - _SHOWN
    return ", ".join(which[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
