"""Many runs in one folder: each is done once, in order, and continued where it was broken off."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynkern.bench.machine import facts
from dynkern.data import Images, Stream
from dynkern.files import replacing
from dynkern.train import distributed
from dynkern.train.loop import History, Hooks, fit
from dynkern.train.options import Place
from dynkern.train.progress import Progress, Silent, progress
from dynkern.train.recipe import Recipe
from dynkern.train.steps import LossStep, classify

# Test images that are looked at after each epoch; all of them at the end of a run.
GLANCE = 2000


@dataclass(frozen=True)
class Context:
    """What all runs of a suite have in common.

    Attributes:
        train, test: the images.
        out: the folder, with one folder per run.
        recipe: of a run of full length; the others differ in what they say.
        batch: images per step.
        place: where to train.
        teacher: a trained network of others to begin with, or None.
    """

    train: Images
    test: Images
    out: Path
    recipe: Recipe
    batch: int
    place: Place
    teacher: Path | None = None

    def fit(
        self,
        job: str,
        net: nn.Module,
        recipe: Recipe,
        step: LossStep = classify,
        hooks: Hooks | None = None,
        parts: Mapping[str, Any] | None = None,
    ) -> History:
        """Train ``net`` as run ``job``."""
        return fit(
            net,
            self.stream(recipe.seed),
            recipe,
            step=step,
            hooks=hooks,
            checkpoint=self.file(job, "run.pt"),
            parts=parts,
            progress=self.progress(job),
        )

    @property
    def device(self) -> torch.device:
        """Where networks are."""
        return self.place.device

    def stream(self, seed: int) -> Stream:
        """The batches that this process trains on."""
        return self.place.stream(self.train, self.batch, seed)

    def file(self, job: str, name: str) -> Path:
        """A file of run ``job``."""
        return self.out / job / name

    def result(self, job: str) -> dict[str, Any] | None:
        """What run ``job`` found, or None if it is not done."""
        file = self.file(job, "result.json")
        return json.loads(file.read_text()) if file.is_file() else None

    def progress(self, job: str) -> Progress:
        """What shows how run ``job`` goes."""
        return progress(job) if self.place.rank == 0 else Silent()


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        name: of its folder.
        about: what it is, in one line.
        run: does it, in a folder that is there, and returns what it found: plain values for JSON.
        after: what must be done before.
    """

    name: str
    about: str
    run: Callable[[Context, str], dict[str, Any]]
    after: tuple[str, ...] = ()


def run(jobs: Sequence[Job], context: Context, only: Sequence[str] | None = None) -> list[str]:
    """Do the ``jobs`` that are not done yet, in order, or ``only`` those; returns the names of those done now.

    Raises:
        ValueError: ``only`` names what there is not, or a run needs another that is not done.
    """
    known = {job.name for job in jobs}
    unknown = sorted(set(only or ()) - known)
    if unknown:
        raise ValueError(f"only: expected some of {sorted(known)}, got {unknown}")
    done: list[str] = []
    for job in jobs:
        if context.result(job.name) is not None or (only and job.name not in only):
            continue
        missing = [name for name in job.after if context.result(name) is None]
        if missing:
            raise ValueError(f"{job.name}: expected {missing} to be done before")
        (context.out / job.name).mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        found = job.run(context, job.name)
        found = {"about": job.about, **found, "wall_seconds": time.monotonic() - began, **facts()}
        if context.place.rank == 0:
            with replacing(context.file(job.name, "result.json")) as temporary:
                temporary.write_text(json.dumps(found, indent=1) + "\n")
            for checkpoint in (context.out / job.name).glob("*.pt"):
                checkpoint.unlink()
        distributed.wait(context.place.processes)
        done.append(job.name)
    return done


def table(jobs: Sequence[Job], context: Context) -> str:
    """Which runs there are, and how far they are."""
    rows = []
    for job in jobs:
        begun = context.file(job.name, "run.pt").is_file()
        state = "done" if context.result(job.name) is not None else "begun" if begun else "-"
        rows.append(f"{state:6}{job.name:22} {job.about}")
    return "\n".join(rows)
