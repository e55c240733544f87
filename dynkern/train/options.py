"""Options of the command line that all kinds of training share."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dynkern.data import Images, Stream, load_images
from dynkern.train import distributed
from dynkern.train.recipe import PRECISIONS, Recipe
from dynkern.usage import UsageError, asked


def add_arguments(parser: argparse.ArgumentParser, defaults: Recipe, batch: int) -> None:
    """Data, folder, recipe and machine."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the images; see docs/training.md")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoints, networks and results")
    parser.add_argument(
        "--epochs", type=int, default=defaults.epochs, help="passes over the images (default %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=batch, metavar="N", help="images per step (default %(default)s)")
    parser.add_argument("--lr", type=float, default=defaults.lr, help="the largest learning rate (default %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="same seed, same weights (default %(default)s)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default=defaults.precision, help="autocast, or not (default %(default)s)"
    )
    parser.add_argument("--images", type=int, metavar="N", help="only the first images of each split (default: all)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the CPU (default: all)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to train (default %(default)s)"
    )


def recipe(options: argparse.Namespace, defaults: Recipe) -> Recipe:
    """``defaults`` with what was asked for."""
    with asked():
        return replace(defaults, epochs=options.epochs, lr=options.lr, seed=options.seed, precision=options.precision)


def images(options: argparse.Namespace) -> tuple[Images, Images]:
    """The training and the test images."""
    if options.images is not None and options.images < 1:
        raise UsageError(f"--images: expected 1 or more, got {options.images}")
    with asked("--data"):
        splits = (load_images(options.data, split) for split in ("train", "test"))
        train, test = (s if options.images is None else s.first(options.images) for s in splits)
        return train, test


@dataclass(frozen=True)
class Place:
    """Where a run happens: its device, and which of how many processes this is."""

    device: torch.device
    rank: int = 0
    processes: int = 1

    def stream(self, data: Images, batch: int, seed: int) -> Stream:
        """The part of every batch that this process takes."""
        return Stream(data, batch, seed=seed, rank=self.rank, processes=self.processes)


def prepare(options: argparse.Namespace) -> Place:
    """Make the folder, set the threads, find the device, and meet the other processes of ``torchrun``."""
    with asked("--out"):
        options.out.mkdir(parents=True, exist_ok=True)
    if options.threads is not None:
        if options.threads < 1:
            raise UsageError(f"--threads: expected 1 or more, got {options.threads}")
        torch.set_num_threads(options.threads)
    rank, processes = distributed.start()
    name = options.device
    if name == "cuda" and processes > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    with asked("--device"):
        device = torch.device(name)
        torch.empty(0, device=device)
    return Place(device, rank, processes)
