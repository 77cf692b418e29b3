"""Activations matched to another network's one by one, and starts whose steepness can move."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small import Small, network, problem
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, AdaptiveActivation, FNeuron
from aafit.activations.compiled import compiled_loops
from aafit.activations.fitting import LeastSquares
from aafit.errors import UserError
from aafit.identification.coordinates import Coordinates
from aafit.identification.identify import identify
from aafit.identification.layerwise import match_layers
from aafit.identification.prior import Prior, original_activations, solve
from aafit.identification.slope import smooth_start
from aafit.networks.adaptive import adaptive_activations, adaptive_parameters
from aafit.networks.surgery import replace_activations


@pytest.fixture(autouse=True)
def _not_compiled() -> Iterator[None]:
    with compiled_loops(False):
        yield


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)


def fit_activation(activation: AdaptiveActivation, u: Tensor, y: Tensor) -> tuple[float, float]:
    """Fit an activation that its layer shares, in place; return the relative errors before and after."""
    start = {name: p.detach() for name, p in activation.named_parameters()}
    squares = LeastSquares(activation, start, u.reshape(-1, 1), y.reshape(-1, 1))
    before = squares.errors(squares.at_SQ).item()
    solve(squares)
    with torch.no_grad():
        for name, parameter in activation.named_parameters():
            parameter.copy_(squares.parameters()[name].reshape(parameter.shape))
    return (before**0.5 / y.std()).item(), (squares.errors(squares.at_SQ) ** 0.5 / y.std()).item()


def prior_of(net: nn.Module, base: nn.Module, inputs: list[Tensor]) -> Prior:
    """A weak prior around the original activations, for the standard normal inputs of a layer."""
    coordinates = Coordinates(net)
    seen = dict.fromkeys(adaptive_activations(net), torch.cat(inputs).flatten())
    return Prior(net, coordinates, original_activations(net, base, coordinates, coordinates.read(), seen), seen)


@pytest.mark.parametrize(
    ("start", "truth"),
    [
        (AHAF.like("SiLU"), AHAF(*numbers(2.5, 0.7))),
        (AHAF(*numbers(-3.0, 1.0)), AHAF(*numbers(2.0, 1.3))),
        (LEAF.like("SiLU"), LEAF(*numbers(1.2, 0.4, 1.5, -0.3))),
        (LEAF.like("Tanh"), LEAF(*numbers(0.8, 0.5, 2.5, 0.1))),
        (FNeuron.like("Tanh"), FNeuron(drawn(1, 18, seed=3))),
        (FNeuron.random(generator=torch.Generator().manual_seed(1)), FNeuron.like("ReLU")),
    ],
    ids=str,
)
def test_known_parameters_are_found_again(start: AdaptiveActivation, truth: AdaptiveActivation) -> None:
    start, truth = start.double(), truth.double()
    # The two outer memberships of an F-Neuron are reached too.
    u = drawn(40, 30) * 2
    with torch.no_grad():
        y = truth(u)
    before, after = fit_activation(start, u, y)
    assert after < 1e-3 < before
    for name, parameter in start.named_parameters():
        assert torch.allclose(parameter, truth.get_parameter(name), rtol=0.02, atol=0.02), name
    with torch.no_grad():
        assert ((start(u) - y).square().mean().sqrt() / y.std()).item() == pytest.approx(after, abs=1e-9)


@pytest.mark.parametrize("target", ["ReLU", "SiLU", "Tanh"])
@pytest.mark.parametrize(
    "start", [AHAF.like("ReLU"), AHAF.like("SiLU"), LEAF.like("ReLU"), LEAF.like("Tanh"), FNeuron.like("Tanh")], ids=str
)
def test_from_any_start_it_ends_near_what_the_function_can_be(start: AdaptiveActivation, target: str) -> None:
    start = start.reshaped(start.shape).double()
    u = drawn(3000, 1) * 1.5
    y = {"ReLU": nn.ReLU(), "SiLU": nn.SiLU(), "Tanh": nn.Tanh()}[target](u)
    _, after = fit_activation(start, u, y)
    can_be_it = target != "Tanh" or not isinstance(start, AHAF)
    assert after < 0.05 if can_be_it else after < 1


def small(replacements: dict[str, Any], sharing: Any = "layer") -> tuple[nn.Module, nn.Module, list[Tensor]]:
    """A small network with ReLUs, the same with these instead, and batches of images."""
    torch.manual_seed(0)
    base = Small().double().eval()
    images = [x for x, _ in problem(torch.float64, count=200, size=50)]
    return replace_activations(base, replacements, sharing, images[0])[0].eval(), base, images


@pytest.mark.parametrize("sharing", ["layer", "channel"])
def test_layers_are_matched_from_the_input_on(sharing: str) -> None:
    net, base, images = small({"act1": LEAF.like("Tanh"), "act2": FNeuron.like("Tanh", interval=(-1, 1))}, sharing)
    frozen = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    x = torch.cat(images)
    before = (net(x) - base(x)).std().item()
    rows = match_layers(net, base, images, prior_of(net, base, images))
    assert [row.path for row in rows] == ["act1", "act2"]
    assert all(row.after < 0.05 and row.after < row.before for row in rows)
    assert (net(x) - base(x)).std().item() < 0.2 * before
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in base.state_dict().items())
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in frozen.items())
    assert not any(module._forward_hooks for part in (net, base) for module in part.modules())


class Steps(nn.Module):
    """Layers beside what passes by them, as transformers have them; the activations work in place."""

    def __init__(self, gelu: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gelu, self.out = gelu, nn.Linear(6, 3)
        self.into = nn.ModuleList(nn.Linear(6, 12) for _ in range(4))
        self.acts = nn.ModuleList(nn.GELU() if gelu else nn.ReLU(inplace=True) for _ in range(4))
        self.back = nn.ModuleList(nn.Linear(12, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for into, act, back in zip(self.into, self.acts, self.back, strict=True):
            x = (x if self.gelu else 0) + back(act(into(2 * x)))
        y: Tensor = self.out(x)
        return y


def test_layers_are_matched_on_the_inputs_that_they_have_in_the_base() -> None:
    base, x = Steps(gelu=False).double().eval(), drawn(500, 6)
    net: Any = replace_activations(base, {"ReLU": AHAF.like("SiLU")})[0]
    rows = match_layers(net, base, [x[:250], x[250:]], prior_of(net, base, [x]), inputs_of_base=True)
    assert [row.path for row in rows] == [f"acts.{at}" for at in range(4)]
    given, u = [], x
    for at in range(4):
        given.append(base.into[at](2 * u).detach())
        u = base.back[at](given[-1].relu())
    for act, u in zip(net.acts, given, strict=True):
        alone = AHAF.like("SiLU").double()
        fit_activation(alone, u, u.relu())
        # The prior of `match_layers` is weak, but not nothing.
        assert torch.allclose(act(u), alone(u), atol=5e-3)


@pytest.mark.parametrize(
    ("gelu", "new", "said"),
    [
        (True, LEAF.like("ReLU"), "on the inputs that it has there"),
    ],
)
def test_the_inputs_are_those_that_do_better_on_what_is_held_out(gelu: bool, new: Any, said: str) -> None:
    base, batches = Steps(gelu).eval(), [drawn(600, 6).float()]
    net: Any = replace_activations(base, {"*": new})[0]
    found = identify(net, batches, base=base, target="activations")
    (message,) = (text for text in found.state.messages if text.startswith("layers"))
    losses = []
    for inputs_of_base in (False, True):
        other = replace_activations(base, {"*": new})[0].eval()
        match_layers(other, base, batches, prior_of(other, base, batches), inputs_of_base=inputs_of_base)
        losses.append((other(batches[0]) - base(batches[0])).square().mean().item())
    assert said in message
    assert (losses[1] < losses[0]) == (said == "on the inputs that it has there")


@pytest.mark.parametrize("sharing", ["channel", "neuron"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_set_has_its_own_parameters(sharing: Any, channels_last: bool) -> None:
    """The inputs of one set hardly reach beyond 0: there the prior keeps the original function."""
    base = nn.Sequential(nn.Identity(), nn.ReLU()).double()
    u = drawn(3000, 3, 2, 2, seed=9) * 2
    u[:, 2] *= 0.01
    u = u.to(memory_format=torch.channels_last) if channels_last else u
    net: Any = replace_activations(base, {"ReLU": LEAF.like("SiLU")}, sharing, u, channel_axis=1)[0]
    (row,) = match_layers(net, base, [u], prior_of(net, base, [u]))
    assert row.after < 0.05 < row.before
    wide = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None, None, None].expand(-1, 3, 2, 2)
    with torch.no_grad():
        assert (net[1](wide.contiguous()) - wide.relu()).abs().max() < 0.3


def test_the_same_function_is_left_alone() -> None:
    net, base, images = small({"act1": LEAF.like("ReLU"), "act2": AHAF.like("ReLU")})
    before = {name: p.detach().clone() for name, p in adaptive_parameters(net).items()}
    for row in match_layers(net, base, images, prior_of(net, base, images)):
        assert row.before == pytest.approx(0, abs=1e-4)
        assert row.after <= row.before
    assert all(torch.allclose(p, before[name], rtol=1e-12, atol=0) for name, p in adaptive_parameters(net).items())


def test_what_is_not_called_is_left_out_and_order_is_that_of_the_forward() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.spare, self.first = nn.ReLU(inplace=True), nn.ReLU(), nn.ReLU(inplace=True)
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.fc(self.first(x * 1)))
            return y

    torch.manual_seed(0)
    base = Backwards().double()
    net: Any = replace_activations(base, {"ReLU": AHAF.like("SiLU")})[0]
    rows = match_layers(net, base, [drawn(200, 4) * 2], prior_of(net, base, [drawn(200, 4) * 2]))
    assert [row.path for row in rows] == ["first", "last"]
    assert max(row.after for row in rows) < 0.05
    assert [p.item() for p in net.spare.parameters()] == [1, 1]


def sharp(net: nn.Module) -> list[float]:
    activations = adaptive_activations(net).values()
    return [p.item() for a in activations for name, p in a.named_parameters() if name in a.slope_parameters]


def test_the_smoothest_start_within_a_budget() -> None:
    replacements = {"act1": LEAF.like("ReLU"), "act2": AHAF.like("ReLU")}
    batches = problem(torch.float64, count=100, size=30)
    before = network(replacements, torch.float64).eval()
    x = torch.cat([x for x, _ in batches])

    def changed(net: nn.Module) -> float:
        with torch.no_grad():
            return float((net(x) - before(x)).abs().mean() / before(x).std())

    ceilings = []
    for budget in (0.001, 0.02, 0.1):
        net: Any = network(replacements, torch.float64)
        ceiling = smooth_start(net, batches, budget)
        assert ceiling is not None
        ceilings.append(ceiling)
        assert sharp(net) == pytest.approx([ceiling, ceiling])
        assert net.training
        net.eval()
        assert changed(net) <= budget
        if ceiling > 1:
            # The next lower ceilings are no longer within the budget.
            with torch.no_grad():
                net.act1.p3.mul_(0.97), net.act2.gamma.mul_(0.97)
            assert changed(net) > budget
    assert ceilings == sorted(ceilings, reverse=True)
    assert 1 <= ceilings[-1] < 2**16


def test_signs_stay_and_low_ones_are_not_raised() -> None:
    net = network({"act1": LEAF(*numbers(1.0, 0.0, -(2.0**12), 0.0)), "act2": AHAF.like("SiLU")}, torch.float64)
    ceiling = smooth_start(net, problem(torch.float64))
    assert ceiling is not None
    assert 1 < ceiling < 2**12
    assert sharp(net) == pytest.approx([-ceiling, 1.0])


@pytest.mark.parametrize(
    "replacements",
    [{"act1": LEAF.like("SiLU"), "act2": AHAF.like("SiLU")}, {"act1": FNeuron.like("Tanh")}],
    ids=["slope of 1", "no slope"],
)
def test_nothing_to_lower(replacements: dict[str, Any]) -> None:
    net = network(replacements)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert smooth_start(net, problem()) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"budget": 0.0}, "The equivalence budget 0.0 cannot be used; give a number above 0"),
        ({"budget": -1.0}, "The equivalence budget -1.0"),
        ({"budget": math.nan}, "The equivalence budget nan"),
        ({"batches": []}, "the batches hold no sample"),
        ({"batches": [(x[:0], y[:0]) for x, y in problem()]}, "the batches hold no sample"),
        ({"net": nn.Linear(2, 2)}, "no adaptive activation"),
    ],
)
def test_bad_input_leaves_the_network_as_it_was(settings: dict[str, Any], says: str) -> None:
    net = network({"act2": AHAF.like("ReLU")})
    given: dict[str, Any] = {"net": net, "batches": problem()} | settings
    with pytest.raises(UserError, match=says):
        smooth_start(**given)
    assert sharp(net) == [2.0**16]
    assert net.training


def test_a_forward_that_fails_leaves_the_network_as_it_was() -> None:
    net, calls = network({"act2": AHAF.like("ReLU")}), []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("enough")

    net.register_forward_pre_hook(fail)
    with pytest.raises(UserError, match="failed: enough"):
        smooth_start(net, problem(size=24))
    assert sharp(net) == [2.0**16]


@pytest.mark.parametrize("sharing", ["layer", "channel"])
def test_rare_inputs_far_outside_do_not_decide_a_polynomial(sharing: Any) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4)).double().eval()
    x = drawn(2000, 8)
    # One sample in 100 is far outside the intervals, which are those of the others.
    far = x.clone()
    far[::100] *= 3
    net, _ = replace_activations(base, {"GELU": "Polynomial(degree=8)"}, sharing, x)

    def error() -> float:
        with torch.no_grad():
            held_out = drawn(1000, 8, seed=1)
            return ((net(held_out) - base(held_out)).norm() / base(held_out).norm()).item()

    before = error()
    identify(net, list(far.split(100)), base=base, target="activations", precision="float64", errors=False)
    assert error() < 0.97 * before


def test_the_mean_of_a_polynomials_prior_is_its_fit() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).double().eval()
    x = drawn(2000, 8)
    net, _ = replace_activations(base, {"GELU": "Polynomial(degree=4)"}, sample=x)
    coordinates, u_E = Coordinates(net), base[0](x).detach().flatten()
    fitted_P = coordinates.read()
    mean_P = original_activations(net, base, coordinates, torch.zeros_like(fitted_P), {"1": u_E})
    assert (mean_P - fitted_P).abs().max() < 0.04 * fitted_P.abs().max()
