"""A network as a graph of ATen operators, for any batch size: what lowering starts from."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from dynkern.nn.batchnorm import SwitchableBatchNorm, filled
from dynkern.nn.selection import Key
from dynkern.subnets.switch import using

# Exporting keeps global state in torch, and a network is in eval mode meanwhile.
_exporting = threading.Lock()

# Operators whose result never shares memory with an argument; what writes to it in place changes nothing else.
_FRESH = frozenset(
    (
        *("conv2d", "convolution", "sliced_conv2d", "ternary_conv2d", "linear", "sliced_linear", "ternary_linear"),
        *("batch_norm", "add", "sub", "mul", "div", "cat", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
        *("relu", "relu6", "clamp", "hardtanh", "gelu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh"),
    )
)


@dataclass(frozen=True)
class Captured:
    """One sub-net at one input size.

    Attributes:
        graph: nodes of ATen and dynkern operators, with fake tensors as ``meta["val"]``; nothing is changed in place.
        input, output: the nodes of the network's argument and result, by name.
        sources: for every other placeholder the name of the parameter, buffer or tensor that it stands for.
        lifted: tensors that are neither parameters nor buffers (index sets, say), by name.
    """

    graph: fx.Graph
    input: str
    output: str
    sources: Mapping[str, str]
    lifted: Mapping[str, Tensor]


def capture(net: nn.Module, shape: Sequence[int], dtype: torch.dtype, key: Key | None = None) -> Captured:
    """The graph of ``net`` in eval mode, with sub-net ``key`` selected; ``net`` is as it was afterwards.

    Args:
        net: takes one tensor and returns one.
        shape: of one image or one row of features, without the batch.
        dtype: of the argument.
        key: one of the sub-nets of a slim network, else None.

    Raises:
        ValueError: ``torch.export`` cannot capture ``net``, or ``net`` writes to its buffers.
        RuntimeError: a batch norm has no statistics for the sub-net.
    """
    _check_statistics(net, key)
    with _exporting, _evaluating(net), nullcontext() if key is None else using(net, key):
        exported = _export(net, (_example(shape, dtype),), ({0: Dim("batch")},))
    if not exported.call_spec.out_spec.is_leaf():
        raise ValueError(f"net: expected a network that returns one tensor, got {exported.call_spec.out_spec}")
    return _captured(exported)


def trace(
    graph: nn.Module, shape: Sequence[int], dtype: torch.dtype, tensors: Mapping[str, Tensor], batch: int | None = None
) -> Captured:
    """The graph of a module whose parameters are arguments: it is called with the input and a list of ``tensors``.

    A ``batch`` says that the module is for that batch size only.
    """
    args = (_example(shape, dtype, batch or 2), list(tensors.values()))
    dynamic = ({0: Dim("batch")}, [None] * len(tensors)) if batch is None else None
    with _exporting:
        return _captured(_export(graph, args, dynamic), tuple(tensors))


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; one that has several names is there under each."""
    return {
        **dict(net.named_parameters(remove_duplicate=False)),
        **dict(net.named_buffers(remove_duplicate=False)),
    }


def _example(shape: Sequence[int], dtype: torch.dtype, batch: int = 2) -> Tensor:
    # Not of one image: torch takes a size of one for a constant.
    return torch.zeros((batch, *shape), dtype=dtype)


def _export(module: nn.Module, args: tuple[Any, ...], dynamic: tuple[Any, ...] | None) -> ExportedProgram:
    with torch.inference_mode(False), torch.no_grad(), fx.traceback.preserve_node_meta():
        try:
            exported = torch.export.export(module, args, dynamic_shapes=dynamic, strict=False)
            if any(_mutates(node) and not _alone(node) for node in exported.graph.nodes):
                _share_dropouts(exported.graph)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    exported = exported.run_decompositions({})
        except Exception as error:
            raise ValueError(
                f"net: torch.export cannot capture {type(module).__name__} for inputs of shape "
                f"{('N', *args[0].shape[1:]) if dynamic else tuple(args[0].shape)}: {error}"
            ) from error
    return exported


def _captured(exported: ExportedProgram, names: Sequence[str] = ()) -> Captured:
    signature = exported.graph_signature
    inputs = [spec.arg.name for spec in signature.input_specs if spec.kind is InputKind.USER_INPUT]
    if len(inputs) != 1 + len(names):
        raise ValueError(f"net: expected a network of one argument, got {len(inputs) - len(names)}")
    outputs = [spec.arg.name for spec in signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    for spec in signature.output_specs:
        # What a network does to its argument is left out: the engine leaves arguments as they are.
        if spec.kind not in (OutputKind.USER_OUTPUT, OutputKind.USER_INPUT_MUTATION):
            raise ValueError(f"net: expected that it changes nothing in eval mode, but it writes to {spec.target!r}")
    if len(outputs) != 1:
        raise ValueError(f"net: expected a network that returns one tensor, got {len(outputs)} outputs")
    sources = dict(zip(inputs[1:], names, strict=True))
    for spec in signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            sources[spec.arg.name] = str(spec.target)
    lifted = {name: value for name, value in exported.constants.items() if isinstance(value, Tensor)}
    return Captured(exported.graph, inputs[0], outputs[0], sources, lifted)


def packet(node: fx.Node) -> str:
    """The name of a node's operator without overload: ``aten.relu``; that of another function is its own."""
    if isinstance(node.target, torch._ops.OpOverload):
        return f"{node.target.namespace}.{node.target._schema.name.split('::')[-1]}"
    return getattr(node.target, "__name__", str(node.target))


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _alone(node: fx.Node) -> bool:
    """True if no other node sees that ``node`` changes its first argument in place."""
    changed = node.args[0] if node.args else None
    if not isinstance(changed, fx.Node) or len(changed.users) != 1 or changed.op != "call_function":
        return False
    # If the argument was itself changed in place, then that has been looked at as well.
    return _mutates(changed) or packet(changed).split(".")[-1] in _FRESH


def _share_dropouts(graph: fx.Graph) -> None:
    """Put in the place of dropouts that do nothing their arguments, which they return; decomposed they would copy."""
    for node in list(graph.nodes):
        if packet(node).endswith("dropout") and not node.args[2] and all(user.op != "output" for user in node.users):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _check_statistics(net: nn.Module, key: Key | None) -> None:
    for name, module in net.named_modules():
        if key is None or not isinstance(module, SwitchableBatchNorm) or key in module.whole:
            continue
        if not filled(module.member(key)):
            raise RuntimeError(
                f"net: batch norm {name!r} has no statistics for sub-net {key!r}: run dynkern.calibrate_bn(net, "
                "loader), or train it"
            )


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    # Flag by flag: what a module's own `train` or `eval` does besides is not for a compiler to set off.
    training = [module for module in net.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
