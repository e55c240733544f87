"""Training: a small loop into which losses, penalties and schedules are put; see ``docs/training.md``."""

from dynkern.train.distill import distillation_loss
from dynkern.train.evaluate import accuracies, accuracy, evaluating
from dynkern.train.fused import fused
from dynkern.train.generate import Generated, Run, Snapshot, multi_path, penalised, single_path
from dynkern.train.loop import Hooks, fit
from dynkern.train.progress import Bar, Lines, Progress, Silent, progress
from dynkern.train.recipe import Recipe
from dynkern.train.schedule import constant, one_cycle, steps
from dynkern.train.state import Stateful
from dynkern.train.steps import LossStep, Outcome, classify

__all__ = [
    "Bar",
    "Generated",
    "Hooks",
    "Lines",
    "LossStep",
    "Outcome",
    "Progress",
    "Recipe",
    "Run",
    "Silent",
    "Snapshot",
    "Stateful",
    "accuracies",
    "accuracy",
    "classify",
    "constant",
    "distillation_loss",
    "evaluating",
    "fit",
    "fused",
    "multi_path",
    "one_cycle",
    "penalised",
    "progress",
    "single_path",
    "steps",
]
