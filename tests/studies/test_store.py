"""The saved parts of a study are restored bit-identical, and damage is noticed."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aafit.errors import UserError
from aafit.studies.store import Store, decode, encode


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
    again = decode(Outer, json.loads(json.dumps(encode(value))))
    assert torch.equal(again.table.nan_to_num(-1), value.table.nan_to_num(-1))
    assert repr(again).replace(repr(again.table), "") == repr(value).replace(repr(value.table), "")


def test_none_stays_none():
    value = Outer((), {}, None, None, False)
    assert decode(Outer, encode(value)) == value


def test_a_field_too_many_is_refused():
    value = encode(Inner("a", (), (1, "b"))) | {"more": 1}
    with pytest.raises(KeyError):
        decode(Inner, value)


def test_what_cannot_be_saved_is_refused():
    with pytest.raises(TypeError, match="A set cannot be saved"):
        encode({1, 2})


def test_a_part_is_computed_once(tmp_path):
    store = Store(tmp_path, "key")
    first = store.value("part", tuple[float, ...], lambda: (0.1, math.inf))
    assert Store(tmp_path, "key").value("part", tuple[float, ...], lambda: ()) == first
    assert Store(None, "key").read("part", tuple[float, ...]) is None


@pytest.mark.parametrize("kind", ["tensor", "number"])
def test_a_changed_value_of_a_part_is_noticed(kind, tmp_path):
    Store(tmp_path, "key").write("part", (torch.arange(100.0), 0.25))
    file = tmp_path / "key" / "part.json"
    text = file.read_text()
    middle = text.index('"tensor": "') + 400
    other = "B" if text[middle] != "B" else "C"
    changed = text.replace("0.25", "0.35") if kind == "number" else text[:middle] + other + text[middle + 1 :]
    assert changed != text
    file.write_text(changed)
    with pytest.raises(UserError, match=r"part\.json is damaged"):
        Store(tmp_path, "key").read("part", tuple[torch.Tensor, float])
