import gzip

import numpy as np
import pytest
from data_files import RECORDS, cifar10_arrays, cifar10_records, fashion_arrays, idx

from aafit.errors import UserError
from aafit.experiment.data.file_formats import read_cifar10, read_idx_pair


@pytest.fixture
def few_records(monkeypatch):
    monkeypatch.setattr("aafit.experiment.data.file_formats.CIFAR10_RECORDS", RECORDS)


def write(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# --------------------------------------------------------------------------------------------------------- CIFAR-10


def test_cifar10_is_read_record_by_record(few_records, tmp_path):
    images, labels = cifar10_arrays(0)
    read_images, read_labels = read_cifar10(write(tmp_path / "data_batch_1.bin", cifar10_records(images, labels)))
    assert np.array_equal(read_images, images.transpose(0, 2, 3, 1))
    assert np.array_equal(read_labels, labels)


def test_the_planes_of_cifar10_are_red_green_blue_row_by_row(monkeypatch, tmp_path):
    monkeypatch.setattr("aafit.experiment.data.file_formats.CIFAR10_RECORDS", 1)
    record = bytes([7]) + bytes([10]) * 1024 + bytes([20]) * 1024 + bytes([30]) + bytes([40]) + bytes([50]) * 1022
    images, labels = read_cifar10(write(tmp_path / "test_batch.bin", record))
    assert labels.tolist() == [7]
    assert images[0, :2, :2].tolist() == [[[10, 20, 30], [10, 20, 40]], [[10, 20, 50], [10, 20, 50]]]


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda content: content[:-1], "it has 122,919 bytes instead of 122,920 (40 records of 3,073)"),
        (lambda content: content[: 3073 * 39], "it has 119,847 bytes instead of 122,920"),
        (lambda content: content * 2, "it has 245,840 bytes instead of 122,920"),
        (lambda content: b"", "it has 0 bytes instead of 122,920"),
    ],
)
def test_a_cifar10_file_of_another_size(few_records, tmp_path, alter, message):
    path = write(tmp_path / "data_batch_1.bin", alter(cifar10_records(*cifar10_arrays(0))))
    with pytest.raises(UserError) as caught:
        read_cifar10(path)
    assert str(caught.value).startswith(f"{path} is not a file of CIFAR-10's binary version: {message}")
    assert str(caught.value).endswith("Replace it with a complete copy.")


def test_a_cifar10_file_has_ten_thousand_records(tmp_path):
    whole = np.zeros((10_000, 3073), np.uint8)
    images, labels = read_cifar10(write(tmp_path / "whole.bin", whole.tobytes()))
    assert (images.shape, labels.shape) == ((10_000, 32, 32, 3), (10_000,))
    with pytest.raises(UserError, match=r"30,729,999 bytes instead of 30,730,000 \(10,000 records of 3,073\)"):
        read_cifar10(write(tmp_path / "cut.bin", whole.tobytes()[:-1]))


# -------------------------------------------------------------------------------------------------------------- IDX

IMAGES, LABELS = fashion_arrays()[:2]


@pytest.fixture(params=["", ".gz"])
def pair(request, tmp_path):
    return (
        write(tmp_path / f"images-idx3-ubyte{request.param}", idx(IMAGES)),
        write(tmp_path / f"labels-idx1-ubyte{request.param}", idx(LABELS)),
    )


def test_idx_files_are_read_packed_or_plain(pair):
    images, labels = read_idx_pair(*pair)
    assert np.array_equal(images, IMAGES[..., None])
    assert np.array_equal(labels, LABELS)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (0, idx(LABELS), "is not an IDX file of images: it starts with the bytes 00 00 08 01 instead of 00 00 08 03."),
        (1, idx(IMAGES), "is not an IDX file of labels: it starts with the bytes 00 00 08 03 instead of 00 00 08 01."),
        (0, b"\x89PNG and so on", "is not an IDX file of images: it starts with the bytes 89 50 4e 47 instead of"),
        (1, b"", "is not an IDX file of labels: it starts with the bytes (none) instead of"),
        (0, idx(IMAGES)[:-1], "is damaged: it holds 47,055 bytes instead of the 47,056 that its header states."),
        (1, idx(LABELS) + b"\0", "is damaged: it holds 69 bytes instead of the 68 that its header states."),
        (0, idx(IMAGES)[:10], "is damaged: it holds 10 bytes instead of the "),
        (0, idx(IMAGES[:, :20]), "holds images of 20x28 pixels instead of 28x28."),
        (0, idx(IMAGES[:59]), "holds 59 images, but "),
        (1, idx(LABELS[:59]), "holds 60 images, but "),
    ],
)
def test_idx_files_that_are_wrong(pair, file, content, message):
    write(pair[file], content)
    with pytest.raises(UserError) as caught:
        read_idx_pair(*pair)
    assert message in str(caught.value)
    assert str(pair[file]) in str(caught.value)
    assert "Replace " in str(caught.value)


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda packed: packed[: len(packed) // 2], id="cut"),
        pytest.param(lambda packed: packed[:-4] + b"\0\0\0\0", id="wrong length"),
        pytest.param(lambda packed: packed[:12] + b"\xff" * 40 + packed[52:], id="altered"),
        pytest.param(lambda packed: b"<html>Not found</html>", id="not gzip"),
    ],
)
def test_a_packed_file_that_is_damaged(tmp_path, alter):
    images, labels = write(tmp_path / "images.gz", idx(IMAGES)), write(tmp_path / "labels.gz", idx(LABELS))
    images.write_bytes(alter(images.read_bytes()))
    with pytest.raises(UserError) as caught:
        read_idx_pair(images, labels)
    assert str(caught.value).startswith(f"{images} is damaged: ")
    assert str(caught.value).endswith("Replace it with a complete copy.")


def test_a_file_that_expands_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("aafit.experiment.data.file_formats.LARGEST", 100_000)
    (tmp_path / "data_batch_1.bin.gz").write_bytes(gzip.compress(bytes(100_001)))
    with pytest.raises(UserError, match=r"data_batch_1\.bin\.gz expands to more than 100,000 bytes"):
        read_cifar10(tmp_path / "data_batch_1.bin.gz")
