"""The experiments of Yang & Fan, ASP-DAC 2021, on CIFAR-10: ResNet-20 with four sub-nets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from dynkern import models
from dynkern.checkpoint import load_checkpoint
from dynkern.count import Count, count
from dynkern.data import Images
from dynkern.io import load, save
from dynkern.subnets import (
    GroupLasso,
    extract,
    nested,
    read_subnets,
    reorder,
    slim,
    structure,
    write_subnets,
)
from dynkern.train.evaluate import accuracies, accuracy, evaluating
from dynkern.train.fused import fused
from dynkern.train.generate import Generated, Run, Snapshot, multi_path, single_path
from dynkern.train.loop import History, Hooks
from dynkern.train.paper000_measure import integers, latencies
from dynkern.train.recipe import Recipe
from dynkern.train.suite import GLANCE, Context, Job

WIDTHS = (0.25, 0.5, 0.75, 1.0)
# Four losses are added up, so that half the rate is a larger step already.
FUSED_LR = 0.5
TEACHER_EPOCHS, TEACHER_LR = 2, 0.01
# Sub-nets are sampled at the paper's rate, for a share of the epochs: the paper's 60 of its 100 or so.
SAMPLING_EPOCHS, SAMPLING_LR = 0.6, 0.01
# Sub-nets 1 to 3 cost no more than the uniform ones of the slimmable network; the fourth is the whole network.
NAMES = ("subnet1", "subnet2", "subnet3")
# The paper gives no beta, and no lambda: here it follows from how often the penalty alone would shrink a mean channel
# to nothing during the run. Clipped it works on the weakest channels of the moment alone, so that it takes longer, and
# comes to rest where all that are left are alike: nearer to 1 for smaller sub-nets.
BETAS = {"subnet1": 0.98, "subnet2": 0.96, "subnet3": 0.92}
SHRINKS, SHRINKS_CLIPPED = 1.5, 12.0
# The networks with sub-nets.
NETWORKS = ("ours-u", "s-nn", "ours-s", "ours-m", "group-lasso")
# Of its channels each layer keeps so many.
LEAST = 0.1
INPUT = torch.zeros(1, 3, 32, 32)


def jobs() -> list[Job]:
    """All runs, the most important first."""
    return [
        Job("teacher", "ResNet-32, trained by others, fine-tuned on these images", _teacher),
        Job("individual-1.0", "ResNet-20 alone", _individual(1.0)),
        Job("ours-u", "uniform sub-nets, fused, taught by the ResNet-32 (Ours-U)", _ours_u, after=("teacher",)),
        Job("integers", "Ours-U in 16 and 8 bits", integers("ours-u", "teacher"), after=("ours-u", "teacher")),
        Job("s-nn", "uniform sub-nets, fused (slimmable network)", _s_nn),
        *(Job(f"individual-{w}", f"ResNet-20 at width {w} alone", _individual(w)) for w in WIDTHS[:-1]),
        Job("background", "ResNet-20 with a projection in every block, alone: what is pruned", _background),
        Job("single-path", "Ours-S: three sub-nets in one run (eq 4)", _single_path, after=("background",)),
        Job("ours-s", "single-path sub-nets, fused (Ours-S)", _fused_subnets("single-path"), after=("single-path",)),
        Job(
            "multi-path",
            "Ours-M: three sub-nets in three runs (eq 3)",
            _multi_path(clipped=True),
            after=("background",),
        ),
        Job("ours-m", "multi-path sub-nets, fused (Ours-M)", _fused_subnets("multi-path"), after=("multi-path",)),
        Job("lasso", "group lasso: three sub-nets in three runs", _multi_path(clipped=False), after=("background",)),
        Job("group-lasso", "group lasso's sub-nets, fused", _fused_subnets("lasso"), after=("lasso",)),
        *(
            Job(f"{short}-{name}", f"{name} of {short} alone", _alone_from(source, name), after=(source,))
            for short, source in (
                ("individual-s", "single-path"),
                ("individual-m", "multi-path"),
                ("individual-g", "lasso"),
            )
            for name in NAMES
        ),
        Job("latency", "time of every sub-net", latencies(*NETWORKS), after=NETWORKS),
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


def _background(context: Context, job: str) -> dict[str, Any]:
    return _alone(context, job, _projected(context).to(context.device), context.recipe)


def _single_path(context: Context, job: str) -> dict[str, Any]:
    net, recipe = _trained(context), sampling_recipe(context.recipe)
    lasso = GroupLasso(net, _strength(net, context, recipe, SHRINKS_CLIPPED), BETAS[NAMES[0]])
    sizes = [Snapshot(name, size=size) for name, size in zip(NAMES, _sizes(context), strict=True)]
    found = single_path(
        net,
        context.stream(recipe.seed),
        recipe,
        lasso,
        sizes,
        INPUT.to(context.device),
        least=LEAST,
        checkpoint=context.file(job, "run.pt"),
        progress=context.progress(job),
    )
    return _sampled(context, job, found, recipe, [{"strength": lasso.strength, "beta": lasso.beta}])


def _multi_path(clipped: bool) -> Callable[[Context, str], dict[str, Any]]:
    def run(context: Context, job: str) -> dict[str, Any]:
        recipe = sampling_recipe(context.recipe)
        strength = _strength(_trained(context), context, recipe, SHRINKS_CLIPPED if clipped else SHRINKS)
        runs = [
            Run(name, strength, BETAS[name] if clipped else None, size)
            for name, size in zip(NAMES, _sizes(context), strict=True)
        ]
        found = multi_path(
            lambda: _trained(context),
            context.stream(recipe.seed),
            recipe,
            runs,
            INPUT.to(context.device),
            folder=context.out / job,
            progress=context.progress,
            least=LEAST,
        )
        return _sampled(context, job, found, recipe, [asdict(r) for r in runs])

    return run


def _sampled(
    context: Context, job: str, found: Generated, recipe: Recipe, settings: list[dict[str, Any]]
) -> dict[str, Any]:
    write_subnets(found.subnets, context.file(job, "subnets.json"))
    model = _projected(context)
    return {
        "settings": settings,
        "reached": found.reached,
        "nested": nested(model, found.subnets),
        "structure": structure(model, [*found.subnets, 1.0]),
        **_run(recipe, context, found.history),
    }


def _fused_subnets(source: str) -> Callable[[Context, str], dict[str, Any]]:
    def run(context: Context, job: str) -> dict[str, Any]:
        net = _with_subnets(context, source)
        return _dynamic(context, job, net, fused_recipe(context.recipe), fused())

    return run


def _alone_from(source: str, name: str) -> Callable[[Context, str], dict[str, Any]]:
    def run(context: Context, job: str) -> dict[str, Any]:
        return _alone(context, job, extract(_with_subnets(context, source), name).to(context.device), context.recipe)

    return run


def _with_subnets(context: Context, source: str) -> nn.Module:
    """An untrained network with the sub-nets that run ``source`` found; where they are nested, as prefixes."""
    net = _projected(context)
    subnets = read_subnets(context.file(source, "subnets.json"))
    return slim(net, [*(reorder(net, subnets) if nested(net, subnets) else subnets), 1.0])


def _projected(context: Context) -> nn.Module:
    torch.manual_seed(context.recipe.seed)
    return models.resnet20(num_classes=context.train.classes, shortcut="proj_all")


def _trained(context: Context) -> nn.Module:
    """The trained network that sub-nets are sampled from."""
    return load(_projected(context), context.file("background", "net.safetensors")).to(context.device)


def _sizes(context: Context) -> list[float]:
    """What sub-nets may cost: the uniform ones of the same ResNet, in multiply-accumulates."""
    found = count(_uniform(context), INPUT)
    return [float(found[width].macs) for width in WIDTHS[:-1]]  # type: ignore[index]


def _strength(net: nn.Module, context: Context, recipe: Recipe, shrinks: float) -> float:
    norms = torch.cat([group.norms().detach() for group in GroupLasso(net, 0.0).groups])
    steps = recipe.epochs * (len(context.train) // context.batch)
    return shrinks * float(norms.mean()) / (recipe.lr * steps)


def sampling_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the runs in which sub-nets are sampled."""
    epochs = max(1, round(SAMPLING_EPOCHS * recipe.epochs))
    return replace(recipe, epochs=epochs, lr=SAMPLING_LR, schedule="constant")


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
