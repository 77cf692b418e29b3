"""The rows of the benchmarks of polynomials and of few segments, on a network in small."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from aafit.activations.compiled import compiled_loops
from benchmarks.networks import few_segments, polynomials
from benchmarks.networks.kept import SameClasses
from benchmarks.networks.swapped import Swapped

# torch's own: the first forward-mode derivative of a process loads decompositions that torch scripts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The initial outputs are far from the base network's"),
]


@pytest.fixture(autouse=True)
def _not_compiled() -> Iterator[None]:
    with compiled_loops(False):
        yield


@pytest.fixture(scope="module")
def trial() -> Swapped:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 5)).eval()
    here, other = (list((3 * torch.randn(120, 6)).split(40)) for _ in range(2))

    def outputs(net: nn.Module) -> Tensor:
        with torch.inference_mode():
            return torch.cat([net(x) for x in other])

    def judge(before: Tensor, after: Tensor) -> dict[str, str]:
        return SameClasses.of(before, after).row()

    return Swapped("small", base, "SiLU", here, other, None, torch.cat(here), outputs, outputs(base), judge)


def test_polynomials_identified_are_nearer_than_fitted(trial: Swapped) -> None:
    chosen = polynomials.Chosen(("fitted", "layers", "together"), "layer", epochs=1, steps=4)
    fitted, layers, together = (float(str(row["relative error"])) for row in polynomials.rows(trial, 2, chosen, None))
    assert layers < fitted
    assert together < fitted


def test_frozen_tables_have_a_size_and_nearly_the_same_outputs(trial: Swapped) -> None:
    made: list[nn.Module] = []
    table = list(few_segments.rows(trial, 8, 16, 1, True, made))
    assert [row["bytes of all tables"] for row in table] == [None, 92]
    assert len(made) == 1
    assert all(float(str(row["relative error"])) < 0.02 for row in table)
