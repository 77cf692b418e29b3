"""Which known function a form is nearest to, and how far away."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aafit.activations import LEAF
from aafit.networks.kinds import KNOWN, distance, nearest_functions

U = torch.linspace(-8, 8, 801, dtype=torch.float64)


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_function_is_nearest_to_itself(name: str) -> None:
    near = nearest_functions(U, KNOWN[name](U))
    assert (near[0].name, near[0].rms) == (name, 0)
    assert {row.name for row in near} == {*KNOWN}
    assert [row.rms for row in near] == sorted(row.rms for row in near)
    assert near[1].rms > 0


@pytest.mark.parametrize("name", ["ReLU", "SiLU", "Tanh", "Sigmoid"])
def test_a_leaf_is_nearest_to_what_it_started_as(name: str) -> None:
    y = LEAF.like(name).double()(U)
    assert nearest_functions(U, y)[0].name == name


def test_where_the_weight_is_counts() -> None:
    # Above 0 the form is ReLU, below it is Tanh.
    y = torch.where(U > 0, U, torch.tanh(U))
    above, below = ((side.double() / side.sum()) for side in (U > 0, U < 0))
    assert nearest_functions(U, y, above)[0].rms == 0
    assert nearest_functions(U, y, above)[0].name in ("ReLU", "LeakyReLU", "ELU", "Identity", "SELU")
    assert nearest_functions(U, y, below)[0].name == "Tanh"


@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-3, 3), scale=st.floats(0.1, 9))
def test_the_distance_has_no_unit(shift: float, scale: float) -> None:
    y = U.cos()
    assert distance(y * scale, (y + shift) * scale) == pytest.approx(abs(shift) / y.std(correction=0).item(), abs=1e-9)


def test_a_constant_form() -> None:
    near = nearest_functions(U, torch.zeros_like(U))
    assert near[0].distance == math.inf
    assert 0 < near[0].rms == min(row.rms for row in near)
    assert distance(torch.ones(3), torch.ones(3)) == 0
