"""A whole network as one native plan for each sub-net, on one store of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynkern.engine.capture import Captured, capture, tensors_of
from dynkern.engine.lower import Lowered
from dynkern.engine.planner import Planner, Shape, execute
from dynkern.engine.ranges import Ranges, ranges_of
from dynkern.nn.selection import Key, Selection
from dynkern.subnets.switch import selection_of, selections


def compile(
    net: nn.Module,
    example_input: Tensor,
    threads: int | None = None,
    *,
    int8: bool | Ranges = False,
    int16: bool | Ranges = False,
    fallback: bool = False,
) -> Compiled:
    """Compile ``net`` for inference on the CPU: ``run = compile(net, x)``, then ``run(x)`` or ``run(x, subnet=0.25)``.

    Convolutions, batch norms, activations and additions are fused, per sub-net; every call is one native call. The
    engine has copies of the weights: ``net`` is not changed, and may be afterwards (see :meth:`Compiled.refresh`).

    Args:
        net: takes one float32 tensor and returns one; plain, slim (:func:`dynkern.slim`), packed ternary
            (:func:`dynkern.pack`), or both. It is compiled as it is in eval mode.
        example_input: (N, C, H, W) or (N, features) float32 on the CPU. Any batch size will do then; another height or
            width is planned when it first comes.
        threads: how many each call uses; those of ``torch.get_num_threads()`` at the call by default.
        int8: compute convolutions in integers of 8 bits, with these ranges of activations, or (True) with those that
            :func:`dynkern.quantize.calibrate` measured last on ``net``. Weights are symmetric with a scale for each
            output channel (ternary ones stay as they are), activations have a scale and a zero point each, for each
            sub-net. What else there is (grouped convolutions, linear layers, pooling) stays in float32.
        int16: the same with integers of 16 bits; ternary layers stay in float32.
        fallback: torch runs an operator that the engine does not have, between native programs, with its own threads.
            A line in the log names it once, and ``describe()`` shows it; with ``DYNKERN_STRICT=1`` it is an error.

    Returns:
        The engine, with every sub-net planned.

    Raises:
        ValueError: ``net`` has an operator that the engine does not have (it is named, with its module), without
            ``fallback``; or cannot be captured by ``torch.export``, or an argument is out of range; or integers are
            asked for without ranges, with those of another network, or of both kinds.
        TypeError: an argument is of another type.
        RuntimeError: a sub-net has no batch norm statistics; or torch would run an operator, and ``DYNKERN_STRICT`` is
            set.
    """
    return Compiled(net, example_input, threads, int8, int16, fallback)


@dataclass(frozen=True)
class Description:
    """What runs for one sub-net at one input size; ``print`` shows it as a table.

    Attributes:
        subnet: its name; None for a plain network.
        shape: of one input.
        steps: in the order they run: what runs, the values it reads and writes, the shape of its result.
        weight_bytes: of the weights that all sub-nets share.
        constant_bytes: of what this sub-net has for itself: folded batch norms, biases, offsets.
        arena_bytes: of activations and working memory while one call runs.
    """

    subnet: Key | None
    shape: Shape
    steps: list[dict[str, Any]]
    weight_bytes: int
    constant_bytes: int
    arena_bytes: int

    def __str__(self) -> str:
        rows = [f"sub-net {self.subnet}, input {self.shape}"] if self.subnet is not None else [f"input {self.shape}"]
        for i, step in enumerate(self.steps):
            reads = ", ".join(f"%{v}" for v in step["reads"])
            rows.append(f"{i:3}  %{step['writes']} = {step['step']} ({reads}) -> {tuple(step['shape'])}")
        rows.append(
            f"weights {self.weight_bytes:,} bytes (of all sub-nets), constants {self.constant_bytes:,} bytes, "
            f"arena {self.arena_bytes:,} bytes"
        )
        return "\n".join(rows)


class Compiled:
    """A compiled network; see :func:`compile`. Several threads may run it at once, also with different sub-nets.

    Attributes:
        net: what was compiled.
        subnets: the names of its sub-nets; none for a plain network.
        threads: how many each call uses; None for torch's number.
    """

    def __init__(
        self,
        net: nn.Module,
        example_input: Tensor,
        threads: int | None = None,
        int8: bool | Ranges = False,
        int16: bool | Ranges = False,
        fallback: bool = False,
    ) -> None:
        if not isinstance(net, nn.Module):
            raise TypeError(f"net: expected a module, got {type(net).__name__}")
        self.threads = _check_threads(threads)
        _check_input("example_input", example_input)
        self.net = net
        self.shape: Shape = tuple(example_input.shape[1:])
        slim = any(True for _ in selections(net))
        self._selection = Selection(selection_of(net).keys) if slim else None
        self.subnets: tuple[Key, ...] = self._selection.keys if self._selection is not None else ()
        widths = [key for key in self.subnets if not isinstance(key, str)]
        self._current: Key | None = max(widths) if widths else self.subnets[-1] if self.subnets else None
        wanted = [(key, self.shape) for key in self.subnets or (None,)]
        self._ranges = {8: ranges_of(net, int8, "int8"), 16: ranges_of(net, int16, "int16")}
        if self._ranges[8] is not None and self._ranges[16] is not None:
            raise ValueError("int8, int16: expected at most one of them, got both")
        self._planner = Planner(self._capture, lambda: tensors_of(net), wanted, self._quantized, bool(fallback))

    def __call__(self, x: Tensor, subnet: Key | None = None) -> Tensor:
        """The network's result.

        Args:
            x: (N, C, H, W) or (N, features) float32 on the CPU, any strides; C as in the example.
            subnet: one of :attr:`subnets`; by default the one that :meth:`select` chose, at first the greatest width,
                or the last sub-net where none is uniform.

        Returns:
            A new tensor of what ``net`` returns in eval mode, up to float32 rounding.

        Raises:
            ValueError, TypeError: ``x`` or ``subnet`` is not as above.
            RuntimeError: ``x`` needs a gradient, which the engine does not compute.
        """
        key = self._current if subnet is None else subnet
        try:
            program = self._planner.state.programs[key, x.shape[1:]]
            y = None if x.requires_grad else program.run(x, self.threads or torch.get_num_threads())
        except (AttributeError, KeyError, TypeError):
            y = None
        return self._slowly(x, subnet) if y is None else y

    def select(self, subnet: Key) -> None:
        """Choose the sub-net that runs where a call names none; ``ValueError`` if there is none of that name."""
        self._current = self._key(subnet)

    def refresh(self) -> None:
        """Take in the weights, biases and statistics that ``net`` has now; the engine is as it was if that fails.

        Raises:
            ValueError: a parameter or buffer is gone, or of another shape or dtype.
        """
        self._planner.refresh()

    def describe(self, subnet: Key | None = None) -> Description:
        """The steps of a sub-net at the size of the example, and the memory that they use."""
        key = self._key(subnet)
        state = self._planner.state
        program = state.programs[key, self.shape]
        return Description(
            key, self.shape, program.describe(), state.store.nbytes, program.constant_bytes, program.arena_bytes
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the weights and of what each sub-net has for itself, at all sizes planned so far."""
        state = self._planner.state
        kept = sum(tensor.nbytes for tensor in list(state.kept.values()))
        return state.store.nbytes + kept + sum(program.constant_bytes for program in list(state.programs.values()))

    def __repr__(self) -> str:
        subnets = f", subnets={list(self.subnets)}" if self.subnets else ""
        return f"Compiled({type(self.net).__name__}, input={self.shape}{subnets}, threads={self.threads})"

    def _slowly(self, x: Tensor, subnet: Key | None) -> Tensor:
        """A call with something new or wrong."""
        key = self._key(subnet)
        _check_input("x", x)
        shape = tuple(x.shape[1:])
        if len(shape) != len(self.shape) or shape[0] != self.shape[0]:
            expected = f"(N, {self.shape[0]}, H, W)" if len(self.shape) == 3 else f"(N, {self.shape[0]})"
            raise ValueError(f"x: expected shape {expected} as in the example, got {tuple(x.shape)}")
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("x: it needs a gradient, which the engine does not compute; call it in torch.no_grad()")
        return execute(self._planner.program((key, shape)), x, self.threads or torch.get_num_threads())

    def _key(self, subnet: Key | None) -> Key | None:
        if subnet is None:
            return self._current
        if self._selection is None:
            raise ValueError(f"subnet: expected None, since the network is plain, got {subnet!r}")
        return self._selection.check(subnet)

    def _capture(self, key: Key | None, shape: Shape) -> Captured:
        return capture(self.net, shape, torch.float32, key)

    def _quantized(self, key: Key | None, lowered: Lowered) -> Lowered:
        for bits, ranges in self._ranges.items():
            if ranges is not None:
                lowered = ranges.quantized(key, lowered, bits)
        return lowered


def _check_threads(threads: Any) -> int | None:
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int)):
        raise TypeError(f"threads: expected an integer or None, got {type(threads).__name__}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")
    return threads


def _check_input(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.dtype != torch.float32:
        raise TypeError(f"{name}: expected torch.float32, got {x.dtype}")
    if x.device.type != "cpu" or x.layout != torch.strided:
        raise ValueError(f"{name}: expected a dense tensor on the CPU, got {x.layout} on {x.device}")
    if x.dim() not in (2, 4):
        raise ValueError(f"{name}: expected (N, C, H, W) or (N, features), got shape {tuple(x.shape)}")
