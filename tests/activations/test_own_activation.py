"""An adaptive activation of one's own is a small class, and works everywhere: a quotient as the example."""

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small import Quotient, problem
from torch import Tensor, nn
from torch.nn import functional as F

from aafit.activations import LEAF, AdaptiveActivation, Histogram, from_settings
from aafit.errors import UserError
from aafit.identification import audit, identify
from aafit.networks.adaptive import adaptive_parameters
from aafit.networks.saving import load_activations, read_activations, save_activations
from aafit.networks.surgery import replace_activations
from aafit.plots.activations import plot_activations
from aafit.training.tune import tune

# torch's own: the first forward-mode derivative of a process loads decompositions that torch scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
DOCUMENT = Path(__file__).parents[2] / "docs" / "how-to" / "custom-activation.md"


def base() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.7)
    return net


def test_its_whole_life_in_a_network(tmp_path: Path) -> None:
    batches: Any = problem(count=48)
    net, swap = replace_activations(base(), {"ReLU": Quotient.like("ReLU")}, sharing="channel", sample=batches[0][0])
    assert "Quotient as ReLU" in str(swap)
    assert net[1].shape == (3, 1, 1)
    before = {name: p.detach().clone() for name, p in adaptive_parameters(net).items()}
    tune(net, batches, epochs=1)
    after = adaptive_parameters(net)
    assert list(after) == ["1.a0", "1.a1", "1.a2", "1.b"]
    assert all((before[name] != p).any() for name, p in after.items())
    assert len(audit(net, batches).rows) == 4
    assert plot_activations(net).axes
    found = identify(net, problem(count=400))
    assert "1.a2" in str(found)

    file = tmp_path / "quotient.safetensors"
    save_activations(net, file, start=before)
    for again in (load_activations(base(), file, families=[Quotient]), load_activations(net, file)):
        assert isinstance(again[1], Quotient)
        assert torch.equal(again(batches[0][0]), net(batches[0][0]))
    (saved,) = read_activations(file, families=[Quotient])
    assert isinstance(saved.tuned, Quotient)
    with pytest.raises(UserError, match=r"Unknown family of activations 'Quotient'.*give the class, as families="):
        load_activations(base(), file)
    assert torch.equal(swap.restore(net)(batches[0][0]), base()(batches[0][0]))


def test_gradients_shapes_and_copies() -> None:
    activation = Quotient(0.1, 0.6, 0.4, 0.8).double().reshaped((3, 1))
    u = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    inputs = [u, *activation.parameters()]
    names = [name for name, _ in activation.named_parameters()]

    def call(u: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(activation, dict(zip(names, values, strict=True)), u)

    assert torch.autograd.gradcheck(call, inputs)
    for same in (copy.deepcopy(activation), pickle.loads(pickle.dumps(activation))):
        assert torch.equal(same(u), activation(u))
    assert Quotient.like("Identity")(u.bfloat16()).dtype == torch.bfloat16
    assert repr(Quotient.like("Identity")) == "Quotient(Identity, a0=0, a1=1, a2=0, b=0)"


def test_it_is_fitted_to_any_function() -> None:
    histogram = Histogram.of(torch.randn(5000, generator=torch.Generator().manual_seed(0)))
    exact = Quotient.fit(lambda u: (1 - 2 * u) / (1 + (3 * u).abs()), histogram)
    assert exact.residual is not None
    assert exact.residual.rms < 1e-6
    near = Quotient.fit(F.gelu, histogram)
    assert near.residual is not None
    assert near.residual.rms < 0.12


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Quotient(1.0, 2.0), "takes a0, a1, a2, b, each once; got 2 values"),
        (lambda: Quotient(1.0, 2.0, 3.0, c=1.0), "got 3 values and c"),
        (lambda: Quotient.like("Relu"), "Did you mean 'ReLU'"),
        (lambda: Quotient.like("ReLU")(torch.arange(3)), "Quotient needs a floating-point input"),
        (lambda: type("Short", (Quotient,), {"starts": {"ReLU": (1.0,)}}), "a value for each of a0, a1, a2, b"),
        (lambda: Quotient.like(F.gelu), r"Quotient starts as a name \(Identity, ReLU\), not as gelu: give the class"),
        (lambda: type("Own", (AdaptiveActivation,), {"family": "Own"}), "it has no starts and no formula"),
        (lambda: type("Own", (AdaptiveActivation,), {"starts": {"ReLU": ()}}), "it has no family and no formula"),
        (
            lambda: type("Own", (AdaptiveActivation,), {"family": "Own", "formula": lambda u, a: u * a}),
            r"Own needs family, starts and formula; it has no starts\.",
        ),
        (lambda: type("Own", (AdaptiveActivation,), {})(), "it has no family and no starts and no formula"),
        (lambda: type("Own", (AdaptiveActivation,), {}).like("ReLU"), "Own needs family, starts and formula"),
        (lambda: from_settings(Quotient.like("ReLU").settings()), "Unknown family of activations 'Quotient'"),
        (
            lambda: from_settings(LEAF.like("ReLU").settings(), [type("Other", (LEAF,), {})]),
            "Two different classes are called 'LEAF'",
        ),
    ],
)
def test_mistakes(make, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()


def test_the_documents_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    exec(compile(code, str(DOCUMENT), "exec"), {"__name__": "document"})
