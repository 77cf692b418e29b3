"""Counts of inputs: right numbers, joined batches, bounded memory, what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aafit.activations import Histogram
from aafit.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counted(histogram: Histogram, u: torch.Tensor) -> torch.Tensor:
    """Between the histogram's own edges, one by one; the last edge belongs to the last bin."""
    edges = histogram.edges
    at = (torch.searchsorted(edges, u.double().flatten(), right=True) - 1).clamp(max=len(edges) - 2)
    return torch.bincount(at, minlength=len(edges) - 1).double()


@given(scale=st.sampled_from([1e-30, 1e-3, 1.0, 3e4, 1e30]), bins=st.integers(2, 300), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_input_is_counted_where_it_lies(scale: float, bins: int, seed: int) -> None:
    u = (torch.randn(50, 7, generator=seeded(seed), dtype=torch.float64) + 0.5) * scale
    histogram = Histogram.of(u, bins=bins)
    assert len(histogram.counts) <= bins
    assert histogram.edges[0] <= u.min()
    assert u.max() <= histogram.edges[-1]
    assert torch.equal(histogram.counts, counted(histogram, u))


@given(seed=st.integers(0, 99), scales=st.lists(st.sampled_from([0.01, 1.0, 20.0, 3000.0]), min_size=2, max_size=4))
@settings(max_examples=40, deadline=None)
def test_joined_batches_are_the_histogram_of_all_in_any_order(seed: int, scales: list[float]) -> None:
    batches = [torch.randn(400, generator=seeded(seed + i)) * scale for i, scale in enumerate(scales)]
    parts = [Histogram.of(batch) for batch in batches]
    for order in (parts, parts[::-1]):
        joined = order[0]
        for part in order[1:]:
            joined = joined.merged(part)
        assert len(joined.counts) <= 8192
        torch.testing.assert_close(joined.counts, counted(joined, torch.cat(batches)), rtol=0, atol=1e-6)


def test_points_are_the_middles_with_their_shares() -> None:
    histogram = Histogram(torch.tensor([-1.0, 0.0, 1.0, 4.0]), torch.tensor([1, 0, 3]))
    middles, shares = histogram.points()
    assert middles.tolist() == [-0.5, 2.5]
    assert shares.tolist() == [0.25, 0.75]
    assert middles.dtype == shares.dtype == torch.float64


def test_other_edges_are_joined_with_counts_spread_evenly() -> None:
    one = Histogram(torch.tensor([0.0, 1.0]), torch.tensor([8.0]))
    other = Histogram(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 1.0]))
    joined = one.merged(other)
    assert joined.counts.sum() == 10
    middles, shares = joined.points()
    assert (middles * shares).sum() == 0.5


def test_coarser_keeps_the_counts() -> None:
    histogram = Histogram.of(torch.randn(5000, generator=seeded()), bins=1000)
    coarse = histogram.coarser(7)
    assert len(coarse.counts) <= 7
    assert coarse.counts.sum() == 5000
    assert (coarse.edges[0], coarse.edges[-1]) == (histogram.edges[0], histogram.edges[-1])


def test_an_outlier_leaves_the_bins_of_the_bulk_narrow() -> None:
    u = torch.randn(20_000, generator=seeded())
    usual = Histogram.of(u)
    histogram = Histogram.of(torch.cat([u, torch.tensor([1e6, -3e4])]))
    left, right = histogram.bulk()
    assert -6 < left < -3
    assert 3 < right < 6
    inner = histogram.between(left, right)
    assert inner.counts.sum() == 20_000
    assert inner.edges.diff().max() <= 4 * usual.edges.diff().max()
    assert len(histogram.counts) < 200_000
    merged = Histogram.of(u).merged(Histogram.of(torch.tensor([1e6, -3e4, 0.0])))
    assert merged.counts.sum() == 20_003
    assert merged.between(-6, 6).edges.diff().max() <= 4 * usual.edges.diff().max()
    assert usual.bulk() == (usual.edges[0].item(), usual.edges[-1].item())


@given(st.lists(st.floats(-1e12, 1e12).map(lambda x: x if abs(x) > 1e-6 else 0.0), min_size=2, max_size=50))
def test_every_input_is_in_its_bin(values: list[float]) -> None:
    u = torch.tensor(values, dtype=torch.float64)
    histogram = Histogram.of(u)
    assert histogram.counts.sum() == len(values)
    assert (histogram.edges.diff() > 0).all()
    at = torch.searchsorted(histogram.edges, u, right=True) - 1
    counted = torch.bincount(at.clamp(0, len(histogram.counts) - 1), minlength=len(histogram.counts))
    assert torch.equal(counted.double(), histogram.counts)


def test_a_single_value_has_one_narrow_bin() -> None:
    histogram = Histogram.of(torch.full((5,), 0.25))
    (value,), (share,) = histogram.points()
    assert (value.item(), share.item(), histogram.counts.tolist()) == (0.25, 1.0, [5.0])
    assert histogram.merged(Histogram.of(torch.tensor([0.0, 1.0]))).counts.sum() == 7


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Histogram.of(torch.empty(0)), "inputs is empty"),
        (lambda: Histogram.of(torch.tensor([1.0, math.nan])), "not finite"),
        (lambda: Histogram.of(torch.tensor([1.0, math.inf])), "not finite"),
        (lambda: Histogram.of(torch.arange(4)), "needs a floating-point tensor; got torch.int64"),
        (lambda: Histogram.of([0.0, 1.0]), "got list"),
        (lambda: Histogram.of(torch.randn(4), bins=1), "bins of a histogram must be .* at least 2; got 1"),
        (lambda: Histogram.of(torch.randn(4), bins=2.5), "at least 2; got 2.5"),
        (lambda: Histogram(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])), "2 edges and 2 counts"),
        (lambda: Histogram(torch.tensor([0.0]), torch.tensor([])), "1 edges and 0 counts"),
        (lambda: Histogram(torch.tensor([0.0, 1.0, 1.0]), torch.ones(2)), "ascending"),
        (lambda: Histogram(torch.tensor([0.0, math.nan]), torch.ones(1)), "edges.*finite"),
        (lambda: Histogram(torch.tensor([0.0, 1.0]), torch.tensor([math.inf])), "counts.*finite"),
        (lambda: Histogram(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([2.0, -1.0])), "0 or more"),
        (lambda: Histogram(torch.tensor([0.0, 1.0]), torch.zeros(1)), "not all of them 0"),
    ],
)
def test_refused(make, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()
