"""``dynkern train subnets``: fused training of a network of several widths."""

from __future__ import annotations

import argparse
from typing import Any

from dynkern import models
from dynkern.data import Stream
from dynkern.io import save
from dynkern.subnets import slim
from dynkern.train import options as shared
from dynkern.train.evaluate import accuracies
from dynkern.train.fused import fused
from dynkern.train.loop import Hooks, fit
from dynkern.train.progress import progress
from dynkern.train.recipe import Recipe
from dynkern.usage import UsageError, asked

DEFAULTS = Recipe()
BATCH = 128
WIDTHS = (0.25, 0.5, 0.75, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    shared.add_arguments(parser, DEFAULTS, BATCH)
    parser.add_argument("--model", choices=models.names(), default="resnet20", help="the network (default %(default)s)")
    parser.add_argument("--widths", type=_widths, default=WIDTHS, metavar="W,W", help="its widths (default 0.25 to 1)")


def run(options: argparse.Namespace) -> int:
    """Train, and save the network with all its sub-nets."""
    recipe = shared.recipe(options, DEFAULTS)
    train, test = shared.images(options)
    device = shared.prepare(options)
    with asked():
        stream = Stream(train, options.batch, seed=options.seed)
        net = slim(models.build(options.model, num_classes=train.classes), options.widths).to(device)

    def after_epoch(epoch: int) -> dict[str, Any]:
        return {f"accuracy {key}": value for key, value in accuracies(net, test).items()}

    with asked("--out"):
        history = fit(
            net,
            stream,
            recipe,
            step=fused(),
            hooks=Hooks(after_epoch=after_epoch),
            checkpoint=options.out / "run.pt",
            progress=progress(options.model),
        )
        save(net, options.out / f"{options.model}.safetensors")
    print(history[-1])
    return 0


def _widths(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--widths: expected numbers with commas between, got {text!r}") from None
