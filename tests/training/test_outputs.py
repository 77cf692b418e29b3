"""Networks that return every form, and what is meant of it, right and wrong."""

from collections import UserDict
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.networks.batches import Batch, as_batch
from aafit.training.predictor import run, takes_inputs

X, Z, Y = torch.arange(6.0).reshape(3, 2), torch.ones(3, 4), torch.tensor([0, 1, 0])
IDS = torch.tensor([[1, 2], [3, 0], [4, 5]])


@dataclass
class Fields:
    last_hidden_state: Tensor
    pooled: Tensor | None = None


@dataclass
class Logits:
    logits: Tensor


class Returns(nn.Module):
    """A network that returns what is made of its input."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Any:
        return self.make(x * scale)


@pytest.mark.parametrize(
    ("make", "output"),
    [
        (lambda x: x, None),
        (Logits, None),
        (lambda x: {"loss": 0, "logits": x}, None),
        (lambda x: UserDict(logits=x), None),
        (lambda x: (x,), None),
        (lambda x: [x], None),
        (lambda x: (x, None), lambda out: out[0]),
        (Fields, lambda out: out.last_hidden_state),
        (lambda x: x / 2, lambda out: out * 2),
    ],
)
def test_the_forms_of_an_output(make: Any, output: Any) -> None:
    assert torch.equal(run(Returns(make), as_batch((X, {"scale": 2.0}, Y)), output), 2 * X)


@pytest.mark.parametrize(
    ("make", "output", "sentence"),
    [
        (Fields, None, "a Fields with last_hidden_state, pooled: .*output=lambda out: out.last_hidden_state"),
        (lambda x: {"a": x, "b": x}, None, r"a dict with a, b: .*output=lambda out: out\['a'\]"),
        (lambda x: (x, x), None, r"a tuple of 2 elements: .*output=lambda out: out\[0\]"),
        (lambda x: None, None, "returns a NoneType: .*output="),
        (lambda x: x, lambda out: 3, "output returned a int, not a tensor: the network returns a Tensor"),
        (lambda x: x, lambda out: None, "output returned a NoneType"),
        (Fields, lambda out: out.logits, "output failed .*'logits'.* a Fields with last_hidden_state, pooled"),
        (lambda x: x, lambda out: out.reshape(7), "output failed .shape '.7.' is invalid.* returns: a Tensor"),
        (lambda x: x, lambda out: list(out).index(3), "output failed .*returns: a Tensor"),
        (lambda x: x.sum(), None, "^The network gives one number for a whole batch: let output= give one or more for"),
        (lambda x: x, lambda out: out.mean(), "^The function given as output gives one number for a whole batch"),
    ],
)
def test_what_is_no_output(make: Any, output: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        run(Returns(make), as_batch(X), output)


@pytest.mark.parametrize(
    ("net", "batch", "sentence"),
    [
        (nn.Linear(3, 1), X, r"forward of the batch \(\(3, 2\), float32, on cpu\) failed: .*shapes"),
        (nn.Linear(2, 1), X.byte(), r"uint8.*If these are images of bytes"),
        (nn.Linear(2, 1), {"ids": X}, r"ids \(3, 2\), float32.*unexpected keyword argument 'ids'"),
        (nn.Embedding(3, 1), IDS, "int64.*failed: index out of range in self"),
    ],
)
def test_what_a_network_refuses(net: nn.Module, batch: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        run(net, as_batch(batch))
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("error", [ValueError, AssertionError, StopIteration, OSError, ZeroDivisionError])
def test_an_error_of_any_kind_is_shown_under_one_sentence(error: type[Exception]) -> None:
    def fails(x: Tensor) -> Tensor:
        raise error("the number of channels is odd")

    with pytest.raises(UserError, match=r"^The network's forward of the batch \(.*odd\.$") as caught:
        run(Returns(fails), as_batch(X))
    assert isinstance(caught.value.__cause__, error)


def test_integer_inputs_are_as_good_as_others() -> None:
    assert run(nn.Embedding(6, 2), as_batch({"input": IDS})).shape == (3, 2, 2)


def _first_of_two(out: Tensor, batch: Batch, scale: float = 2.0) -> Tensor:
    return out * batch.first * scale


@pytest.mark.parametrize(
    ("output", "takes"),
    [
        (None, False),
        (lambda out: out, False),
        (lambda out, scale=3: out, False),
        (lambda *out: out[0], False),
        (lambda out, batch: out, True),
        (_first_of_two, True),
        (itemgetter(0), False),
        (torch.relu, False),
    ],
)
def test_a_function_of_two_gets_the_inputs_too(output: Any, takes: bool) -> None:
    assert takes_inputs(output) == takes


def test_what_an_output_function_leaves_out() -> None:
    batch = as_batch((X, {"mask": Z}, Y))
    y = run(_doubled, batch, lambda out, given: out * given.kwargs["mask"][:, :2] + given.args[0])
    assert torch.equal(y, 3 * X)
    assert torch.equal(run(_doubled, batch, _first_of_two), 4 * X * X)
    with pytest.raises(UserError, match="given as output failed"):
        run(_doubled, batch, lambda out, given: given.kwargs["attention_mask"])


def _doubled(x: Tensor, mask: Tensor) -> Tensor:
    return 2 * x
