"""``dynkern train ternary``: one run, or a sweep over regimes, growths and seeds, with its plots."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from dynkern.ternary import Growth
from dynkern.train import options as shared
from dynkern.train import suite, ternary_plots, ternary_runs
from dynkern.train.recipe import Recipe
from dynkern.train.ternary import (
    CLIPPED,
    FLOAT,
    GROWTHS,
    OTHERS,
    PAPER_EPOCHS,
    REGIMES,
    Regime,
    cap_epoch,
    learning_rates,
)
from dynkern.train.ternary_runs import Run
from dynkern.usage import UsageError, asked

# Section 4.1 of the paper, with the optimiser of the code that it builds on (and, like that, without weight decay).
DEFAULTS = Recipe(epochs=PAPER_EPOCHS, lr=5e-3, optimizer="adam", weight_decay=0.0)
BATCH = 256
INFLATE = 5
DELTA0, CAP = 0.1, 0.9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    shared.add_arguments(parser, DEFAULTS, BATCH)
    parser.add_argument(
        "--regime",
        type=_names,
        default=["log"],
        metavar="NAME,NAME",
        help="how the weights become ternary, one run each, in this order: the growth of the threshold "
        f"({', '.join(GROWTHS)}), another ternariser ({', '.join(OTHERS)}), or float",
    )
    parser.add_argument(
        "--inflate",
        type=int,
        default=INFLATE,
        metavar="N",
        help="channels are 16, 32, 64 times N (default %(default)s)",
    )
    parser.add_argument(
        "--delta0", type=_numbers, default=[DELTA0], metavar="D,D", help=f"the first threshold (default {DELTA0})"
    )
    parser.add_argument("--cap", type=_numbers, default=[CAP], metavar="C,C", help=f"the last one (default {CAP})")
    parser.add_argument(
        "--schedule",
        choices=("paper", "one_cycle"),
        default="paper",
        help="learning rates: the paper's steps, faster in a shorter run, or up and down along a cosine, which gives "
        "more accuracy for few epochs (default %(default)s)",
    )
    growth = parser.add_mutually_exclusive_group()
    growth.add_argument("--m", type=_numbers, metavar="M,M", help="how fast it grows, M of equation 6")
    growth.add_argument(
        "--cap-epoch",
        type=int,
        metavar="E",
        help="instead of M: the epoch in which the threshold reaches its cap (default: as the paper's log regime, "
        "which gets there in epoch 68 while the rate still is the first one)",
    )
    parser.add_argument(
        "--spread",
        type=float,
        metavar="S",
        help="of those that clip: latent weights start evenly spread over +-S (default: as in a network of floats)",
    )
    parser.add_argument(
        "--float-lr", type=float, metavar="LR", help="the largest learning rate of full precision (default: --lr)"
    )
    parser.add_argument("--list", action="store_true", help="show the runs, how far they are, and their thresholds")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="runs of each kind, with seeds one apart")


def run(options: argparse.Namespace) -> int:
    """Carry out every run that is not finished, then draw all of them."""
    recipe = shared.recipe(options, DEFAULTS)
    with asked():
        wanted = list(runs(options, recipe))
    train, test = shared.images(options)
    place = shared.prepare(options)
    context = suite.Context(train, test, options.out, recipe, options.batch, place)
    jobs = [each.job() for each in wanted]
    if options.list:
        print(suite.table(jobs, context))
        for each in wanted:
            if each.regime.growth is not None:
                deltas = each.regime.growth.table(options.epochs)
                print(f"delta of {each.name}:", *(f"{delta:.3g}" for delta in deltas))
        return 0
    with asked("--out"):
        ternary_runs.check(wanted, context)
    for job in jobs:
        with asked():
            new = suite.run([job], context)
        if place.rank:
            continue
        print(summary(context.result(job.name) or {}), flush=True)
        if new or job is jobs[-1]:
            done = [found for each in jobs if (found := context.result(each.name)) is not None]
            for file in ternary_plots.draw(done, options.out):
                print(f"wrote {file}", file=sys.stderr)
    return 0


def runs(options: argparse.Namespace, recipe: Recipe) -> Iterator[Run]:
    """One run for each regime, growth and seed."""
    if options.repeats < 1:
        raise UsageError(f"--repeats: expected 1 or more, got {options.repeats}")
    if options.inflate < 1:
        raise UsageError(f"--inflate: expected 1 or more, got {options.inflate}")
    for name in options.regime:
        for growth in _growths(name, options):
            for seed in range(recipe.seed, recipe.seed + options.repeats):
                regime = Regime(name, growth, options.spread if name in CLIPPED else None)
                yield Run(regime, _with_rates(replace(recipe, seed=seed), name, options), options.inflate)


def summary(result: dict[str, Any]) -> str:
    """One line."""
    parts = [result["name"], f"accuracy {result['accuracy']:.2%}"]
    if "sparsity" in result:
        parts += [f"zeros {result['sparsity']:.2%}", f"{result['entropy']:.3f} bits/weight"]
        parts += [f"packed answers alike on {result['agree']['packed']} of {result['run']['test_images']}"]
    parts += [f"best epoch {result['best_epoch']}", f"{result['seconds']:.0f} s"]
    return "  ".join(parts)


def _with_rates(recipe: Recipe, name: str, options: argparse.Namespace) -> Recipe:
    lr = options.lr if name != FLOAT or options.float_lr is None else options.float_lr
    return replace(
        recipe, lr=lr, schedule=learning_rates(lr, options.epochs) if options.schedule == "paper" else "one_cycle"
    )


def _growths(name: str, options: argparse.Namespace) -> Iterator[Growth | None]:
    if name not in GROWTHS:
        yield None
        return
    for delta0 in options.delta0:
        if name == "fixed":
            yield Growth("fixed", delta0, cap=max(delta0, CAP))
            continue
        for cap in options.cap:
            if options.m is None and options.cap_epoch is None and options.epochs >= PAPER_EPOCHS:
                yield Growth(name, delta0, cap=cap)
            elif options.m is None:
                yield Growth.reaching(name, options.cap_epoch or cap_epoch(options.epochs), delta0, cap)
            else:
                yield from (Growth(name, delta0, m, cap) for m in options.m)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in REGIMES]:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(REGIMES)}, got {unknown[0]!r}")
    return list(dict.fromkeys(names))


def _numbers(text: str) -> list[float]:
    try:
        return list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None
