"""``dynkern train subnets``: networks of several widths, one or a paper's whole set of experiments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dynkern import models
from dynkern.io import save
from dynkern.subnets import slim
from dynkern.train import options as shared
from dynkern.train import paper000, paper000_report, suite
from dynkern.train.evaluate import accuracies
from dynkern.train.fused import fused
from dynkern.train.loop import Hooks, fit
from dynkern.train.progress import progress
from dynkern.train.recipe import Recipe
from dynkern.usage import asked

DEFAULTS = Recipe()
BATCH = 128
WIDTHS = (0.25, 0.5, 0.75, 1.0)
SUITES = {"paper000": (paper000.jobs, paper000_report.write)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    shared.add_arguments(parser, DEFAULTS, BATCH)
    parser.add_argument("--model", choices=models.names(), default="resnet20", help="the network (default %(default)s)")
    parser.add_argument("--widths", type=_widths, default=WIDTHS, metavar="W,W", help="its widths (default 0.25 to 1)")
    many = parser.add_argument_group("a set of experiments instead")
    many.add_argument("--suite", choices=SUITES, help="all runs of a paper, skipping what is done already")
    many.add_argument("--only", metavar="NAME,NAME", help="only these runs")
    many.add_argument("--list", action="store_true", help="show the runs and how far they are")
    many.add_argument("--report", type=Path, metavar="DIR", help="write tables and plots of what is done there")
    many.add_argument("--teacher", type=Path, metavar="FILE", help="a trained ResNet-32 (torch.save) to begin with")


def run(options: argparse.Namespace) -> int:
    """Train, and save the network with all its sub-nets."""
    recipe = shared.recipe(options, DEFAULTS)
    train, test = shared.images(options)
    place = shared.prepare(options)
    if options.suite is not None:
        return _suite(options, suite.Context(train, test, options.out, recipe, options.batch, place, options.teacher))
    with asked():
        stream = place.stream(train, options.batch, options.seed)
        net = slim(models.build(options.model, num_classes=train.classes), options.widths).to(place.device)

    def after_epoch(epoch: int) -> dict[str, Any]:
        return {f"accuracy {key}": value for key, value in accuracies(net, test).items()}

    with asked():
        fit(
            net,
            stream,
            recipe,
            step=fused(),
            hooks=Hooks(after_epoch=after_epoch),
            checkpoint=options.out / "run.pt",
            progress=progress(options.model) if place.rank == 0 else None,
        )
        save(net, options.out / f"{options.model}.safetensors")
    for key, value in accuracies(net, test).items():
        print(f"{key}: {value:.2%}")
    return 0


def _suite(options: argparse.Namespace, context: suite.Context) -> int:
    make, report = SUITES[options.suite]
    jobs = make()
    with asked():
        if not options.list and options.report is None:
            suite.run(jobs, context, options.only.split(",") if options.only else None)
        if options.report is not None:
            found = {job.name: context.result(job.name) for job in jobs}
            for file in report({name: result for name, result in found.items() if result}, options.report):
                print(f"wrote {file}")
    print(suite.table(jobs, context))
    return 0


def _widths(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None
