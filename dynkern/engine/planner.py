"""The programs of one network on one store of weights: made when first needed, remade when the weights change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dynkern.engine.builder import WeightTensor
from dynkern.engine.capture import Captured
from dynkern.engine.lower import Lowered, lower
from dynkern.engine.native import Program, Store
from dynkern.engine.segments import Segments, program_of
from dynkern.nn.selection import Key

Shape = tuple[int, ...]
Which = tuple[Key | None, Shape]  # a sub-net, and the shape of one input without the batch


@dataclass(frozen=True)
class State:
    """The network at one time.

    Attributes:
        tensors: parameters and buffers by name; vectors are copies, so that plans made later agree with the store.
        store: copies of the weights.
        weights: the names of the weights in the store.
        kept: copies of the tensors that only torch uses, by name; may grow.
        programs: may grow.
    """

    tensors: Mapping[str, Tensor]
    store: Store
    weights: frozenset[str]
    kept: dict[str, Tensor] = field(default_factory=dict)
    programs: dict[Which, Program | Segments] = field(default_factory=dict)


class Planner:
    """Makes programs; any number of threads may use one.

    Args:
        capture: gives the graph of a sub-net at an input shape.
        tensors: gives the parameters and buffers as they are now.
        wanted: the programs to make at once; together they must use every weight.
        transform: what is done to the plan of a sub-net before it becomes a program.
        fallback: torch runs what cannot be lowered.

    Raises:
        ValueError: what ``capture`` gives cannot be lowered.
    """

    def __init__(
        self,
        capture: Callable[[Key | None, Shape], Captured],
        tensors: Callable[[], Mapping[str, Tensor]],
        wanted: Sequence[Which],
        transform: Callable[[Key | None, Lowered], Lowered] = lambda key, lowered: lowered,
        fallback: bool = False,
    ) -> None:
        self._capture, self._tensors, self._transform, self._fallback = capture, tensors, transform, fallback
        self._lock = threading.Lock()
        self._captured = {which: capture(*which) for which in wanted}
        self.state = self._read()

    def refresh(self) -> None:
        """Take the weights as they are now, for all programs; calls that run meanwhile end with the old ones."""
        with self._lock:
            self.state = self._read()

    def program(self, which: Which) -> Program | Segments:
        """The program for a sub-net and input shape, made now if there is none."""
        program = self.state.programs.get(which)
        if program is not None:
            return program
        with self._lock:
            state = self.state
            if which not in state.programs:
                captured = self._capture(*which)
                lowered = self._transform(which[0], lower(captured, state.tensors, fallback=self._fallback))
                new = set(lowered.weights) - state.weights
                if new:
                    raise RuntimeError(
                        f"net: it uses {sorted(new)}, which it did not when it was compiled; compile it again"
                    )
                program = program_of(state.store, lowered.plan, state.kept)
                self._captured[which] = captured
                state.programs[which] = program
            return state.programs[which]

    def _read(self) -> State:
        tensors = _snapshot(self._tensors())
        lowered: dict[Which, Lowered] = {
            w: self._transform(w[0], lower(captured, tensors, fallback=self._fallback))
            for w, captured in self._captured.items()
        }
        weights: dict[str, WeightTensor] = {}
        for each in lowered.values():
            weights.update(each.weights)
        store = Store(weights)
        kept: dict[str, Tensor] = {}
        programs = {w: program_of(store, each.plan, kept) for w, each in lowered.items()}
        return State(tensors, store, frozenset(weights), kept, programs)


def execute(program: Program | Segments, x: Tensor, threads: int) -> Tensor:
    """The result of ``program`` for ``x``, (N, C, H, W) or (N, C), any strides, of the program's shape."""
    y = program.run(x if x.dim() == 4 else x[:, :, None, None], threads)
    if y is None:
        raise RuntimeError("engine: internal error, the program refused an input that was found right")
    return y


def _snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of all vectors. Larger tensors are weights, of which the store has its copies."""
    copies: dict[int, Tensor] = {}
    taken = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor.numel() == max(tensor.shape, default=1) and id(tensor) not in copies:
                copies[id(tensor)] = tensor.detach().clone()
            taken[name] = copies.get(id(tensor), tensor)
    return taken
