"""The experiments of Yang & Fan, ASP-DAC 2021, on CIFAR-10: ResNet-20 with four sub-nets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dynkern import models
from dynkern.checkpoint import load_checkpoint
from dynkern.count import Count, count
from dynkern.data import Images
from dynkern.io import load, save
from dynkern.subnets import extract, slim
from dynkern.train.evaluate import accuracies, accuracy, evaluating
from dynkern.train.fused import fused
from dynkern.train.loop import History, Hooks
from dynkern.train.recipe import Recipe
from dynkern.train.suite import GLANCE, Context, Job

WIDTHS = (0.25, 0.5, 0.75, 1.0)
# Four losses are added up, so that half the rate is a larger step already.
FUSED_LR = 0.5
TEACHER_EPOCHS, TEACHER_LR = 2, 0.01
INPUT = torch.zeros(1, 3, 32, 32)


def jobs() -> list[Job]:
    """All runs, the most important first."""
    return [
        Job("teacher", "ResNet-32, trained by others, fine-tuned on these images", _teacher),
        Job("individual-1.0", "ResNet-20 alone", _individual(1.0)),
        Job("ours-u", "uniform sub-nets, fused, taught by the ResNet-32 (Ours-U)", _ours_u, after=("teacher",)),
        Job("s-nn", "uniform sub-nets, fused (slimmable network)", _s_nn),
        *(Job(f"individual-{w}", f"ResNet-20 at width {w} alone", _individual(w)) for w in (0.25, 0.5, 0.75)),
    ]


def _teacher(context: Context, job: str) -> dict[str, Any]:
    net = models.resnet32(num_classes=context.train.classes)
    if context.teacher is not None:
        load_checkpoint(net, context.teacher)
        recipe = replace(context.recipe, epochs=min(TEACHER_EPOCHS, context.recipe.epochs), lr=TEACHER_LR)
    else:
        recipe = context.recipe
    before = None if context.teacher is None else _accuracy(net, context.test)
    return {"accuracy_before": before, **_alone(context, job, net.to(context.device), recipe)}


def _individual(width: float) -> Callable[[Context, str], dict[str, Any]]:
    def run(context: Context, job: str) -> dict[str, Any]:
        net = extract(_uniform(context), width).to(context.device)
        return _alone(context, job, net, context.recipe)

    return run


def _ours_u(context: Context, job: str) -> dict[str, Any]:
    teacher = models.resnet32(num_classes=context.train.classes)
    load(teacher, context.file("teacher", "net.safetensors"))
    step = fused(teacher=teacher.to(context.device))
    return _dynamic(context, job, _uniform(context), fused_recipe(context.recipe), step)


def _s_nn(context: Context, job: str) -> dict[str, Any]:
    return _dynamic(context, job, _uniform(context), fused_recipe(context.recipe), fused())


def fused_recipe(recipe: Recipe) -> Recipe:
    """``recipe`` for several losses that are added up."""
    return replace(recipe, lr=recipe.lr * FUSED_LR)


def _uniform(context: Context) -> nn.Module:
    """A slim ResNet-20, the same one for every run."""
    torch.manual_seed(context.recipe.seed)
    return slim(models.resnet20(num_classes=context.train.classes), WIDTHS)


def _alone(context: Context, job: str, net: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Train a plain network; save it, and tell what came of it."""

    def after_epoch(epoch: int) -> dict[str, float]:
        return {"test_accuracy": _accuracy(net, context.test.first(GLANCE))}

    history = context.fit(job, net, recipe, hooks=Hooks(after_epoch=after_epoch))
    save(net, context.file(job, "net.safetensors"))
    found = _counts(count(net.cpu(), INPUT))
    return {"accuracy": _accuracy(net, context.test), **found, **_run(recipe, context, history)}


def _dynamic(context: Context, job: str, net: nn.Module, recipe: Recipe, step: Any) -> dict[str, Any]:
    """Train a slim network; save it, and tell what came of each sub-net."""
    net.to(context.device)

    def after_epoch(epoch: int) -> dict[str, float]:
        found = accuracies(net, context.test.first(GLANCE))
        return {f"test_accuracy {key}": value for key, value in found.items()}

    history = context.fit(job, net, recipe, step, Hooks(after_epoch=after_epoch))
    save(net, context.file(job, "net.safetensors"))
    counts = count(net.cpu(), INPUT)
    subnets = {
        str(key): {"accuracy": found, **_counts(counts[key])}  # type: ignore[index]
        for key, found in accuracies(net, context.test).items()
    }
    return {"subnets": subnets, **_run(recipe, context, history)}


def _accuracy(net: nn.Module, data: Images) -> float:
    with evaluating(net):
        return accuracy(net, data, device=next(net.parameters()).device)


def _counts(found: Any) -> dict[str, int]:
    if not isinstance(found, Count):
        raise TypeError(f"found: expected the counts of one network, got {type(found).__name__}")
    return {"weights": found.weights, "parameters": found.parameters, "macs": found.macs}


def _run(recipe: Recipe, context: Context, history: History) -> dict[str, Any]:
    return {
        "recipe": recipe.to_dict(),
        "batch": context.batch,
        "images": len(context.train),
        "test_images": len(context.test),
        "threads": torch.get_num_threads(),
        "seconds": sum(record["seconds"] for record in history),
        "history": history,
    }
