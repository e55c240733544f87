"""Fewer steps for the same plan: what a step's epilogue can do is no step of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from dynkern.engine.crops import joined, padding_of
from dynkern.engine.epilogues import absorbed, compose, swapped
from dynkern.engine.plan import Concat, Conv2d, Crop, Linear, Plan, Pointwise, Step, Torch

Computing = (Conv2d, Linear, Pointwise)


def fuse(plan: Plan) -> Plan:
    """The plan with

    * additions, batch norms and activations done by the step before them, where nothing else reads its result. Of
      an addition of two such results the one computed last takes it in;
    * cuts and paddings in a row as one, and zero padding done by the convolution that reads it;
    * concatenations of concatenations as one;
    * no step whose result is not used, and values numbered in the order of the steps.
    """
    steps = _used(plan.steps, plan.output)
    uses = Counter(v for step in steps for v in reads(step))
    kept: dict[int, Step] = {}
    for step in steps:
        fused = step
        while (smaller := _smaller(fused, kept, uses, plan)) is not None:
            # The steps before the fused one all stay before it, since it goes to the end.
            fused = smaller
        kept[fused.y] = fused
    return _numbered(plan, list(kept.values()))


def reads(step: Step) -> tuple[int, ...]:
    """The values that ``step`` reads."""
    if isinstance(step, (Concat, Torch)):
        return step.xs
    found = [step.x, getattr(step, "gate", None)]
    if isinstance(step, Computing):
        found.append(step.epilogue.residual)
    return tuple(v for v in found if v is not None)


def _smaller(step: Step, kept: dict[int, Step], uses: Counter[int], plan: Plan) -> Step | None:
    """``step`` with one of the steps before it in it, which leaves ``kept``; None if it can take none."""
    if isinstance(step, Torch):
        return None
    if isinstance(step, Concat):
        return _concat(step, kept, uses)
    if isinstance(step, Pointwise) and (taken := _taken_in(step, kept, uses)) is not None:
        return taken
    if isinstance(step, Computing) and (scaled := _residual_scaled(step, kept, uses)) is not None:
        return scaled
    inner = kept.get(step.x)
    if not isinstance(inner, Crop):
        return None
    fused: Step | None = None
    if isinstance(step, Crop):
        fused = joined(inner, step)
    elif isinstance(step, Conv2d) and (padding := padding_of(inner, plan.values)) is not None:
        top, bottom, left, right = (a + b for a, b in zip(step.geometry[2:6], padding, strict=True))
        geometry = (*step.geometry[:2], top, bottom, left, right, *step.geometry[6:])
        fused = replace(step, x=inner.x, geometry=geometry)
    if fused is not None:
        uses[inner.y] -= 1
        if uses[inner.y]:
            uses[inner.x] += 1
        else:
            del kept[inner.y]
    return fused


def _taken_in(step: Pointwise, kept: dict[int, Step], uses: Counter[int]) -> Step | None:
    """The step before ``step`` that does its work too."""
    operands = {v for v in reads(step) if uses[v] == 1}
    # The one computed last is asked first.
    for v, inner in [(v, inner) for v, inner in reversed(kept.items()) if v in operands]:
        if not isinstance(inner, Computing):
            continue
        epilogue = step.epilogue if v == step.x else swapped(step.epilogue, step.x)
        fused = compose(inner.epilogue, epilogue)
        if fused is not None:
            del kept[v]
            return replace(inner, y=step.y, epilogue=fused)
    return None


def _residual_scaled(step: Conv2d | Linear | Pointwise, kept: dict[int, Step], uses: Counter[int]) -> Step | None:
    """``step`` with the scale and shift of its residual as its own."""
    v = step.epilogue.residual
    inner = None if v is None else kept.get(v)
    if v is None or not isinstance(inner, Pointwise) or uses[v] != 1:
        return None
    fused = absorbed(step.epilogue, inner.epilogue, inner.x)
    if fused is None:
        return None
    del kept[v]
    return replace(step, epilogue=fused)


def _concat(step: Concat, kept: dict[int, Step], uses: Counter[int]) -> Step | None:
    for v in step.xs:
        inner = kept.get(v)
        if isinstance(inner, Concat) and uses[v] == 1:
            del kept[v]
            at = step.xs.index(v)
            return replace(step, xs=(*step.xs[:at], *inner.xs, *step.xs[at + 1 :]))
    return None


def _used(steps: list[Step], output: int) -> list[Step]:
    needed, kept = {output}, []
    for step in reversed(steps):
        if step.y in needed:
            needed.update(reads(step))
            kept.append(step)
    return kept[::-1]


def _numbered(plan: Plan, steps: list[Step]) -> Plan:
    """The plan of ``steps`` with only the values that they have."""
    order = [plan.input, *(step.y for step in steps)]
    number = {old: new for new, old in enumerate(order)}

    values = [plan.values[old] for old in order]
    renumbered = [renamed(step, number) for step in steps]
    return Plan(number[plan.input], number[plan.output], plan.output_dims, values, renumbered)


def renamed(step: Step, number: Mapping[int, int]) -> Step:
    """``step`` with its values renamed."""
    changes: dict[str, Any] = {}
    for field in fields(step):
        value = getattr(step, field.name)
        if field.name in ("x", "y", "gate"):
            changes[field.name] = number[value]
        elif field.name == "xs":
            changes[field.name] = tuple(number[v] for v in value)
        elif field.name == "epilogue" and value.residual is not None:
            changes[field.name] = replace(value, residual=number[value.residual])
    return replace(step, **changes)
