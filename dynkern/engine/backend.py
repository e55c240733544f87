"""``torch.compile(net, backend="dynkern")``: the engine behind torch's own capture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import SymInt, Tensor, fx, nn

from dynkern.engine.capture import Captured, trace
from dynkern.engine.planner import Planner, Shape, execute
from dynkern.nn.selection import Key


def dynkern(
    graph: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., tuple[Tensor]]:
    """A backend of ``torch.compile``, for inference on the CPU in float32.

    With ``options={"fallback": True}`` torch runs the operators that the engine does not have, as in
    :func:`dynkern.compile`.

    The graph must take one tensor beside the parameters and buffers, and return one: a network without graph breaks.
    It is planned at the first call. Parameters and buffers are copied then, and again when one was replaced or written
    to; writes through ``.data``, and to tensors made in inference mode, are not noticed.

    Raises:
        RuntimeError: gradients are needed: run in ``torch.no_grad()`` or ``torch.inference_mode()``.
        ValueError: the graph has more than one input or result, or (when it is first called) an operator that the
            engine does not have; the message names it and its module. Or an option is unknown.
    """
    fallback = dict(options or {})
    if fallback.keys() - {"fallback"}:
        raise ValueError(f"dynkern backend: expected the option 'fallback' or none, got {sorted(fallback)}")
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in example_inputs):
        raise RuntimeError(
            "dynkern backend: it does not compute gradients; call the network in torch.no_grad() or "
            "torch.inference_mode(), or set requires_grad_(False)"
        )
    return _Graph(graph, bool(fallback.get("fallback", False)))


class _Graph:
    """One graph from Dynamo, called with its placeholders' values in order."""

    def __init__(self, graph: fx.GraphModule, fallback: bool) -> None:
        self.graph, self.fallback = graph, fallback
        placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        examples = [node.meta.get("example_value") for node in placeholders]
        inputs = [i for i, node in enumerate(placeholders) if _is_input(node, examples[i])]
        if len(inputs) != 1:
            names = [str(placeholders[i].target) for i in inputs]
            raise ValueError(f"dynkern backend: expected a graph with one input, got {len(inputs)}: {names}")
        (self.input,) = inputs
        size = examples[self.input].shape[0]
        # Dynamo first compiles for the batch at hand, and for any batch when another one comes.
        self.batch: int | None = None if isinstance(size, SymInt) else int(size)
        sizes = [size.node.expr if isinstance(size, SymInt) else None for size in examples[self.input].shape]
        self.sizes: dict[int, int] = {}  # for each placeholder that is a size, which axis of the input it is that of
        self.names: dict[int, str] = {}  # for each placeholder that is a parameter or the like, its name
        # Placeholders that are numbers of the module (eps, say), which are scalar tensors where sizes are dynamic.
        self.numbers: list[int] = []
        for i, (node, example) in enumerate(zip(placeholders, examples, strict=True)):
            if isinstance(example, Tensor) and example.dim() == 0 and not _is_static(node, example):
                self.numbers.append(i)
            elif isinstance(example, Tensor):
                if i != self.input:
                    self.names[i] = str(node.target)
            elif isinstance(example, SymInt) and example.node.expr in sizes:
                self.sizes[i] = sizes.index(example.node.expr)
            else:
                raise ValueError(f"dynkern backend: expected tensors as inputs, got {node.target} = {example}")
        self.planners: dict[tuple[float, ...], Planner] = {}  # by the numbers
        self.known: list[tuple[Tensor, int]] = []

    def __call__(self, *args: Any) -> tuple[Tensor]:
        x = args[self.input]
        if x.dtype != torch.float32 or x.device.type != "cpu" or x.dim() not in (2, 4):
            raise ValueError(
                "dynkern backend: expected an input (N, C, H, W) or (N, features) of torch.float32 on the CPU, got "
                f"{tuple(x.shape)} of {x.dtype} on {x.device}"
            )
        tensors = [args[i] for i in self.names]
        shape = tuple(x.shape[1:])
        if [(id(t), _version(t)) for t in tensors] != [(id(t), version) for t, version in self.known]:
            before, self.known = self.known, [(tensor, _version(tensor)) for tensor in tensors]
            try:
                for planner in self.planners.values():
                    planner.refresh()
            except Exception:
                self.known = before
                raise
        numbers = tuple(args[i].item() for i in self.numbers)
        if numbers not in self.planners:
            graph = DynamoGraph(self.graph, list(self.names), self.sizes, dict(zip(self.numbers, numbers, strict=True)))
            self.planners[numbers] = Planner(
                partial(self._capture, graph), self._tensors, [(None, shape)], fallback=self.fallback
            )
        return (execute(self.planners[numbers].program((None, shape)), x, torch.get_num_threads()),)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: known[0] for name, known in zip(self.names.values(), self.known, strict=True)}

    def _capture(self, graph: DynamoGraph, key: Key | None, shape: Shape) -> Captured:
        return trace(graph, shape, torch.float32, self._tensors(), self.batch)


class DynamoGraph(nn.Module):
    """A graph as a function of its input and a list of the tensors that are its placeholders ``names``.

    Of the other placeholders ``sizes`` are axes of the input, and ``numbers`` have fixed values.
    """

    def __init__(
        self, graph: fx.GraphModule, names: Sequence[int], sizes: Mapping[int, int], numbers: Mapping[int, float]
    ) -> None:
        super().__init__()
        # No submodule and no parameters: for torch.export the tensors are arguments alone.
        self.run: Callable[..., Any] = _Interpreter(graph).run
        self.names, self.sizes, self.numbers = names, sizes, numbers

    def forward(self, x: Tensor, tensors: list[Tensor]) -> Any:
        """What the graph returns."""
        values: dict[int, Any] = dict(zip(self.names, tensors, strict=True))
        values.update(self.numbers)
        values.update({i: x.shape[axis] for i, axis in self.sizes.items()})
        return self.run(*(values.get(i, x) for i in range(len(values) + 1)))


class _Interpreter(fx.Interpreter):
    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Dynamo has made a tensor of the number.
        if target == "item" and isinstance(args[0], float):
            return args[0]
        return super().call_method(target, args, kwargs)


def _is_input(node: fx.Node, example: Any) -> bool:
    """True for a floating-point tensor, no scalar, that Dynamo does not take for a part of the module."""
    tensor = isinstance(example, Tensor) and example.is_floating_point() and example.dim() > 0
    return tensor and not _is_static(node, example)


def _is_static(node: fx.Node, example: Tensor) -> bool:
    marked = (node.meta.get("tensor_dict") or {}).get("_dynamo_static_input_type") is not None
    return marked or isinstance(example, nn.Parameter)


def _version(tensor: Tensor) -> int:
    """Counts the writes to a tensor; those to one made in inference mode are not counted."""
    return -1 if tensor.is_inference() else tensor._version
