"""A few images to measure with: real ones where there are some, else noise."""

from dataclasses import dataclass
from pathlib import Path

import torch

from aafit.data.datasets import SIZES, Dataset, Split, load_dataset


@dataclass(frozen=True)
class Sample:
    """So many images of a data set; of noise where `data_dir` does not say where the real ones are."""

    dataset: str
    train_images: int
    test_images: int
    data_dir: Path | None = None

    def load(self) -> Dataset:
        """The images: the same ones at each call.

        Raises:
            UserError: the data set is not in `data_dir`.
        """
        if self.data_dir is None:
            generator = torch.Generator().manual_seed(1)
            train, test = (self._noise(count, generator) for count in (self.train_images, self.test_images))
            return Dataset(self.dataset, train, None, test, 10, "noise")
        # Cut here, not by `train_images`: more may be asked for than there are.
        data = load_dataset(self.dataset, self.data_dir)
        test = data.test.at(torch.arange(min(self.test_images, len(data.test))))
        train = data.train.at(torch.arange(self.train_images) % len(data.train))
        return Dataset(self.dataset, train, None, test, data.classes, data.fingerprint)

    def _noise(self, count: int, generator: torch.Generator) -> Split:
        channels, height, width = SIZES[self.dataset].in_shape
        images = torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)
        return Split(images, torch.randint(0, 10, (count,), generator=generator))
