"""Files that appear whole or not at all, and the folder for those that can be made again."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the name of a new, empty file in the same folder, which takes the place of ``path`` when the block is done.

    An error in the block, or a crash, leaves what was there before. What was written is on the disk afterwards.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield temporary
        temporary.chmod(target.stat().st_mode if target.exists() else mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def cache_folder() -> Path:
    """``$DYNKERN_CACHE``, or ``dynkern`` in the user's cache folder."""
    given = os.environ.get("DYNKERN_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "dynkern"
