"""The state of a run on disk: written whole or not at all after every epoch, and continued from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from dynkern.files import replacing

FORMAT = 1


class Stateful(Protocol):
    """What a run saves besides the network: schedules, masks, whatever changes from epoch to epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, and lists and dictionaries of them."""

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Take back what :meth:`state_dict` gave."""


Part = nn.Module | torch.optim.Optimizer | Stateful


@dataclass(frozen=True)
class Point:
    """Where a run was when it was saved.

    Attributes:
        epoch: how many epochs are done.
        history: a record per epoch.
    """

    epoch: int
    history: list[dict[str, Any]]


def save(
    path: str | os.PathLike[str],
    parts: Mapping[str, Part],
    recipe: Mapping[str, Any],
    history: list[dict[str, Any]],
) -> None:
    """Write the state of ``parts`` after the epoch of the last record of ``history``."""
    state = {name: part.state_dict() for name, part in parts.items()}
    content = {"dynkern_training": FORMAT, "recipe": dict(recipe), "history": history, "parts": state}
    with replacing(path) as temporary:
        torch.save(content, temporary)


def load(
    path: str | os.PathLike[str],
    parts: Mapping[str, Part],
    recipe: Mapping[str, Any],
) -> Point:
    """Bring ``parts`` back to what :func:`save` wrote; nothing in the file is executed.

    Raises:
        ValueError: the file is damaged or no such file, or was written by a run with another recipe or other parts.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or foreign file makes the unpickler raise nearly anything.
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as the state of a run: {error}") from error
    if not isinstance(content, dict) or content.get("dynkern_training") != FORMAT:
        raise ValueError(f"{path}: expected the state of a run, format {FORMAT}, got something else")
    before, now = content["recipe"], dict(recipe)
    changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    if changed:
        told = "; ".join(f"{k} {before.get(k)!r}, now {now.get(k)!r}" for k in changed)
        raise ValueError(f"{path}: was written by a run with another recipe ({told}); continue with that, or remove it")
    if set(content["parts"]) != set(parts):
        raise ValueError(f"{path}: expected the state of {sorted(parts)}, got that of {sorted(content['parts'])}")
    for name, part in parts.items():
        try:
            part.load_state_dict(content["parts"][name])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: the state of {name} does not fit: {error}") from error
    return Point(len(content["history"]), content["history"])
