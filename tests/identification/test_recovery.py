"""Known parameters found again, a convex problem against scipy, and far starts."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from identification_helpers import DISTANCE, clusters, drawn, values
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, Affine, FNeuron
from aafit.activations.compiled import compiled_loops
from aafit.errors import UserError
from aafit.identification.identify import identify
from aafit.networks.adaptive import adaptive_parameters
from aafit.networks.surgery import replace_activations

COLLAPSED = "hardly depend on the inputs"
EXACT: dict[str, Any] = {"curvature": "exact", "budget": 0.0}


@pytest.fixture(autouse=True)
def _not_compiled() -> Iterator[None]:
    with compiled_loops(False):
        yield


def known(kind: str) -> tuple[nn.Module, nn.Module]:
    """A network, and the same one with other parameters of its activations, to be found again."""
    torch.manual_seed(0)
    start, moved = {
        "AHAF": (AHAF.like("SiLU"), [0.8, -0.3]),
        "LEAF": (LEAF.like("SiLU"), [0.3, -0.2, 0.6, 0.1]),
        "F-Neuron": (FNeuron.like("Tanh", interval=(-2, 2), knots=6), [0.3]),
    }[kind]
    first = nn.Linear(6, 8)
    nn.init.normal_(first.weight)
    base = nn.Sequential(first, nn.ReLU(), nn.Linear(8, 5)).double()
    net = replace_activations(base, {"ReLU": start})[0]
    truth = replace_activations(base, {"ReLU": start})[0]
    with torch.no_grad():
        for shift, parameter in zip(moved, adaptive_parameters(truth).values(), strict=True):
            parameter.add_(shift * (drawn(*parameter.shape, seed=5) if kind == "F-Neuron" else 1))
    return net, truth.eval()


@pytest.mark.parametrize("how", ["mean squared error", "given loss", "logits", "logits by errors", "activations"])
@pytest.mark.parametrize("kind", ["AHAF", "LEAF", "F-Neuron"])
def test_known_parameters_are_found_again(kind: str, how: str) -> None:
    net, truth = known(kind)
    x = drawn(300, 6, seed=1)
    if how in ("mean squared error", "given loss"):
        result = identify(net, [(x, truth(x).detach())], loss=DISTANCE if how == "given loss" else how, **EXACT)
    else:
        # Labels are not used: these are of no class at all.
        settings: dict[str, Any] = {"loss": "mean squared error"} if how == "logits by errors" else {}
        target = "activations" if how == "activations" else "logits"
        labels = torch.full((300,), -100)
        result = identify(net, [(x, labels)], base=truth, target=target, **EXACT, **settings)
    tolerance = 0.02 if how == "activations" else 5e-3
    for name, parameter in values(truth).items():
        assert torch.allclose(values(net)[name], parameter, rtol=tolerance, atol=tolerance), name
    assert result.values == pytest.approx(torch.cat([p.flatten() for p in values(net).values()]).tolist())
    assert result.start != result.values
    assert not any(COLLAPSED in message for message in result.state.messages)
    phases = {step.phase for step in result.steps}
    assert phases == {"start", "layers"} if how == "activations" else phases <= {"start", "layers", "joint", "end"}


def test_a_strong_prior_holds_the_start() -> None:
    ends = []
    for prior in (None, 1e9):
        net, truth = known("LEAF")
        x = drawn(300, 6, seed=1)
        y = truth(x).detach() + 0.1 * drawn(300, 5, seed=2)
        result = identify(net, [(x, y)], loss="mean squared error", prior=prior)
        ends.append(max(abs(end - start) for end, start in zip(result.values, result.start, strict=True)))
    assert ends[0] > 0.1
    assert ends[1] < 1e-3


def convex(start: FNeuron) -> nn.Module:
    torch.manual_seed(0)
    first = nn.Linear(4, 6)
    nn.init.normal_(first.weight, std=0.7)
    base = nn.Sequential(first, nn.ReLU(), nn.Linear(6, 3)).double()
    return replace_activations(base, {"ReLU": start})[0]


def best_loss(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """The least cross-entropy over the weights of the F-Neuron, by scipy."""
    optimize = pytest.importorskip("scipy.optimize")
    weight = next(iter(adaptive_parameters(net).values()))

    def value(w: Any) -> tuple[float, Any]:
        with torch.no_grad():
            weight.copy_(torch.as_tensor(w).reshape(weight.shape))
        loss = F.cross_entropy(net(x), y)
        return loss.item(), torch.autograd.grad(loss, weight)[0].flatten().numpy()

    settings = {"maxiter": 5000, "maxfun": 50_000, "ftol": 1e-15, "gtol": 1e-9}
    return float(optimize.minimize(value, [0.0] * weight.numel(), jac=True, method="L-BFGS-B", options=settings).fun)


@pytest.mark.parametrize("truth", [True, False])
def test_the_convex_problem_against_scipy(truth: bool) -> None:
    """Where the F-Neuron can give the targets, to the last bit; else to what the images' noise leaves open."""
    x = drawn(1000, 4, seed=1)
    model = convex(FNeuron(drawn(1, 10, seed=2), (-2.0, 2.0)))
    with torch.no_grad():
        y = model(x).softmax(1)
    if not truth:
        y = F.one_hot(torch.multinomial(y, 1, generator=torch.Generator().manual_seed(0))[:, 0], 3).double()
    starts = [
        FNeuron.random(generator=torch.Generator().manual_seed(seed), interval=(-2, 2), knots=10) for seed in (3, 4)
    ]
    ends = []
    for start in (*starts, FNeuron.like("Tanh", interval=(-2, 2), knots=10)):
        net = convex(start)
        identify(net, [(x, y)], steps=50, heldout=0.1, curvature="exact")
        ends.append(F.cross_entropy(net(x), y).item())
    # No loss is less than that of the targets themselves.
    least = F.cross_entropy(model(x), y).item() if truth else best_loss(model, x, y)
    tolerance = 1e-6 if truth else 3e-3
    assert max(ends) - min(ends) < tolerance
    assert -1e-9 < min(ends) - least < tolerance


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A deep network of ReLUs that knows the clusters."""
    torch.manual_seed(0)
    sizes = [8, 16, 16, 16, 16]
    hidden = [m for at, size in enumerate(sizes[1:]) for m in (nn.Linear(sizes[at], size), nn.ReLU())]
    net = nn.Sequential(*hidden, nn.Linear(16, 4)).double()
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    ((x, y),) = clusters(500, 1)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


def depends(net: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return net(x).softmax(1).std(0).mean().item()


FAR: dict[str, Any] = {
    "constant": AHAF(0.0, 0.0),
    "nearly constant": AHAF(1.0, 0.05),
    "negative": AHAF(-30.0, 1.0),
    "huge": AHAF(1.0, 30.0),
    "not finite": AHAF(*torch.tensor([[1.0], [1e100]], dtype=torch.float64)),
    "sigmoid": LEAF.like("Sigmoid"),
}


@pytest.mark.parametrize("start", FAR)
def test_collapse_is_never_returned_in_silence(trained: nn.Module, start: str) -> None:
    ((x, y),) = clusters(300, 2)
    net, _ = replace_activations(trained, {"ReLU": FAR[start]})
    try:
        result = identify(net, [(x, y)])
    except UserError:
        # No way on from outputs that are not finite: to say so is as good.
        assert start == "not finite"
        return
    assert any(COLLAPSED in message for message in result.state.messages) or depends(net, x) > 0.01 * depends(
        trained, x
    )


@pytest.mark.parametrize("start", FAR)
def test_a_far_start_goes_through_the_layers_and_ends_near_the_base(trained: nn.Module, start: str) -> None:
    ((x, y),) = clusters(300, 2)
    net, _ = replace_activations(trained, {"ReLU": FAR[start]})
    result = identify(net, [(x, y)], base=trained)
    assert "layers" in [step.phase for step in result.steps]
    assert any("the start is far from the base network" in message for message in result.state.messages)
    assert [row.path for row in result.state.matched] == ["1", "3", "5", "7"]
    assert not any(COLLAPSED in message for message in result.state.messages)
    assert (net(x).argmax(1) == trained(x).argmax(1)).double().mean() > 0.95
    assert depends(net, x) > 0.8 * depends(trained, x)


def test_outputs_that_hardly_depend_on_the_inputs_at_the_start_are_said_too() -> None:
    ((x, y),) = clusters(120, 3)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(x.shape[1], 8), LEAF.like("ReLU"), nn.Linear(8, int(y.max()) + 1)).double()
    with torch.no_grad():
        net[2].weight.mul_(1e-6)
    result = identify(net, [(x, y)], steps=0, errors=False)
    assert any(COLLAPSED in message for message in result.state.messages)


def with_relu6(seed: int) -> nn.Sequential:
    """A network with ReLU6, which LEAF cannot represent."""
    torch.manual_seed(seed)
    base, fan_in = nn.Sequential(), 8
    for _ in range(4):
        base.extend([nn.Linear(fan_in, 16), nn.ReLU6()])
        fan_in = 16
        with torch.no_grad():
            base[-2].weight.mul_(3)
    return base.append(nn.Linear(16, 10)).eval()


@pytest.mark.parametrize("seed", [8, 9])
def test_few_outputs_outweigh_a_prior_whose_mean_is_far_from_the_base(seed: int) -> None:
    base = with_relu6(seed)
    x, fresh = torch.randn(1024, 8, generator=torch.Generator().manual_seed(seed)).split([24, 1000])
    start, _ = replace_activations(base, {"ReLU6": LEAF.like("ReLU")}, sample=x)

    def error(net: nn.Module) -> float:
        with torch.no_grad():
            return ((net(fresh) - base(fresh)).norm() / base(fresh).norm()).item()

    net, free = deepcopy(start), deepcopy(start)
    identify(net, [x], base=base, target="logits", errors=False)
    identify(free, [x], base=base, target="logits", errors=False, prior=None)
    assert error(net) < 0.8 * error(start)
    assert error(net) < 1.05 * error(free)


def test_few_labels_keep_the_start_where_it_is_better_than_what_is_nearest_to_the_original() -> None:
    base, generator = with_relu6(0), torch.Generator().manual_seed(0)
    x, fresh = torch.randn(200, 8, generator=generator), torch.randn(4000, 8, generator=generator)
    with torch.no_grad():
        scale = 3 / base(fresh).std()
        base[-1].weight.mul_(scale)
        base[-1].bias.mul_(scale)
        y, y_fresh = (torch.multinomial(base(u).softmax(1), 1, generator=generator)[:, 0] for u in (x, fresh))
    net, _ = replace_activations(base, {"ReLU6": LEAF.like("ReLU")}, sample=x)

    def loss() -> float:
        with torch.no_grad():
            return F.cross_entropy(net(fresh), y_fresh).item()

    before = loss()
    identify(net, [(x, y)], base=base, errors=False, heldout=0.0)
    assert loss() < 1.03 * before


def test_a_result_that_is_clearly_better_on_the_heldout_set_is_kept() -> None:
    """Without a prior, parameters that few samples determine make the leave-one-out estimate arbitrarily large."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 4))
    with torch.no_grad():
        for layer, factor in ((0, 3.0), (2, 3.0), (4, 300.0)):
            base[layer].weight.mul_(factor)
    x, fresh = torch.randn(500, 8), torch.randn(4000, 8)
    net, _ = replace_activations(base, {"SiLU": Affine("ReLU").like("ReLU")}, sharing="channel", sample=x[:8])

    def loss() -> float:
        with torch.no_grad():
            return F.cross_entropy(net(fresh), base(fresh).softmax(1)).item()

    before = loss()
    result = identify(net, [x], base=base, target="logits", loss="cross-entropy", prior=None, errors=False)
    assert loss() < 0.5 * before
    assert [gain.judged_by for gain in result.gains] == ["held-out set"]
    assert any("the held-out set shows a gain" in message for message in result.state.messages)
