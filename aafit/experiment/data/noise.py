"""Images of noise with the sizes of a data set, to measure times on."""

import torch

from aafit.experiment.data.datasets import CLASSES, SIZES, Dataset, Split


def noise_like(name: str, train_images: int, test_images: int) -> Dataset:
    """Return images of noise with the size of those of a data set of `DATASETS`, the same ones at each call."""
    channels, height, width = SIZES[name].in_shape
    generator = torch.Generator().manual_seed(1)

    def split(count: int) -> Split:
        images = torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)
        return Split(images, torch.randint(0, CLASSES, (count,), generator=generator))

    return Dataset(name, split(train_images), None, split(test_images), CLASSES, "noise")
