"""ResNet-18 and ResNet-50 for 224x224 images (He et al., CVPR 2016, table 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynkern.models.layers import check_count, check_shortcut, check_width, conv3x3, projection
from dynkern.subnets.spec import scaled

CHANNELS = (64, 128, 256, 512)
SHORTCUTS = ("B", "proj_all")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, middle, stride)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = conv3x3(middle, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride) and 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = conv3x3(middle, middle, stride)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class ImageNetResNet(nn.Module):
    """ResNet for 224x224 images, with the parameter names of torchvision, so that its trained networks load.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        blocks: blocks in each of the four stages.
        num_classes: outputs of the classifier.
        shortcut: ``"B"`` has a 1x1 convolution with batch norm where the shape changes, as torchvision does;
            ``"proj_all"`` has one in every block (Yang & Fan, ASP-DAC 2021).
        width: the channels of every layer relative to the usual ones, rounded, at least one.

    Raises:
        ValueError, TypeError: an option is out of range; the message names it.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        num_classes: int = 1000,
        shortcut: str = "B",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_shortcut(shortcut, SHORTCUTS)
        check_width(width)
        stem = scaled(CHANNELS[0], width)
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        middles = [scaled(c, width) for c in CHANNELS]
        outputs = [scaled(c * block.expansion, width) for c in CHANNELS]
        self.layer1 = _stage(block, stem, middles[0], outputs[0], blocks[0], 1, shortcut)
        self.layer2 = _stage(block, outputs[0], middles[1], outputs[1], blocks[1], 2, shortcut)
        self.layer3 = _stage(block, outputs[1], middles[2], outputs[2], blocks[2], 2, shortcut)
        self.layer4 = _stage(block, outputs[2], middles[3], outputs[3], blocks[3], 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(outputs[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 224, 224) to logits (N, num_classes); other sizes work too."""
        y = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        y = self.layer4(self.layer3(self.layer2(self.layer1(y))))
        return self.fc(torch.flatten(self.avgpool(y), 1))


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    inputs: int,
    middle: int,
    outputs: int,
    blocks: int,
    stride: int,
    shortcut: str,
) -> nn.Sequential:
    layers = []
    for _ in range(blocks):
        changes = stride != 1 or inputs != outputs
        downsample = projection(inputs, outputs, stride) if changes or shortcut == "proj_all" else None
        layers.append(block(inputs, middle, outputs, stride, downsample))
        inputs, stride = outputs, 1
    return nn.Sequential(*layers)


def resnet18(num_classes: int = 1000, shortcut: str = "B", width: float = 1.0) -> ImageNetResNet:
    """ResNet-18 for 224x224 images; see :class:`ImageNetResNet` for the options."""
    return ImageNetResNet(BasicBlock, (2, 2, 2, 2), num_classes, shortcut, width)


def resnet50(num_classes: int = 1000, shortcut: str = "B", width: float = 1.0) -> ImageNetResNet:
    """ResNet-50 for 224x224 images; see :class:`ImageNetResNet` for the options."""
    return ImageNetResNet(Bottleneck, (3, 4, 6, 3), num_classes, shortcut, width)
