"""A plan with steps in torch: native programs and calls of torch, by turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynkern.engine.fuse import reads, renamed
from dynkern.engine.native import Program, Store
from dynkern.engine.plan import Plan, Step, Torch


def program_of(store: Store, plan: Plan, kept: dict[str, Tensor]) -> Program | Segments:
    """What runs ``plan``; ``kept`` has, and gets, the engine's copies of tensors that only torch uses, by name."""
    if any(isinstance(step, Torch) for step in plan.steps):
        return Segments(store, plan, kept)
    return Program(store, plan)


@dataclass(frozen=True)
class _Native:
    program: Program
    inputs: list[int]
    outputs: list[int]
    steps: list[Step]


@dataclass(frozen=True)
class _InTorch:
    steps: list[Torch]


class Segments:
    """As :class:`Program`, for a plan with steps in torch.

    Steps that torch runs and steps of the engine take turns: each stage has all that can run by then, so there are as
    few programs as possible. What passes from one to another is (N, C, H, W).
    """

    def __init__(self, store: Store, plan: Plan, kept: dict[str, Tensor]) -> None:
        self.store, self.plan = store, plan
        stages = _stages(plan)
        self.parts: list[_Native | _InTorch] = []
        self.last: list[list[int]] = []  # for each stage the values that no later one reads
        for i, steps in enumerate(stages):
            later = {v for stage in stages[i + 1 :] for step in stage for v in reads(step)} | {plan.output}
            made = [step.y for step in steps]
            read = list(dict.fromkeys(v for step in steps for v in reads(step)))
            self.last.append([v for v in {*read, *made} if v not in later])
            if isinstance(steps[0], Torch):
                torch_steps = [s for s in steps if isinstance(s, Torch)]
                self.parts.append(_InTorch([Torch(s.xs, s.y, s.node.keeping(kept)) for s in torch_steps]))
                continue
            inputs, outputs = [v for v in read if v not in made], [v for v in made if v in later]
            number = {old: new for new, old in enumerate((*inputs, *made))}
            values = [plan.values[old] for old in number]
            part = Plan(0, 0, 4, values, [renamed(step, number) for step in steps])
            program = Program(store, part, [number[v] for v in inputs], [number[v] for v in outputs])
            self.parts.append(_Native(program, inputs, outputs, steps))
        self.kept = {t.untyped_storage().data_ptr() for t in kept.values()}

    def run(self, x: Tensor, threads: int) -> Tensor | None:
        """The result for ``x`` (N, C, H, W) float32 on the CPU; None if ``x`` is anything else."""
        source = self.plan.values[self.plan.input]
        sizes = (source.channels, source.height, source.width)
        if x.dtype != torch.float32 or x.device.type != "cpu" or x.dim() != 4 or tuple(x.shape[1:]) != sizes:
            return None
        values: dict[int, Any] = {self.plan.input: x.detach()}
        with torch.no_grad():
            for part, last in zip(self.parts, self.last, strict=True):
                if isinstance(part, _Native):
                    results = part.program.run_many([values[v] for v in part.inputs], threads)
                    values.update(zip(part.outputs, results, strict=True))
                else:
                    for step in part.steps:
                        values[step.y] = step.node([values[v] for v in step.xs], x.shape[0])
                for v in last:
                    values.pop(v, None)
            y = values[self.plan.output]
            if self.plan.output_dims == 2:
                y = y.flatten(1)
            # A result is a new tensor, also where torch gives a view of the argument or of a parameter.
            storage = y.untyped_storage().data_ptr()
            return y.clone() if storage in self.kept or storage == x.untyped_storage().data_ptr() else y

    def describe(self) -> list[dict[str, Any]]:
        """One row per step: what runs, the values it reads and writes, the shape of the result."""
        rows = []
        for part in self.parts:
            if isinstance(part, _Native):
                names = [*part.inputs, *(step.y for step in part.steps)]
                rows += [
                    {**row, "reads": [names[v] for v in row["reads"]], "writes": names[row["writes"]]}
                    for row in part.program.describe()
                ]
                continue
            for step in part.steps:
                value = self.plan.values[step.y]
                shape = (value.channels, value.height, value.width) if value.channels else ()
                what = f"torch: {step.node.name} in {step.node.where}"
                rows.append({"step": what, "reads": list(step.xs), "writes": step.y, "shape": shape})
        return rows

    @property
    def arena_bytes(self) -> int:
        """Bytes of activations and working memory of the program that needs most; torch's own are not counted."""
        return max((part.program.arena_bytes for part in self.parts if isinstance(part, _Native)), default=0)

    @property
    def constant_bytes(self) -> int:
        """Bytes that the programs hold beyond the store."""
        return sum(part.program.constant_bytes for part in self.parts if isinstance(part, _Native))


def _stages(plan: Plan) -> list[list[Step]]:
    """The steps by turns: even stages are the engine's, odd ones torch's; empty ones are left out."""
    stage_of = {plan.input: 0}
    stages: list[list[Step]] = []
    for step in plan.steps:
        turn = int(isinstance(step, Torch))
        stage = max((stage_of[v] for v in reads(step)), default=0)
        stage += (stage + turn) % 2
        stage_of[step.y] = stage
        while len(stages) <= stage:
            stages.append([])
        stages[stage].append(step)
    return [stage for stage in stages if stage]
