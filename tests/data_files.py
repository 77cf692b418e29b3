"""Small data sets in the layouts of the published ones, for the tests that read them."""

import gzip
import os
import stat
from contextlib import contextmanager
from pathlib import Path

import numpy as np

RECORDS = 40  # in each file of CIFAR-10
CIFAR10_FILES = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
IDX_FILES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def cifar10_arrays(seed):
    """(images_BCHW, labels_B), every class alike."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (RECORDS, 3, 32, 32), dtype=np.uint8)
    return images, (generator.permutation(RECORDS) % 10).astype(np.uint8)


def cifar10_records(images, labels):
    return np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1).tobytes()


def write_cifar10(folder):
    folder.mkdir(parents=True)
    for seed, name in enumerate(CIFAR10_FILES):
        (folder / name).write_bytes(cifar10_records(*cifar10_arrays(seed)))
    return folder


def fashion_arrays():
    """Train images (BHW) and labels, test images and labels."""
    generator = np.random.default_rng(5)
    arrays = []
    for count in (60, 20):
        arrays.append(generator.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        arrays.append((generator.permutation(count) % 10).astype(np.uint8))
    return arrays


def idx(values):
    head = bytes((0, 0, 8, values.ndim)) + b"".join(length.to_bytes(4, "big") for length in values.shape)
    return head + values.tobytes()


def write_fashion(folder, packed=True):
    folder.mkdir(parents=True)
    for name, values in zip(IDX_FILES, fashion_arrays(), strict=True):
        content = idx(values)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return folder


@contextmanager
def without_privileges():
    """Permissions do not bind the root user: be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def readable_by_all(path):
    for one in (path, *path.parents):
        if one.stat().st_uid == os.geteuid() and one != Path("/"):
            one.chmod(one.stat().st_mode | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
