"""The rows of the benchmark that replaces activations by plain ReLU, on a network in small."""

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.networks.kept import SameClasses
from benchmarks.networks.to_relu import Case, outputs, rows

# torch's own: the first forward-mode derivative of a process loads decompositions that torch scripts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The initial outputs are far from the base network's"),
]


def case(padding: int) -> Case:
    torch.manual_seed(0)
    base = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3, padding=padding), nn.SiLU(), nn.Flatten(), nn.LazyLinear(3)
    )
    base(torch.randn(1, 1, 8, 8))
    here, other = (list(torch.randn(80, 1, 8, 8).split(20)) for _ in range(2))
    before = outputs(base.eval(), other)

    def measure(net: nn.Module) -> dict[str, Any]:
        return dict(SameClasses.of(before, outputs(net, other)).row())

    return Case("small", base, "SiLU", here, None, measure)


def test_folded_equals_identified_which_is_better_than_replaced() -> None:
    table = list(rows(case(0), "logits", 1, 1e-2, (True, False)))
    assert [row["network"].partition(",")[0] for row in table] == [
        "as it is",
        "replaced by ReLU",
        "Affine(ReLU)",
        "Affine(ReLU)",
        "the same",
        "Affine(ReLU)",
    ]
    errors = [float(row["relative error"]) for row in table]
    assert errors[0] == 0
    assert errors[3] < 0.5 * errors[1]
    assert errors[4] == pytest.approx(errors[3], rel=1e-3)
    assert table[4]["plain ReLU"] == "2 of 2"
    assert (table[3]["parameters"], table[4]["parameters"]) == (24, 0)


def test_with_zero_padding_the_family_without_an_offset_is_shown_too() -> None:
    table = list(rows(case(1), "activations", 1, 1e-2, (True, False)))
    folded = [row["plain ReLU"] for row in table if row["network"] == "the same, folded"]
    assert folded == ["1 of 2", "2 of 2"]
