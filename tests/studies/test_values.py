"""What a study keeps comes back with the same bits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aafit.studies.values import decoded, encoded


@dataclass(frozen=True)
class Inner:
    name: str
    values: tuple[float, ...]
    pair: tuple[int, str]


@dataclass(frozen=True)
class Outer:
    rows: tuple[Inner, ...]
    by_name: Mapping[str, Inner]
    maybe: float | None
    table: Tensor | None
    flag: bool


@given(values=st.lists(st.floats(), max_size=4), maybe=st.none() | st.floats(), text=st.text(max_size=5))
def test_a_value_comes_back(values, maybe, text):
    inner = Inner(text, tuple(values), (3, text))
    value = Outer((inner, inner), {"a": inner}, maybe, torch.tensor([[1.0, math.nan]], dtype=torch.float64), True)
    tensors = {}
    again = decoded(Outer, encoded(value, tensors), tensors)
    assert torch.equal(again.table.nan_to_num(-1), value.table.nan_to_num(-1))
    assert repr(again).replace(repr(again.table), "") == repr(value).replace(repr(value.table), "")


def test_none_stays_none():
    value = Outer((), {}, None, None, False)
    assert decoded(Outer, encoded(value, {}), {}) == value


def test_a_field_too_many_is_refused():
    value = encoded(Inner("a", (), (1, "b")), {}) | {"more": 1}
    with pytest.raises(KeyError):
        decoded(Inner, value, {})


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(TypeError, match="A set cannot be kept"):
        encoded({1, 2}, {})
