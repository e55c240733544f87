"""MobileNetV2 for 224x224 images (Sandler et al., CVPR 2018, table 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynkern.models.layers import check_count, check_width
from dynkern.subnets.spec import scaled

STEM, LAST = 32, 1280
# Of each stage: how many times wider its blocks are inside, its channels, its blocks, the stride of the first.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """Wider by a 1x1 convolution, a depthwise 3x3 convolution, narrower again; plus the input where shapes allow."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, expand: bool, residual: bool) -> None:
        super().__init__()
        wider = [_layer(inputs, middle, 1)] if expand else []
        self.conv = nn.Sequential(
            *wider,
            _layer(middle, middle, 3, stride, groups=middle),
            nn.Conv2d(middle, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 with the parameter names of torchvision, so that its trained networks load.

    Args:
        num_classes: outputs of the classifier.
        width: the channels of every layer, the last one too, relative to the usual ones, rounded, at least one:
            those of a uniform sub-net. (torchvision rounds to multiples of 8 and never narrows the last layer.)
        dropout: probability, before the classifier.

    Raises:
        ValueError, TypeError: an option is out of range; the message names it.
    """

    def __init__(self, num_classes: int = 1000, width: float = 1.0, dropout: float = 0.2) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_width(width)
        layers: list[nn.Module] = [_layer(3, scaled(STEM, width), 3, 2)]
        inputs = STEM
        for factor, outputs, blocks, first_stride in STAGES:
            for i in range(blocks):
                stride = first_stride if i == 0 else 1
                a, b, c = (scaled(n, width) for n in (inputs, inputs * factor, outputs))
                layers.append(InvertedResidual(a, b, c, stride, factor > 1, stride == 1 and inputs == outputs))
                inputs = outputs
        last = scaled(LAST, width)
        layers.append(_layer(scaled(inputs, width), last, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 224, 224) to logits (N, num_classes); other sizes work too."""
        y = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(y, 1))


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


def mobilenetv2(num_classes: int = 1000, width: float = 1.0, dropout: float = 0.2) -> MobileNetV2:
    """MobileNetV2 for 224x224 images; see :class:`MobileNetV2` for the options."""
    return MobileNetV2(num_classes, width, dropout)
