"""``dynkern train``: one sub-command per kind of training."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dynkern.train import subnets_command, ternary_command


@dataclass(frozen=True)
class Kind:
    """One sub-command.

    Attributes:
        about: what it does, in one line.
        add_arguments: declares its options.
        run: carries it out and returns the exit code.
    """

    about: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


KINDS = {
    "subnets": Kind(
        "train a network of several widths, as in Yang & Fan, ASP-DAC 2021",
        subnets_command.add_arguments,
        subnets_command.run,
    ),
    "ternary": Kind(
        "train ternary networks, one or a sweep, as in Dordoni et al., MLSP 2024",
        ternary_command.add_arguments,
        ternary_command.run,
    ),
}


def add_commands(parser: Any) -> None:
    """The sub-commands of ``dynkern train``."""
    commands = parser.add_subparsers(dest="kind", required=True, metavar="{" + ",".join(KINDS) + "}")
    for name, kind in KINDS.items():
        command = commands.add_parser(name, help=kind.about, description=kind.about)
        kind.add_arguments(command)
        command.set_defaults(run=kind.run)
