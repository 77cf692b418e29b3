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
from aafit.errors import UserError
from aafit.identification import elements
from aafit.identification.identify import identify
from aafit.identification.layerwise import fit_activation, match_layers
from aafit.identification.steepness import smooth_start
from aafit.networks.adaptive import adaptive_activations, adaptive_parameters
from aafit.networks.surgery import replace_activations
from aafit.training.evaluate import evaluate


@pytest.fixture(autouse=True)
def _not_compiled() -> Iterator[None]:
    with compiled_loops(False):
        yield


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)


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


@pytest.mark.parametrize("sharing", ["channel", "neuron"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_set_has_its_own_parameters(sharing: str, channels_last: bool) -> None:
    shape = (3, 1, 1) if sharing == "channel" else (3, 2, 2)
    truth = LEAF.like("SiLU", shape).double()
    with torch.no_grad():
        for seed, parameter in enumerate(truth.parameters()):
            parameter.add_(drawn(*shape, seed=seed) * 0.2)
        u = drawn(3000, 3, 2, 2, seed=9) * 2
        u = u.to(memory_format=torch.channels_last) if channels_last else u
        y = truth(u)
    start = LEAF.like("SiLU", shape).double()
    _, after = fit_activation(start, u, y)
    assert after < 5e-3
    for name, parameter in start.named_parameters():
        assert torch.allclose(parameter, truth.get_parameter(name), atol=0.05), name


def test_a_set_that_sees_next_to_nothing_stays_near_the_others() -> None:
    u = drawn(500, 4) * 2
    u[:, 3] = 0.01 * u[:, 3]
    start = LEAF.like("SiLU", (4,)).double()
    y = u.clamp(min=0)
    fit_activation(start, u, y)
    wide = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None].expand(-1, 4)
    with torch.no_grad():
        assert (start(wide) - wide.clamp(min=0)).abs().max() < 0.5
        assert ((start(u) - y)[:, 3]).abs().max() < 0.1


def test_a_weight_that_no_input_reaches_stays() -> None:
    start = FNeuron.like("Tanh", knots=9).double()
    before = start.weight.detach().clone()
    u = drawn(300, 5).abs() + 0.01
    fit_activation(start, u, u.square())
    assert torch.equal(start.weight[0, :4], before[0, :4])
    assert not torch.allclose(start.weight[0, 4:8], before[0, 4:8])


def test_many_elements_are_sampled_from_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "ELEMENTS", 5000)
    u = drawn(100, 200)
    y = LEAF(*numbers(0.5, 0.2, 3.0, 0.1))(u).detach() + 0.05 * drawn(100, 200, seed=1)
    state, found = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        start = LEAF.like("SiLU").double()
        fit_activation(start, u, y, seed)
        found.append([p.item() for p in start.parameters()])
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert found[0] == pytest.approx(found[2], abs=0.1)
    assert torch.equal(state, torch.get_rng_state())


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
    rows = match_layers(net, base, images)
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
    rows = match_layers(net, base, [x[:250], x[250:]], inputs_of_base=True)
    assert [row.path for row in rows] == [f"acts.{at}" for at in range(4)]
    given, u = [], x
    for at in range(4):
        given.append(base.into[at](2 * u).detach())
        u = base.back[at](given[-1].relu())
    for act, u in zip(net.acts, given, strict=True):
        alone = AHAF.like("SiLU").double()
        fit_activation(alone, u, u.relu())
        # Of other elements, as many.
        assert torch.allclose(act(u), alone(u), atol=1e-6)


@pytest.mark.parametrize(
    ("gelu", "new", "said"),
    [
        (True, LEAF.like("ReLU"), "on the inputs that it has there"),
        (False, AHAF(torch.tensor(0.1), torch.tensor(0.5)), "from the input on"),
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
        match_layers(other, base, batches, inputs_of_base=inputs_of_base)
        losses.append((other(batches[0]) - base(batches[0])).square().mean().item())
    assert said in message
    assert (losses[1] < losses[0]) == (said == "on the inputs that it has there")


def test_the_same_function_is_left_alone() -> None:
    net, base, images = small({"act1": LEAF.like("ReLU"), "act2": AHAF.like("ReLU")})
    before = {name: p.detach().clone() for name, p in adaptive_parameters(net).items()}
    for row in match_layers(net, base, images):
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
    rows = match_layers(net, base, [drawn(200, 4) * 2])
    assert [row.path for row in rows] == ["first", "last"]
    assert max(row.after for row in rows) < 0.05
    assert [p.item() for p in net.spare.parameters()] == [1, 1]


def sharp(net: nn.Module) -> list[float]:
    activations = adaptive_activations(net).values()
    return [p.item() for a in activations for name, p in a.named_parameters() if name in a.slope_parameters]


@pytest.mark.parametrize("measure", ["logits", "accuracy"])
def test_the_smoothest_start_within_a_budget(measure: str) -> None:
    replacements = {"act1": LEAF.like("ReLU"), "act2": AHAF.like("ReLU")}
    batches = problem(torch.float64, count=100, size=30)
    before = network(replacements, torch.float64).eval()
    x = torch.cat([x for x, _ in batches])

    def changed(net: nn.Module) -> float:
        with torch.no_grad():
            if measure == "accuracy":
                return abs(evaluate(net, batches).accuracy - evaluate(before, batches).accuracy)
            return float((net(x) - before(x)).abs().mean() / before(x).std())

    ceilings = []
    for budget in (0.001, 0.02, 0.1):
        net: Any = network(replacements, torch.float64)
        ceiling = smooth_start(net, batches, budget, measure)
        assert ceiling is not None
        ceilings.append(ceiling)
        assert sharp(net) == pytest.approx([ceiling, ceiling])
        assert net.training
        net.eval()
        assert changed(net) <= budget
        if measure == "logits" and ceiling > 1:
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
    ids=["steepness of 1", "no steepness"],
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
        ({"measure": "logit"}, "Unknown measure 'logit'. Did you mean 'logits'"),
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
