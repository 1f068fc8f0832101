"""What feeds a training job: synthetic images, decoded and augmented by loader processes as in most training scripts.

Every image follows from its seed, so that the batches do not depend on timing or on the number of loaders.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class Augmentation:
    """From a raw image to a training input: a random crop of 3/4, perhaps flipped, scaled down, normalised."""

    raw_side: int  # pixels; what it costs grows with its square
    side: int

    def apply(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """(3, raw_side, raw_side) to (3, side, side)."""
        crop = 3 * self.raw_side // 4
        top, left = (int(t) for t in torch.randint(self.raw_side - crop + 1, (2,), generator=generator))
        image = raw[:, top : top + crop, left : left + crop]
        if torch.rand((), generator=generator) < 0.5:
            image = image.flip(-1)
        image = nn.functional.interpolate(
            image[None], size=(self.side, self.side), mode="bilinear", antialias=True
        ).squeeze(0)
        return (image - image.mean()) / image.std()


class SyntheticImages(Dataset[tuple[Tensor, int]]):
    """Endless for the purpose of an experiment."""

    def __init__(self, augmentation: Augmentation, classes: int, seed: int) -> None:
        self.augmentation = augmentation
        self.classes = classes
        self.seed = seed

    def __len__(self) -> int:
        return 1 << 31

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed((self.seed << 31) + index)
        side = self.augmentation.raw_side
        raw = torch.rand(3, side, side, generator=generator)
        target = int(torch.randint(self.classes, (), generator=generator))
        return self.augmentation.apply(raw, generator), target


def batches(images: SyntheticImages, batch: int, num_loaders: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, made ahead by ``num_loaders`` forked processes, which end with this one."""
    return iter(DataLoader(images, batch_size=batch, num_workers=num_loaders))
