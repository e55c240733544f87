"""The residual network of Dordoni et al., MLSP 2024 ("ResNet-20*"), to be ternarised."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dynkern.models.layers import check_count, conv3x3, projection

CHANNELS = (16, 32, 64)


class Block(nn.Module):
    """``htanh(bn(conv(htanh(bn(conv(x)))) + downsample(x)))``; without the outer two where ``last`` is true."""

    def __init__(self, inputs: int, outputs: int, stride: int, last: bool) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.tanh1 = nn.Hardtanh()
        self.conv2 = conv3x3(outputs, outputs)
        # The last block has it too, unused: the paper's parameter counts include it.
        self.bn2 = nn.BatchNorm2d(outputs)
        self.tanh2 = nn.Hardtanh()
        changes = stride != 1 or inputs != outputs
        self.downsample = projection(inputs, outputs, stride) if changes else None
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.conv2(self.tanh1(self.bn1(self.conv1(x))))
        y = y + (x if self.downsample is None else self.downsample(x))
        return y if self.last else self.tanh2(self.bn2(y))


class BinaryResNet(nn.Module):
    """See :func:`resnet_binary`."""

    def __init__(self, num_classes: int = 10, inflate: int = 5, depth: int = 18) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("inflate", inflate)
        if check_count("depth", depth) < 8:
            raise ValueError(f"depth: expected 8 or more, got {depth}")
        stem, *_ = channels = [c * inflate for c in CHANNELS]
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.tanh1 = nn.Hardtanh()
        self.layer1 = _stage(stem, channels[0], blocks, 1)
        self.layer2 = _stage(channels[0], channels[1], blocks, 2)
        self.layer3 = _stage(channels[1], channels[2], blocks, 2, last=True)
        self.avgpool = nn.AvgPool2d(8)
        self.bn2 = nn.BatchNorm1d(channels[2])
        self.tanh2 = nn.Hardtanh()
        self.fc = nn.Linear(channels[2], num_classes)
        self.bn3 = nn.BatchNorm1d(num_classes)
        self.logsoftmax = nn.LogSoftmax(dim=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) to log-probabilities (N, num_classes)."""
        y = self.tanh1(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        y = torch.flatten(self.avgpool(y), 1)
        return self.logsoftmax(self.bn3(self.fc(self.tanh2(self.bn2(y)))))


def _stage(inputs: int, outputs: int, blocks: int, stride: int, last: bool = False) -> nn.Sequential:
    """``blocks`` blocks; ``last`` leaves out the final batch norm and activation of the last one."""
    first = Block(inputs, outputs, stride, last and blocks == 1)
    rest = (Block(outputs, outputs, 1, last and i == blocks - 1) for i in range(1, blocks))
    return nn.Sequential(first, *rest)


def resnet_binary(num_classes: int = 10, inflate: int = 5, depth: int = 18) -> BinaryResNet:
    """The residual network of Dordoni et al., MLSP 2024, there called ResNet-20*, for 32x32 images.

    Every convolution, the 1x1 shortcuts and the classifier are plain layers: ``dk.ternarize`` swaps them. Convolutions
    start from N(0, sqrt(2 / (kh * kw * outputs))).

    Args:
        num_classes: outputs of the classifier.
        inflate: the channels are 16, 32 and 64 times this.
        depth: (depth - 2) // 6 blocks per stage.

    Raises:
        ValueError, TypeError: an option is out of range; the message names it.
    """
    return BinaryResNet(num_classes, inflate, depth)
