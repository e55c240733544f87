"""Errors of the person at the command line, told from errors of the program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """What was asked for cannot be done; the message is one line and says why."""


@contextmanager
def asked(what: str = "") -> Iterator[None]:
    """Turn what is raised inside, where files and options of the user are read, into a :class:`UsageError`.

    ``what`` is put in front of the message. Only such steps belong inside: elsewhere an error is a bug, and its
    traceback is wanted.
    """
    try:
        yield
    except (ValueError, TypeError, RuntimeError, OSError, ImportError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{what}: {text}" if what else text) from error
