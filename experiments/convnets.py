"""The convolutional networks of the experiments, built from data. Owns layers only: no data, no optimizer, no device.

Written by hand where the usual home is torchvision, so that every machine with torch runs the same network.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class VggShape:
    """A VGG: numbers are 3x3 convolutions of that many channels, "M" is a 2x2 max pool."""

    image: int
    features: tuple[int | str, ...]
    hidden: int
    classes: int
    dropout: float = 0.5


VGG16 = VggShape(
    image=224,
    features=(64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
    hidden=4096,
    classes=1000,
)
# The same depth at 1/4 of the width: on a CPU its ops take about a millisecond, and an op that runs when a gate closes
# still ends.
VGG16_SMALL = VggShape(
    image=32,
    features=(16, 16, "M", 32, 32, "M", 64, 64, 64, "M", 128, 128, 128, "M", 128, 128, 128, "M"),
    hidden=128,
    classes=100,
)


def vgg(shape: VggShape) -> nn.Sequential:
    """Simonyan & Zisserman 2015, configuration D for VGG16. Input (batch, 3, image, image).

    No adaptive pooling before the classifier: at the image size of the shape it is the identity, and its
    backward pass is not deterministic on CUDA.
    """
    layers: list[nn.Module] = []
    channels = 3
    for item in shape.features:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, item, 3, padding=1), nn.ReLU(inplace=True)]
            channels = item
    side = shape.image // 2 ** shape.features.count("M")
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(channels * side * side, shape.hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(shape.dropout),
        nn.Linear(shape.hidden, shape.hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(shape.dropout),
        nn.Linear(shape.hidden, shape.classes),
    )


@dataclass(frozen=True)
class ResNetShape:
    """A ResNet of bottleneck blocks: ``stages`` counts those at each of four resolutions."""

    width: int  # of the first stage's inner convolutions
    stages: tuple[int, int, int, int]
    classes: int


RESNET50 = ResNetShape(width=64, stages=(3, 4, 6, 3), classes=1000)
RESNET_SMALL = ResNetShape(width=8, stages=(1, 1, 1, 1), classes=10)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the stride is the 3x3's (ResNet v1.5)."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.body = nn.Sequential(
            *_normed(channels, width, 1),
            nn.ReLU(inplace=True),
            *_normed(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *_normed(width, out, 1),
        )
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else nn.Sequential(*_normed(channels, out, 1, stride))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, side, side) to (batch, 4 width, side / stride, side / stride)."""
        out: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return out


def resnet(shape: ResNetShape) -> nn.Sequential:
    """He et al. 2016, with bottlenecks. Input (batch, 3, side, side), side a multiple of 32."""
    layers: list[nn.Module] = [
        *_normed(3, shape.width, 7, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    channels = shape.width
    for stage, blocks in enumerate(shape.stages):
        for block in range(blocks):
            width = shape.width << stage
            layers.append(Bottleneck(channels, width, stride=2 if stage and not block else 1))
            channels = width * Bottleneck.expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, shape.classes))


def _normed(channels: int, out: int, kernel: int, stride: int = 1) -> Iterator[nn.Module]:
    yield nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2, bias=False)
    yield nn.BatchNorm2d(out)


@dataclass(frozen=True)
class ConvNextShape:
    """A ConvNeXt: depth and width of each of four stages."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    classes: int


CONVNEXT_TINY = ConvNextShape(depths=(3, 3, 9, 3), widths=(96, 192, 384, 768), classes=1000)
CONVNEXT_SMALL = ConvNextShape(depths=(1, 1), widths=(8, 16), classes=10)


class ConvNextBlock(nn.Module):
    """A 7x7 depthwise convolution, then two pointwise layers over channels that come last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.pointwise = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.scale = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Shape kept: (batch, width, side, side)."""
        hidden = self.pointwise(self.depthwise(x).permute(0, 2, 3, 1)) * self.scale
        return x + hidden.permute(0, 3, 1, 2)  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (batch, channels, side, side)."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape kept."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext(shape: ConvNextShape) -> nn.Sequential:
    """Liu et al. 2022, without stochastic depth. Input (batch, 3, side, side), side a multiple of 32."""
    layers: list[nn.Module] = [nn.Conv2d(3, shape.widths[0], 4, stride=4), ChannelNorm(shape.widths[0])]
    for stage, (depth, width) in enumerate(zip(shape.depths, shape.widths, strict=True)):
        if stage:
            before = shape.widths[stage - 1]
            layers += [ChannelNorm(before), nn.Conv2d(before, width, 2, stride=2)]
        layers += [ConvNextBlock(width) for _ in range(depth)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(width), nn.Linear(width, shape.classes))
    return nn.Sequential(*layers, *head)
