"""The command line: ``python -m dynkern {info,bench,train,pack,tune}``, also installed as ``dynkern``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import dynkern
from dynkern import models, ternary, tune
from dynkern.bench import command
from dynkern.checkpoint import load_checkpoint
from dynkern.info import info
from dynkern.io import save
from dynkern.nn.packed import PackedTernary
from dynkern.train import command as training
from dynkern.usage import UsageError, asked


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for wrong options."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def parser() -> Parser:
    """The options of every command; each sets ``run`` to the function that carries it out."""
    top = Parser(prog="dynkern", description="Dynamic neural networks that are really cheaper at run time.")
    top.add_argument("--version", action="version", version=f"dynkern {dynkern.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="{info,bench,train,pack,tune}")

    about = "show versions, instruction sets, kernels, threads, CUDA and Triton"
    commands.add_parser("info", help=about, description=about).set_defaults(run=_info)

    about = "measure latency against width and against zeros, or check and time a trained network on real images"
    bench = commands.add_parser("bench", help=about, description=about)
    command.add_arguments(bench)
    bench.set_defaults(run=command.run)

    about = "train networks of several widths, or ternary ones, on images"
    training.add_commands(commands.add_parser("train", help=about, description=about))

    about = "make a trained network ternary and save it at 2 bits a weight"
    pack = commands.add_parser("pack", help=about, description=about)
    pack.add_argument("out", metavar="OUT.safetensors", type=Path, help="file to write")
    pack.add_argument("--model", required=True, choices=models.names(), help="the network")
    pack.add_argument("--checkpoint", required=True, type=Path, metavar="FILE", help="its trained weights (torch.save)")
    pack.add_argument(
        "--delta", type=float, default=0.1, help="weights up to this magnitude become 0 (default %(default)s)"
    )
    pack.add_argument(
        "--skip", action="append", default=[], metavar="NAME", help="module to leave as it is; repeatable"
    )
    pack.add_argument(
        "--codec", choices=("2bit", "entropy"), default="2bit", help="how weights are written (default %(default)s)"
    )
    pack.set_defaults(run=_pack)

    about = "measure how the GPU kernels are best cut on the card at hand, and keep that in the user's cache"
    tuning = commands.add_parser("tune", help=about, description=about)
    tune.add_arguments(tuning)
    tuning.set_defaults(run=tune.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0; 1 if dynkern's own outputs were found wrong; 2 for a wrong option or file, after one line on
        stderr; 130 if interrupted.
    """
    try:
        options = parser().parse_args(argv)
        code: int = options.run(options)
        return code
    except UsageError as error:
        print(f"dynkern: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dynkern: interrupted", file=sys.stderr)
        return 130
    except SystemExit as done:  # argparse, after --help and --version
        return int(done.code or 0)


def _info(options: argparse.Namespace) -> int:
    print(info())
    return 0


def _pack(options: argparse.Namespace) -> int:
    if not options.out.parent.is_dir():
        raise UsageError(f"OUT.safetensors: expected a folder that exists, got {options.out.parent}")
    with asked("--checkpoint"):
        model = load_checkpoint(models.build(options.model), options.checkpoint)
    with asked():
        packed = ternary.pack(ternary.ternarize(model, delta=options.delta, skip=options.skip))
        save(packed, options.out, codec=options.codec)
    total = ternary.stats(packed).total
    layers = [layer for layer in packed.modules() if isinstance(layer, PackedTernary)]
    held = sum(layer.weight.nbytes for layer in layers)
    print(f"{options.model}: {len(layers)} ternary layers, {total.weights:,} weights, delta {options.delta:g}")
    print(f"sparsity  {total.sparsity:.2%} zeros")
    print(f"entropy   {total.entropy:.3f} bits per weight")
    print(f"weights   {held:,} bytes ({4 * total.weights / held:.1f} times less than float32)")
    print(f"file      {options.out.stat().st_size:,} bytes, {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
