"""The graph of a network, without an example input."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from dynkern.nn.dynamic import DynamicModule


class _Untraceable(Exception):
    """A module that torch.fx cannot trace."""


class Tracer(fx.Tracer):
    """Takes torch's layers and dynkern's as one node each, and everything else apart."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """True for a layer, False for what is made of layers."""
        return isinstance(m, DynamicModule) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace ``m``, naming it if that fails."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except _Untraceable:
            raise
        except Exception as error:
            raise _Untraceable(f"module {self.path_of_module(m)!r} ({type(m).__name__}): {error}") from error


def trace(model: nn.Module) -> list[fx.Graph]:
    """The graphs of ``model`` in training and in eval mode, the flags of ``forward`` at their defaults.

    Raises:
        ValueError: torch.fx cannot trace ``model``; the message says where. Or ``model`` is a single layer.
    """
    if Tracer().is_leaf_module(model, ""):
        raise ValueError(f"model: nothing to slice: a single {type(model).__name__} has only inputs and outputs")
    # Tracing runs the network's own code on stand-ins for tensors, which may change the network: so on a copy, which
    # shares all tensors.
    shared = {id(t): t for m in model.modules() for t in _tensors(m)}
    try:
        stand_in = copy.deepcopy(model, shared)
    except Exception as error:
        raise ValueError(f"model: expected a module that can be copied, got {type(model).__name__}: {error}") from error
    parameters = inspect.signature(model.forward).parameters.values()
    flags = {p.name: p.default for p in parameters if p.default is not p.empty}
    graphs = []
    for training in (True, False):
        try:
            graphs.append(Tracer().trace(stand_in.train(training), flags or None))
        except Exception as error:
            raise ValueError(
                f"model: expected one that torch.fx can trace (no branches on values, no loops over shapes), "
                f"got {type(model).__name__}: {error}"
            ) from error
    return graphs


def _tensors(module: nn.Module) -> list[Tensor]:
    own = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
    return [t for t in own if isinstance(t, Tensor)]
