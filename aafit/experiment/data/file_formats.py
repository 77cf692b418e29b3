"""The file formats of image data sets: files are read into arrays, and their sizes and headers are checked.

Axes in names: B image, H row, W column, C colour plane.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from aafit.errors import UserError

CIFAR10_SHAPE_CHW = (3, 32, 32)
CIFAR10_RECORDS = 10_000  # in each file
MNIST_SHAPE_HW = (28, 28)
LARGEST = 1 << 28
"""Bytes in a file at most; the largest file of the data sets has 47 million."""


def read_bytes(path: Path) -> bytes:
    """Return the content of a file, decompressed if its name ends in .gz.

    Raises:
        UserError: the compressed file is damaged, or expands to more than any data set has.
        OSError: the file cannot be read.
    """
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{path} expands to more than {LARGEST:,} bytes: replace it with a file of the data set.")
        return content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged: {error}. Replace it with a complete copy.") from error


def read_cifar10(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (images_BHWC, labels_B) of one file of CIFAR-10's binary version.

    A record is a byte for the label, then the red, green and blue plane of the image, each row by row.

    Raises:
        UserError: the file has another size.
        OSError: the file cannot be read.
    """
    content = read_bytes(path)
    record = 1 + math.prod(CIFAR10_SHAPE_CHW)
    expected = CIFAR10_RECORDS * record
    if len(content) != expected:
        raise UserError(
            f"{path} is not a file of CIFAR-10's binary version: it has {len(content):,} bytes instead of {expected:,} "
            f"({CIFAR10_RECORDS:,} records of {record:,}). Replace it with a complete copy."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    planes_CBHW = records[:, 1:].reshape(-1, *CIFAR10_SHAPE_CHW).swapaxes(0, 1)
    return np.stack(list(planes_CBHW), axis=-1), records[:, 0]


def read_idx_pair(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (images_BHWC, labels_B) of two IDX files, the format of MNIST: grey images of 28x28 pixels, C = 1.

    Raises:
        UserError: one of the files is not IDX, is damaged, or they do not belong together.
        OSError: one of the files cannot be read.
    """
    images_BHW, labels_B = _read_idx(images_path, axes=3), _read_idx(labels_path, axes=1)
    if images_BHW.shape[1:] != MNIST_SHAPE_HW:
        raise UserError(
            f"{images_path} holds images of {'x'.join(map(str, images_BHW.shape[1:]))} pixels instead of 28x28. "
            f"Replace it with a file of the data set that was asked for."
        )
    if len(images_BHW) != len(labels_B):
        raise UserError(
            f"{images_path} holds {len(images_BHW):,} images, but {labels_path} {len(labels_B):,} labels. "
            f"Replace them with a pair that belongs together."
        )
    return images_BHW[..., None], labels_B


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """Return the values of an IDX file, which follow 0, 0, 8, the number of axes, and their lengths (4 bytes each)."""
    content = read_bytes(path)
    header = 4 + 4 * axes
    magic = bytes((0, 0, 8, axes))
    if content[:4] != magic:
        raise UserError(
            f"{path} is not an IDX file of {'images' if axes == 3 else 'labels'}: it starts with the bytes "
            f"{content[:4].hex(' ') or '(none)'} instead of {magic.hex(' ')}. Replace it with a complete copy."
        )
    shape = tuple(int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4))
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise UserError(
            f"{path} is damaged: it holds {len(content):,} bytes instead of the {expected:,} that its header states. "
            f"Replace it with a complete copy."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
