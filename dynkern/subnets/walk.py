"""The walk along a network's graph, which takes the channels from every layer and function to the next."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from dynkern.subnets import functions, modules
from dynkern.subnets.flow import Flow
from dynkern.subnets.layout import SCALAR, UNTRACKED, Layout, Untracked, Value, layouts
from dynkern.subnets.tracing import trace


def flow_of(model: nn.Module) -> Flow:
    """The channel flow of ``model``.

    Raises:
        ValueError: ``model`` cannot be traced, or something cannot be sliced consistently; the message names it.
    """
    flow = Flow(model)
    for graph in trace(model):
        _walk(flow, graph)
    flow.settle()
    return flow


def _walk(flow: Flow, graph: fx.Graph) -> None:
    values: dict[fx.Node, Value] = {}
    for node in graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)  # type: ignore[arg-type]
        if node.op == "placeholder":
            values[node] = UNTRACKED
        elif node.op == "get_attr":
            values[node] = _attribute(flow, node.target)
        elif node.op == "output":
            for layout in layouts(args):
                flow.pin(layout.segments, "its channels reach the network's output")
        elif node.op == "call_module":
            values[node] = _call_module(flow, node.target, args, kwargs)
        else:
            values[node] = functions.call(flow, node.target, _describe(node), args, kwargs)


def _attribute(flow: Flow, target: str) -> Value:
    value: Any = flow.model
    for name in target.split("."):
        value = getattr(value, name)
    if not isinstance(value, Tensor):
        return SCALAR
    flow.read[id(value)] = target
    return value


def _call_module(flow: Flow, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    module = flow.model.get_submodule(name)
    where = f"module {name!r} ({type(module).__name__})"
    rule = modules.rule(module)
    if rule is not None and len(args) == 1 and not kwargs and isinstance(args[0], (Layout, Untracked)):
        return rule(flow, name, module, where, args[0])
    return flow.unknown(where, args, kwargs)


def _describe(node: fx.Node) -> str:
    """Name a function in an error message, and the module whose code calls it."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", repr(node.target))
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", None)
    if not path:
        return f"function {name!r} in the model's forward"
    return f"function {name!r} in module {path!r} ({getattr(kind, '__name__', kind)})"
