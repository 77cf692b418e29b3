"""Batches of every form, right and wrong."""

from collections import UserDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import aafit
from aafit.errors import UserError
from aafit.networks.batches import Batch, as_batch, as_inputs

X, Z, Y = torch.arange(6.0).reshape(3, 2), torch.ones(3, 4), torch.tensor([0, 1, 0])
IDS = torch.tensor([[1, 2], [3, 0], [4, 5]])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize(
    ("form", "args", "kwargs", "target"),
    [
        (X, (X,), {}, None),
        ([X], (X,), {}, None),
        ((X, Y), (X,), {}, Y),
        ([X, Y], (X,), {}, Y),
        ((X, None), (X,), {}, None),
        ((X, Z, Y), (X, Z), {}, Y),
        ((X, {"mask": Z}, Y), (X,), {"mask": Z}, Y),
        ({"input_ids": IDS}, (), {"input_ids": IDS}, None),
        ({"input_ids": IDS, "labels": Y}, (), {"input_ids": IDS}, Y),
        (({"input_ids": IDS}, Y), (), {"input_ids": IDS}, Y),
        (UserDict({"input_ids": IDS, "labels": Y}), (), {"input_ids": IDS}, Y),
        (Batch((X,), {}, Y), (X,), {}, Y),
    ],
)
def test_the_forms_of_a_batch(form: Any, args: Any, kwargs: Any, target: Any) -> None:
    batch = as_batch(form)
    assert same((batch.args, batch.kwargs, batch.target), (args, kwargs, target))
    assert len(batch) == 3


@pytest.mark.parametrize(
    ("form", "args", "kwargs"),
    [
        (X, (X,), {}),
        ((X, Z), (X, Z), {}),
        ([X, None, {"mask": Z}], (X, None), {"mask": Z}),
        (UserDict({"input_ids": IDS, "labels": Y}), (), {"input_ids": IDS, "labels": Y}),
        (Batch((X,), {}, Y), (X,), {}),
    ],
)
def test_of_a_sample_everything_is_input(form: Any, args: Any, kwargs: Any) -> None:
    sample = as_inputs(form)
    assert same((sample.args, sample.kwargs, sample.target), (args, kwargs, None))


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        (np.ones((3, 2)), "is a ndarray: give a tensor .*a tuple .*a dictionary"),
        ("text", "is a str"),
        (None, "is a NoneType"),
        ({1, 2}, "is a set"),
        ((), "no tensor among its inputs .it is empty"),
        ({}, "no tensor"),
        ((np.ones(3), Y), "no tensor among its inputs .ndarray"),
        ({"labels": Y}, "no tensor"),
        ({"text": ["a", "b"]}, "no tensor"),
        ({0: X}, "the key 0"),
        (torch.tensor(1.0), "without axes"),
        (Batch((), {}), "no tensor"),
    ],
)
def test_what_is_no_batch(form: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^The batch .*{sentence}"):
        as_batch(form)


@pytest.mark.parametrize("data", [DataLoader([X]), TensorDataset(X)])  # type: ignore[arg-type]
def test_a_loader_is_no_sample(data: Any) -> None:
    with pytest.raises(UserError, match=r"The sample is a .*: give one of its batches"):
        as_inputs(data)


@pytest.mark.parametrize(("args", "kwargs"), [(X, {}), ((X,), None), ([X], {})])
def test_a_batch_has_a_tuple_and_a_dictionary(args: Any, kwargs: Any) -> None:
    with pytest.raises(UserError, match=r"give a tuple and a dictionary, as Batch\(\(x,\), {}, target\)"):
        Batch(args, kwargs)


def test_a_sample_is_called_one() -> None:
    with pytest.raises(UserError, match="The sample is a int"):
        as_inputs(3)


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(sizes=SIZES)
def test_parts_joined_are_the_whole(sizes: list[int]) -> None:
    rows, shared = sum(sizes), torch.ones(99, 2)
    whole = as_batch((torch.randn(rows, 2), {"a": torch.arange(rows), "all": shared, "n": [3]}, torch.arange(rows)))
    parts, start = [], 0
    for size in sizes:
        parts.append(whole.part(start, start + size))
        assert len(parts[-1]) == len(parts[-1].target) == size
        assert parts[-1].kwargs["all"] is shared
        start += size
    joined = Batch.joined(parts)
    assert same((joined.args, joined.kwargs, joined.target), (whole.args, whole.kwargs, whole.target))


@given(rows=st.integers(1, 6), sizes=SIZES)
def test_a_tensor_of_all_samples_stays_one_in_parts_with_as_many_rows(rows: int, sizes: list[int]) -> None:
    count, table = sum(sizes) + 12, torch.randn(rows, 2)
    whole = as_batch((torch.randn(count, 2), {"table": table}, torch.arange(count)))
    part = whole.part(0, rows)
    for again in (part, part.part(0, 1), part.at(torch.tensor([0])), part.without_target().cloned().part(0, 1)):
        assert torch.equal(again.kwargs["table"], table)
    # Joined, the samples may be as many as the table has rows.
    pieces = list(whole.part(0, 2 * rows).batches(rows))
    joined = Batch.joined(pieces)
    assert len(joined) == 2 * rows
    assert joined.kwargs["table"] is table
    assert joined.part(0, 1).kwargs["table"] is table


def test_a_table_with_as_many_rows_as_the_samples_of_the_first_steps() -> None:
    """A network whose samples select rows of a table, which every sample needs whole."""
    torch.manual_seed(0)

    class Selecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.last = nn.SiLU(), nn.Linear(4, 3)

        def forward(self, index: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            return self.last(self.act(table[index]))

    base, found = Selecting(), []
    index, table, y = torch.randint(0, 500, (1000,)), torch.randn(501, 4), torch.randint(0, 3, (1000,))
    for rows in (500, 501):
        net, _ = aafit.replace_activations(base, {"SiLU": aafit.AHAF.like("SiLU")}, sample=(index[:2], table))
        found.append(aafit.identify(net, [aafit.Batch((index,), {"table": table[:rows]}, y)], prior=1.0, errors=False))
    assert found[0].values == found[1].values


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ([], "no batch"),
        ([{"a": X}, {"b": X}], "different inputs"),
        ([(X, Y), (X, None)], "different inputs"),
        ([torch.ones(2, 3), torch.ones(2, 4)], r"\(2, 3\) and \(2, 4\).*padding"),
        ([(X, torch.ones(7), Y), (X, torch.zeros(7), Y)], "belongs to all samples"),
    ],
)
def test_what_cannot_be_joined(batches: list[Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Batch.joined([as_batch(batch) for batch in batches])


def test_a_clone_has_memory_of_its_own_and_nests() -> None:
    pair = namedtuple("pair", "a b")
    batch = as_batch((pair(X.clone(), [Z]), {"mask": Z}, {"y": Y}))
    clone = batch.cloned()
    clone.args[0].a.zero_()
    assert isinstance(clone.args[0], pair)
    assert same(batch.args[0].a, X)
    assert same(clone.target, batch.target)
    moved = batch.to("meta")
    assert moved.args[0].b[0].device.type == moved.target["y"].device.type == moved.device.type == "meta"


def test_floating_point_inputs_in_another_type() -> None:
    batch = as_batch((X, {"ids": IDS, "mask": [Z]}, Z)).floating(torch.float64)
    assert (batch.args[0].dtype, batch.kwargs["mask"][0].dtype) == (torch.float64, torch.float64)
    assert (batch.kwargs["ids"].dtype, batch.target.dtype) == (torch.int64, torch.float32)
