"""The networks of the papers, in plain PyTorch: made dynamic by ``dk.slim`` or ``dk.ternarize``."""

from dynkern.models.binary import resnet_binary
from dynkern.models.cifar import resnet20, resnet32, resnet44, resnet56
from dynkern.models.imagenet import resnet18, resnet50
from dynkern.models.mobile import mobilenetv2
from dynkern.models.table import MODELS, Model, build, names

__all__ = [
    "MODELS",
    "Model",
    "build",
    "mobilenetv2",
    "names",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet_binary",
]
