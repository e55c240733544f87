"""One operator of a captured graph that torch computes, because the engine does not have it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import SymInt, Tensor, fx

from dynkern.engine.builder import Constant, Feature, LoweringError
from dynkern.ops.library import log


@dataclass(frozen=True)
class Foreign:
    """A value that only torch computes with: of a shape or dtype that the engine does not have, or no tensor at all."""

    index: int


@dataclass(frozen=True)
class _Slot:
    """The i-th value that a node reads; ``shape`` is that in torch, without the batch, of a value of the engine."""

    index: int
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class _Size:
    """A number that depends on the batch."""

    of_batch: Callable[[int], int]


@dataclass(frozen=True)
class TorchNode:
    """A call of ``function``.

    Attributes:
        name: of the operator.
        where: the module that calls it.
        arguments: positional ones and those by name, in which slots, sizes and constants stand for what they name.
        image: whether the result is a value of the engine: (N, C, H, W) or (N, features) float32.
    """

    name: str
    where: str
    function: Callable[..., Any]
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]]
    image: bool

    def __call__(self, values: Sequence[Any], batch: int) -> Any:
        """The result for what the node reads; a value of the engine is (N, C, H, W) here."""

        def given(argument: Any) -> Any:
            if isinstance(argument, _Slot):
                return _in_torch(values[argument.index], argument.shape)
            if isinstance(argument, _Size):
                return int(argument.of_batch(batch))
            return argument.tensor if isinstance(argument, Constant) else argument

        args, kwargs = fx.node.map_aggregate(self.arguments, given)
        if isinstance(self.function, torch._ops.OpOverload) and self.function._schema.is_mutable:
            # Nobody else reads what it changes, but that may still be the network's argument under another name.
            args = (args[0].clone(), *args[1:])
        y = self.function(*args, **kwargs)
        return y[:, :, None, None] if self.image and y.dim() == 2 else y

    def keeping(self, kept: dict[str, Tensor]) -> TorchNode:
        """The same with copies of its constants, by name out of ``kept`` where they are there."""

        def copied(argument: Any) -> Any:
            if not isinstance(argument, Constant):
                return argument
            if argument.name not in kept:
                kept[argument.name] = argument.tensor.detach().clone()
            return Constant(argument.name, kept[argument.name])

        args, kwargs = fx.node.map_aggregate(self.arguments, copied)
        return replace(self, arguments=(args, dict(kwargs)))


def template(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: Any
) -> tuple[tuple[int, ...], tuple[tuple[Any, ...], Mapping[str, Any]]]:
    """The values that a call reads, and its arguments with slots in their places.

    Raises:
        LoweringError: a size depends on more than the ``batch``.
    """
    reads: list[int] = []

    def slot(operand: Any) -> Any:
        if isinstance(operand, SymInt):
            return _size(operand, batch)
        if not isinstance(operand, (Feature, Foreign)):
            return operand
        reads.append(operand.index)
        return _Slot(len(reads) - 1, operand.shape if isinstance(operand, Feature) else None)

    args, kwargs = fx.node.map_aggregate((args, dict(kwargs)), slot)
    return tuple(reads), (args, kwargs)


@lru_cache(maxsize=256)
def announce(error: str) -> None:
    """Say, once, that torch runs a node; with ``DYNKERN_STRICT=1`` refuse instead."""
    if os.environ.get("DYNKERN_STRICT", "0") not in ("", "0"):
        raise RuntimeError(f"{error}, and DYNKERN_STRICT is set")
    log.warning("engine: %s; torch runs it", error)


def _in_torch(value: Any, shape: tuple[int, ...] | None) -> Any:
    if shape is None:
        return value
    batch, *sizes = value.shape
    if len(shape) == 3 and tuple(sizes) != shape:
        return value.expand(batch, *shape)
    return value.reshape(batch, *shape)


def _size(size: SymInt, batch: Any) -> _Size:
    symbols = {batch.node.expr} if isinstance(batch, SymInt) else set()
    expression = size.node.expr
    if not expression.free_symbols <= symbols:
        raise LoweringError(f"the size {size} does not follow from the batch")
    return _Size(sympy.lambdify(list(symbols), expression))
