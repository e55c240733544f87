"""ResNet-20/32/44/56 for 32x32 images (He et al., CVPR 2016, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynkern.models.layers import check_count, check_shortcut, check_width, conv3x3, projection
from dynkern.nn.channel_pad import ChannelPad
from dynkern.subnets.spec import scaled

CHANNELS = (16, 32, 64)
SHORTCUTS = ("A", "B", "proj_all")


class Block(nn.Module):
    """``relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))``."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for 32x32 images: a 3x3 convolution, three stages of blocks, and a linear classifier.

    The names of the parameters are those of akamaster/pytorch_resnet_cifar10, so that its trained networks load.

    Args:
        depth: 6 n + 2 layers, n blocks per stage.
        num_classes: outputs of the classifier.
        shortcut: ``"A"`` takes every other pixel and adds zero channels, half of them on each side, where the shape
            changes; ``"B"`` has a 1x1 convolution with batch norm there; ``"proj_all"`` has one in every block (the
            networks of Yang & Fan, ASP-DAC 2021, with a channel count of its own for each layer).
        width: the channels of every layer relative to 16, 32 and 64, rounded, at least one.

    Raises:
        ValueError, TypeError: an option is out of range; the message names it.
    """

    def __init__(self, depth: int, num_classes: int = 10, shortcut: str = "A", width: float = 1.0) -> None:
        super().__init__()
        if check_count("depth", depth) < 8 or depth % 6 != 2:
            raise ValueError(f"depth: expected 6 n + 2 with n of 1 or more, got {depth}")
        check_count("num_classes", num_classes)
        check_shortcut(shortcut, SHORTCUTS)
        check_width(width)
        stem, *_ = channels = [scaled(c, width) for c in CHANNELS]
        self.conv1 = conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        blocks = (depth - 2) // 6
        self.layer1 = _stage(stem, channels[0], blocks, 1, shortcut)
        self.layer2 = _stage(channels[0], channels[1], blocks, 2, shortcut)
        self.layer3 = _stage(channels[1], channels[2], blocks, 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels[2], num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) to logits (N, num_classes); other sizes work too."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.linear(torch.flatten(self.pool(y), 1))


def _stage(inputs: int, outputs: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
    first = Block(inputs, outputs, stride, _shortcut(inputs, outputs, stride, shortcut))
    rest = (Block(outputs, outputs, 1, _shortcut(outputs, outputs, 1, shortcut)) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _shortcut(inputs: int, outputs: int, stride: int, shortcut: str) -> nn.Module:
    if shortcut == "proj_all":
        return projection(inputs, outputs, stride)
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if shortcut == "B":
        return projection(inputs, outputs, stride)
    # Averaging over one pixel takes every other one, exactly, and is a module that every tool knows.
    return nn.Sequential(nn.AvgPool2d(1, stride), ChannelPad(inputs, outputs))


def resnet20(num_classes: int = 10, shortcut: str = "A", width: float = 1.0) -> CifarResNet:
    """ResNet-20 for 32x32 images; see :class:`CifarResNet` for the options."""
    return CifarResNet(20, num_classes, shortcut, width)


def resnet32(num_classes: int = 10, shortcut: str = "A", width: float = 1.0) -> CifarResNet:
    """ResNet-32 for 32x32 images; see :class:`CifarResNet` for the options."""
    return CifarResNet(32, num_classes, shortcut, width)


def resnet44(num_classes: int = 10, shortcut: str = "A", width: float = 1.0) -> CifarResNet:
    """ResNet-44 for 32x32 images; see :class:`CifarResNet` for the options."""
    return CifarResNet(44, num_classes, shortcut, width)


def resnet56(num_classes: int = 10, shortcut: str = "A", width: float = 1.0) -> CifarResNet:
    """ResNet-56 for 32x32 images; see :class:`CifarResNet` for the options."""
    return CifarResNet(56, num_classes, shortcut, width)
