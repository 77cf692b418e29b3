"""Padding does not count in what is fitted to the inputs of a layer."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.activations import AHAF, Histogram
from aafit.activations.compiled import compiled_loops
from aafit.identification.coordinates import Coordinates
from aafit.identification.layerwise import match_layers
from aafit.identification.prior import Prior
from aafit.networks.adaptive import adaptive_activations, adaptive_parameters
from aafit.networks.batches import Batch, without_padding
from aafit.networks.surgery import replace_activations
from aafit.studies.inputs import input_distributions

X = torch.arange(12.0).reshape(2, 3, 2)
MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])
COUNTED = torch.tensor([[0.0, 1.0], [2.0, 3.0], [6.0, 7.0]])
ADDED = (1 - MASK) * torch.finfo(torch.float32).min


@pytest.fixture(autouse=True)
def _not_compiled() -> Iterator[None]:
    with compiled_loops(False):
        yield


@pytest.mark.parametrize("mask", [MASK, MASK.bool(), MASK.float()])
@pytest.mark.parametrize("shape", [(1,), (2,), (1, 2)])
def test_the_positions_that_count(mask: Tensor, shape: tuple[int, ...]) -> None:
    assert torch.equal(without_padding(X, Batch((X,), {"attention_mask": mask}), shape), COUNTED)


@pytest.mark.parametrize(
    ("x", "kwargs", "shape"),
    [
        (X, {}, (1,)),
        (X, {"mask": MASK}, (1,)),
        (X, {"attention_mask": None}, (1,)),
        (X, {"attention_mask": MASK[:, :2]}, (1,)),
        (X, {"attention_mask": MASK[:, None, None]}, (1,)),
        (X[..., 0], {"attention_mask": MASK}, (1,)),
        (X.reshape(6, 2), {"attention_mask": MASK}, (1,)),
        (X, {"attention_mask": ADDED}, (1,)),
        (X, {"attention_mask": torch.zeros(2, 3)}, (1,)),
        (X, {"attention_mask": MASK}, (3, 2)),
        (X, {"attention_mask": MASK}, (3, 1)),
    ],
    ids=[
        "no mask",
        "another name",
        "none given",
        "another length",
        "for each head",
        "no channels",
        "positions as rows",
        "added to scores",
        "nothing counts",
        "by neuron",
        "by position",
    ],
)
def test_all_counts_where_padding_is_not_told(x: Tensor, kwargs: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert without_padding(x, Batch((x,), kwargs), shape) is x


class Sequences(nn.Module):
    """Two layers of activations over sequences of tokens; that of padding, 0, is far from all others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.fc1, self.fc2 = nn.Embedding(40, 4), nn.Linear(4, 6), nn.Linear(6, 5)
        self.act1, self.act2 = nn.GELU(), nn.GELU()
        with torch.no_grad():
            self.embed.weight[0] = 300.0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x_BTC = self.fc1(self.embed(input_ids))
        y_BTC: Tensor = self.act2(self.fc2(self.act1(x_BTC)))
        return y_BTC * attention_mask.unsqueeze(2)


def sequences(padded: bool) -> dict[str, Tensor]:
    """The same sequences of 5 tokens, with 7 more of padding or without."""
    ids = torch.randint(1, 40, (30, 5), generator=torch.Generator().manual_seed(1))
    pad = 7 * padded
    return {"input_ids": F.pad(ids, (0, pad)), "attention_mask": F.pad(torch.ones_like(ids), (0, pad))}


def parameters(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in adaptive_parameters(net).items()}


def test_activations_are_fitted_to_what_is_no_padding() -> None:
    """300 in all four numbers of a token that is padding is far from what any other gives."""
    seen: list[Histogram] = []

    def fit(function: Any, histogram: Histogram) -> AHAF:
        seen.append(histogram)
        return AHAF.like("SiLU")

    base = Sequences().eval()
    for padded in (False, True):
        replace_activations(base, {"GELU": fit}, sample=sequences(padded))
    assert [histogram.counts.sum() for histogram in seen] == [30 * 5 * 6, 30 * 5 * 5] * 2
    for one, other in zip(seen[:2], seen[2:], strict=True):
        assert torch.equal(one.edges, other.edges)


INPUTS = torch.linspace(-2, 2, 50, dtype=torch.float64)


@pytest.mark.parametrize(("sharing", "inputs_of_base"), [("layer", False), ("channel", True)])
def test_layers_are_matched_on_what_is_no_padding(sharing: Any, inputs_of_base: bool) -> None:
    base, found = Sequences().eval(), []
    for padded in (False, True):
        batch = sequences(padded)
        net = replace_activations(base, {"GELU": AHAF.like("SiLU")}, sharing, batch)[0].eval()
        coordinates = Coordinates(net)
        prior = Prior(net, coordinates, coordinates.read(), dict.fromkeys(adaptive_activations(net), INPUTS))
        rows = match_layers(net, base, [batch], prior, inputs_of_base=inputs_of_base)
        found.append(([row.after for row in rows], parameters(net)))
    (left, one), (same_left, other) = found
    assert max(left) < 0.05
    assert same_left == pytest.approx(left, rel=1e-3)
    assert all(torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-3) for name in one)


def test_a_study_counts_what_is_no_padding() -> None:
    base = Sequences().eval()
    paths = ["act1", "act2"]
    one, other = (input_distributions(base, paths, [Batch((), sequences(padded))]) for padded in (False, True))
    for row, same in zip(one, other, strict=True):
        assert row.elements == same.elements
        assert (row.low, row.high) == pytest.approx((same.low, same.high), rel=1e-5)
