"""What a person sees of a run: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

Record = Mapping[str, Any]


class Progress(Protocol):
    """What :func:`dynkern.train.fit` tells while it runs."""

    def begin(self, epochs: int, steps: int, done: int) -> None:
        """A run of ``epochs`` epochs of ``steps`` steps, ``done`` of them finished before, begins."""

    def step(self, epoch: int, step: int, loss: float, accuracy: float) -> None:
        """So many steps of the epoch are done; loss and accuracy are the means of the epoch so far."""

    def epoch(self, record: Record) -> None:
        """An epoch is done."""

    def end(self) -> None:
        """The run is over, or was broken off."""


class Silent:
    """Tells nothing."""

    def begin(self, epochs: int, steps: int, done: int) -> None: ...

    def step(self, epoch: int, step: int, loss: float, accuracy: float) -> None: ...

    def epoch(self, record: Record) -> None: ...

    def end(self) -> None: ...


class Lines:
    """A line per epoch, and one a minute between; for files and pipes."""

    def __init__(self, name: str = "", stream: TextIO | None = None, every_s: float = 60.0) -> None:
        self._name, self._stream, self._every = f"{name}: " if name else "", stream, every_s

    def begin(self, epochs: int, steps: int, done: int) -> None:
        self._epochs, self._steps, self._first = epochs, steps, done * steps
        self._began = self._last = time.monotonic()

    def step(self, epoch: int, step: int, loss: float, accuracy: float) -> None:
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self._say(f"epoch {epoch}/{self._epochs} step {step}/{self._steps}  loss {loss:.4f}  "
                      f"accuracy {accuracy:.2%}  left {self._left(epoch, step)}")  # fmt: skip

    def epoch(self, record: Record) -> None:
        self._last = time.monotonic()
        self._say(
            f"epoch {record['epoch']}/{self._epochs}  "
            + "  ".join(f"{name} {_shown(name, value)}" for name, value in record.items() if name != "epoch")
            + f"  left {self._left(record['epoch'], self._steps)}"
        )

    def end(self) -> None: ...

    def _left(self, epoch: int, step: int) -> str:
        done = (epoch - 1) * self._steps + step
        rate = (done - self._first) / max(time.monotonic() - self._began, 1e-9)
        return duration((self._epochs * self._steps - done) / rate) if rate > 0 else "?"

    def _say(self, text: str) -> None:
        print(self._name + text, file=self._stream or sys.stderr, flush=True)


class Bar:
    """A bar with loss, accuracy and the time left; needs rich."""

    def __init__(self, name: str = "") -> None:
        from rich import progress
        from rich.console import Console

        self._name, self._console = name, Console(stderr=True)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[told]}"),
            console=self._console,
        )

    def begin(self, epochs: int, steps: int, done: int) -> None:
        self._steps = steps
        self._task = self._bar.add_task(self._name, total=epochs * steps, completed=done * steps, told="")
        self._bar.start()

    def step(self, epoch: int, step: int, loss: float, accuracy: float) -> None:
        told = f"epoch {epoch}  loss {loss:.4f}  accuracy {accuracy:.2%}"
        self._bar.update(self._task, completed=(epoch - 1) * self._steps + step, told=told)

    def epoch(self, record: Record) -> None:
        shown = "  ".join(f"{name} {_shown(name, value)}" for name, value in record.items())
        self._console.print(shown, highlight=False, markup=False)

    def end(self) -> None:
        self._bar.stop()


def progress(name: str = "") -> Progress:
    """A bar if stderr is a terminal and rich is installed, lines otherwise."""
    if sys.stderr.isatty():
        try:
            return Bar(name)
        except ImportError:
            pass
    return Lines(name)


def duration(seconds: float) -> str:
    """``3:07`` or ``1:02:03``."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{whole % 60:02}"


def _shown(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if name == "seconds":
        return f"{value:.1f}"
    return f"{value:.2%}" if "accuracy" in name else f"{value:.4g}"
