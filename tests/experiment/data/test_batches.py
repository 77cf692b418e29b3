import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from aafit.errors import UserError
from aafit.experiment.data.batches import derived_seed, evaluation_batches, flip_and_shift, training_batches
from aafit.experiment.data.datasets import Split


def numbered_split(count, side=8, channels=1):
    """Random images; image i has label i."""
    generator = np.random.default_rng(7)
    images = generator.integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    return Split(torch.from_numpy(images), torch.arange(count))


def joined(batches):
    x, y = zip(*batches, strict=True)
    return torch.cat(x), torch.cat(y)


# ---------------------------------------------------------------------------------------------------- derived_seed


def test_derived_seed_is_the_head_of_the_sha256():
    assert derived_seed("order", 42, 7) == 4644275174355644384


def test_derived_seeds_differ_and_fit_a_torch_generator():
    seeds = [derived_seed(*key) for key in itertools.product(("order", "augmentation"), range(20), range(20))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


# -------------------------------------------------------------------------------------------------- flip_and_shift

IMAGE = [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("flip", "x", "y", "expected"),
    [
        (False, 0, 0, [[1, 2, 3], [4, 5, 6]]),
        (True, 0, 0, [[3, 2, 1], [6, 5, 4]]),
        (False, 1, 0, [[0, 1, 2], [0, 4, 5]]),
        (False, -1, 0, [[2, 3, 0], [5, 6, 0]]),
        (False, 0, 1, [[0, 0, 0], [1, 2, 3]]),
        (False, 0, -1, [[4, 5, 6], [0, 0, 0]]),
        (True, 1, 0, [[0, 3, 2], [0, 6, 5]]),
        (True, -2, 1, [[0, 0, 0], [1, 0, 0]]),
        (False, 2, -1, [[0, 0, 4], [0, 0, 0]]),
        (False, 3, 0, [[0, 0, 0], [0, 0, 0]]),
        (True, 0, -9, [[0, 0, 0], [0, 0, 0]]),
    ],
)
def test_flip_and_shift_of_one_image(flip, x, y, expected):
    image = torch.tensor(IMAGE, dtype=torch.uint8)[None, :, :, None]
    moved = flip_and_shift(image, torch.tensor([flip]), torch.tensor([[x, y]]))
    assert moved.dtype == torch.uint8
    assert moved[0, :, :, 0].tolist() == expected


def moved_by_hand(image_HWC, flip, x, y):
    """One image, by slices of a black canvas: nothing in common with indices and masks."""
    height, width, channels = image_HWC.shape
    canvas = np.zeros((3 * height, 3 * width, channels), np.uint8)
    canvas[height : 2 * height, width : 2 * width] = image_HWC[:, ::-1] if flip else image_HWC
    return canvas[height - y : 2 * height - y, width - x : 2 * width - x]


@st.composite
def drawn_batches(draw):
    shape = draw(st.tuples(st.integers(0, 4), st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 3])))
    images = draw(npst.arrays(np.uint8, shape))
    flips = draw(st.lists(st.booleans(), min_size=shape[0], max_size=shape[0]))
    x = draw(st.lists(st.integers(-shape[2], shape[2]), min_size=shape[0], max_size=shape[0]))
    y = draw(st.lists(st.integers(-shape[1], shape[1]), min_size=shape[0], max_size=shape[0]))
    return images, flips, x, y


@settings(deadline=None)
@given(drawn_batches())
def test_flip_and_shift_agrees_with_one_image_at_a_time(drawn):
    images, flips, x, y = drawn
    shifts = torch.tensor([x, y], dtype=torch.int64).T
    moved = flip_and_shift(torch.from_numpy(images), torch.tensor(flips, dtype=torch.bool), shifts).numpy()
    expected = [moved_by_hand(*one) for one in zip(images, flips, x, y, strict=True)]
    assert moved.shape == images.shape
    assert all(np.array_equal(*pair) for pair in zip(moved, expected, strict=True))


def test_flip_and_shift_leaves_its_input_alone():
    images = numbered_split(5).images_BHWC
    before = images.clone()
    flip_and_shift(images, torch.ones(5, dtype=torch.bool), torch.ones(5, 2, dtype=torch.int64))
    assert torch.equal(images, before)


# ------------------------------------------------------------------------------------- the distribution of the draws

MARK_ROW, MARK_COLUMN = 14, 9  # off the middle by more than a shift can make up for, so a flip shows


def marked_images(count, height, width):
    images = torch.zeros(count, height, width, 1, dtype=torch.uint8)
    images[:, MARK_ROW, MARK_COLUMN] = 255
    return Split(images, torch.zeros(count, dtype=torch.int64))


def seen_draws(x_BCHW):
    """(flip, x, y) of each image, from where the mark is now."""
    width = x_BCHW.shape[3]
    _, _, rows, columns = (x_BCHW == 1).nonzero(as_tuple=True)
    assert len(rows) == len(x_BCHW)
    flips = columns >= width / 2
    return flips, columns - torch.where(flips, width - 1 - MARK_COLUMN, MARK_COLUMN), rows - MARK_ROW


def shift_probabilities(side):
    """P(round(uniform(-m, m)) = -3, ..., 3) for m = side / 10 between 2.5 and 3.5."""
    reach = side / 10
    edge = (reach - 2.5) / (2 * reach)
    return torch.tensor([edge, *[1 / (2 * reach)] * 5, edge], dtype=torch.float64)


def test_the_shift_probabilities_are_those_of_the_protocol():
    expected = torch.tensor([0.7, 1, 1, 1, 1, 1, 0.7], dtype=torch.float64) / 6.4
    torch.testing.assert_close(shift_probabilities(32), expected)
    torch.testing.assert_close(shift_probabilities(28).sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (28, 32)])
def test_flips_and_shifts_have_the_distribution_of_the_protocol_jointly(height, width):
    count = 40_000
    x_BCHW, _ = joined(training_batches(marked_images(count, height, width), 1000, seed=3, epoch=5))
    flips, x, y = seen_draws(x_BCHW)
    assert set(x.tolist()) == set(y.tolist()) == set(range(-3, 4))
    counted = torch.zeros(2, 7, 7, dtype=torch.float64)
    counted.index_put_((flips.long(), x + 3, y + 3), torch.ones(count, dtype=torch.float64), accumulate=True)
    expected = count * 0.5 * shift_probabilities(width)[:, None] * shift_probabilities(height)[None, :]
    chi_square = ((counted - expected) ** 2 / expected).sum().item()
    # 97 degrees of freedom: mean 97, standard deviation 13.9. Shifts by the other side's reach give over 1,000.
    assert 97 - 5 * 13.9 < chi_square < 97 + 5 * 13.9


def test_the_draws_of_two_epochs_are_unrelated():
    split = marked_images(2000, 32, 32)
    draws = [seen_draws(joined(training_batches(split, 500, 42, epoch))[0]) for epoch in (0, 1)]
    for first, second in zip(*draws, strict=True):
        correlation = torch.corrcoef(torch.stack([first.double(), second.double()]))[0, 1]
        assert abs(correlation) < 0.1


def test_an_augmented_batch_is_the_flipped_and_shifted_images():
    split = numbered_split(300, side=32, channels=3)
    split.images_BHWC.clamp_(max=254)
    split.images_BHWC[:, MARK_ROW, MARK_COLUMN] = 255
    for x_BCHW, y_B in training_batches(split, 128, 42, 1):
        draws = seen_draws(x_BCHW[:, :1])
        for image, label, flip, x, y in zip(x_BCHW, y_B, *draws, strict=True):
            expected = moved_by_hand(split.images_BHWC[label].numpy(), flip, x, y)
            assert np.array_equal(image.permute(1, 2, 0).mul(255).round().numpy(), expected)


# ------------------------------------------------------------------------------------------------- training_batches


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 5, [3]), (1, 1, [1])]
)
def test_an_epoch_has_every_image_once_and_keeps_the_last_batch(count, batch_size, sizes):
    batches = list(training_batches(numbered_split(count), batch_size, 42, 0))
    assert [len(y) for _, y in batches] == [len(x) for x, _ in batches] == sizes
    assert sorted(joined(batches)[1].tolist()) == list(range(count))


def test_without_shuffle_and_augmentation_the_images_come_as_they_are():
    split = numbered_split(10, channels=3)
    x, y = joined(training_batches(split, 4, 42, 0, augment=False, shuffle=False))
    assert y.tolist() == list(range(10))
    assert torch.equal(x, split.images_BHWC.permute(0, 3, 1, 2).float() / 255)


def test_shuffled_images_keep_their_labels():
    split = numbered_split(50)
    x, y = joined(training_batches(split, 16, 42, 0, augment=False))
    assert y.tolist() != list(range(50))
    assert torch.equal(x, split.images_BHWC[y].permute(0, 3, 1, 2).float() / 255)


def test_an_epoch_depends_on_seed_and_epoch_alone():
    split = numbered_split(200)
    first = joined(training_batches(split, 32, 42, 3))
    torch.manual_seed(99)
    torch.rand(17)
    state = torch.get_rng_state()
    again = joined(training_batches(split, 32, 42, 3))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    for seed, epoch in ((42, 4), (43, 3), (3, 42)):
        x, y = joined(training_batches(split, 32, seed, epoch))
        assert not torch.equal(y, first[1])
        assert not torch.equal(x, first[0])


def test_order_and_augmentation_do_not_depend_on_each_other_nor_on_the_batch_size():
    split = marked_images(200, 32, 32)
    split = Split(split.images_BHWC, torch.arange(200))
    x, y = joined(training_batches(split, 32, 42, 3))
    assert torch.equal(joined(training_batches(split, 32, 42, 3, augment=False))[1], y)
    assert torch.equal(joined(training_batches(split, 32, 42, 3, shuffle=False))[0], x)
    whole = joined(training_batches(split, 200, 42, 3))
    assert torch.equal(whole[0], x)
    assert torch.equal(whole[1], y)


# --------------------------------------------------------------------------------------------------- what comes out

MAKERS = [
    pytest.param(lambda split, dtype: training_batches(split, 6, 42, 0, dtype=dtype), id="augmented"),
    pytest.param(lambda split, dtype: training_batches(split, 6, 42, 0, augment=False, dtype=dtype), id="plain"),
    pytest.param(lambda split, dtype: evaluation_batches(split, 6, dtype=dtype), id="evaluation"),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", MAKERS)
def test_batches_are_channels_last_in_the_dtype_from_0_to_1(make, dtype):
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(12, 16, 16, 3)
    split = Split(values, torch.arange(12))
    for x, y in make(split, dtype):
        assert x.dtype == dtype
        assert x.shape == (6, 3, 16, 16)
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert y.dtype == torch.int64
        allowed = (torch.arange(256, dtype=torch.float64) / 255).to(dtype)
        assert torch.isin(x.float(), allowed.float()).all()
        assert x.max() <= 1
        assert x.min() == 0


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4, 2]), (10, [10]), (1000, [10])])
def test_evaluation_batches_are_the_split_in_its_order(batch_size, sizes):
    split = numbered_split(10, channels=3)
    batches = list(evaluation_batches(split, batch_size))
    assert [len(y) for _, y in batches] == sizes
    x, y = joined(batches)
    assert torch.equal(y, split.labels_B)
    assert torch.equal(x, split.images_BHWC.permute(0, 3, 1, 2).float() / 255)


@pytest.mark.parametrize("batch_size", [0, -3])
@pytest.mark.parametrize("make", [lambda split, size: training_batches(split, size, 42, 0), evaluation_batches])
def test_a_batch_needs_an_image(make, batch_size):
    with pytest.raises(UserError, match=f"batch size must be an integer of at least 1; got {batch_size}"):
        make(numbered_split(3), batch_size)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_sees_the_same_batches():
    split = numbered_split(300, side=32, channels=3)
    pairs = zip(training_batches(split, 128, 42, 1), training_batches(split.to("cuda"), 128, 42, 1), strict=True)
    for (x, y), (x_cuda, y_cuda) in pairs:
        assert x_cuda.device.type == "cuda"
        assert torch.equal(x_cuda.cpu(), x)
        assert torch.equal(y_cuda.cpu(), y)
