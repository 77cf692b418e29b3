"""Which parameters an optimizer can move, against real optimizers, real rounding and derivatives by hand."""

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import network, problem
from torch import Tensor, nn

import aafit
from aafit.activations import AHAF, LEAF, FNeuron
from aafit.errors import UserError
from aafit.identification.audit import Audit, ParameterAudit, audit
from aafit.networks.adaptive import adaptive_parameters
from aafit.networks.surgery import replace_activations
from aafit.training.tune import make_optimizers


def row_of(found: Audit, name: str) -> ParameterAudit:
    return next(row for row in found.rows if row.name == name)


@pytest.mark.parametrize("sharing", ["layer", "channel", "neuron"])
def test_gradient_and_curvature_by_hand(sharing: str) -> None:
    net, batches = network(dtype=torch.float64, sharing=sharing), problem(torch.float64)
    found = audit(net, batches)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    net.eval()
    parameters = adaptive_parameters(net)
    logits = net(x)
    probabilities = logits.detach().softmax(1)
    gradients = torch.autograd.grad(F.cross_entropy(logits, y), list(parameters.values()), retain_graph=True)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        curvature = torch.zeros_like(parameter)
        for p_K, out_K in zip(probabilities, logits, strict=True):
            J_K = torch.stack([torch.autograd.grad(o, parameter, retain_graph=True)[0] for o in out_K])
            H_KK = p_K.diag() - torch.outer(p_K, p_K)
            curvature += torch.einsum("k...,kl,l...->...", J_K, H_KK, J_K) / len(x)
        row = row_of(found, name)
        assert torch.allclose(row.gradients, gradient, rtol=1e-9, atol=1e-14)
        assert torch.allclose(row.curvatures, curvature, rtol=1e-9, atol=1e-14)
        assert torch.equal(row.values, parameter.detach())
        summary = row.as_dict()
        sizes = gradient.abs().flatten().sort().values
        assert summary["smallest_gradient"] == pytest.approx(sizes[0].item(), rel=1e-9, abs=1e-14)
        median = sizes[(len(sizes) - 1) // 2].item() if len(sizes) > 1 else gradient.item()
        assert summary["gradient"] == pytest.approx(median, rel=1e-9, abs=1e-14)
        assert summary["smallest_curvature"] == pytest.approx(curvature.min().item(), rel=1e-9, abs=1e-14)
        assert summary["curvature"] == pytest.approx(curvature.median().item(), rel=1e-9, abs=1e-14)
    assert found.loss == pytest.approx(F.cross_entropy(logits, y).item())
    assert [row.name for row in found.rows] == list(parameters)


def test_the_printed_gradients_are_the_smallest_and_the_median() -> None:
    found = audit(network(dtype=torch.float64, sharing="channel"), problem(torch.float64))
    row = row_of(found, "act1.p1")
    smallest, median = row.gradients.abs().flatten().sort().values[:2].tolist()
    assert smallest < median
    assert f"  {smallest:.2g} / {median:.2g}  " in str(found)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-9])
def test_the_step_is_that_of_the_optimizer(optimizer: str, scale: float) -> None:
    # The same sample many times: the gradient of every minibatch is that of the mean loss.
    net, (x, y) = network(dtype=torch.float64), problem(torch.float64)[0]
    batches = [(x[:1].expand(8, -1, -1, -1), y[:1].expand(8))]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return scale * F.cross_entropy(output, target, reduction="none")

    found = audit(net, batches, optimizer=optimizer, p24sl=True, loss=loss)
    (made,) = make_optimizers(net, optimizer, p24sl=True)
    parameters = adaptive_parameters(net)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.grad = row_of(found, name).gradients.to(parameter)
    made.step()
    for name, parameter in parameters.items():
        moved = (parameter.detach() - before[name]).abs()
        assert moved.flatten().tolist() == pytest.approx(row_of(found, name).steps.flatten().tolist(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_spacing_is_that_of_the_dtype(dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, -1.0, 0.3, 65536.0, 65535.0, 1e-3, -7.0]).to(dtype)
    net = nn.Sequential(AHAF(values, torch.ones_like(values)), nn.Linear(7, 3, dtype=dtype))
    row = row_of(audit(net, [(torch.randn(6, 7).to(dtype), torch.arange(6) % 3)]), "0.gamma")
    away = torch.nextafter(values, values.sign() * math.inf)
    assert torch.equal(row.spacings, (away.double() - values.double()).abs())


@pytest.mark.parametrize(
    ("dtype", "lr", "rounds"),
    [(torch.float32, 1e-3, True), (torch.float32, 1e-2, False), (torch.float64, 1e-3, False)],
)
def test_a_gamma_of_2_to_the_16(dtype: torch.dtype, lr: float, rounds: bool) -> None:
    net = network({"act2": AHAF.like("ReLU")}, dtype)
    gamma = row_of(audit(net, problem(dtype), lr=lr), "act2.gamma")
    if rounds:
        assert gamma.verdict == "stalled: a step of 0.001 is less than half the spacing 0.0078 of float32 at 65536"
    else:
        assert gamma.verdict == "stalled: its gradient is negligible"
    assert gamma.stalled == 1
    assert gamma.too_large_for == ("float16",)
    # The optimizer itself, given a gradient that is not small.
    parameter = nn.Parameter(torch.tensor([2.0**16], dtype=dtype))
    parameter.grad = -torch.ones_like(parameter)
    torch.optim.Adam([parameter], lr=lr).step()
    assert (parameter.item() == 2.0**16) == rounds


def test_what_moves_and_what_overflows_nothing() -> None:
    found = audit(network(dtype=torch.float64), problem(torch.float64))
    assert {row.verdict for row in found.rows} == {"trainable"}
    assert {row.stalled for row in found.rows} == {0}
    assert {row.too_large_for for row in found.rows} == {()}
    assert {row.outside for row in found.rows} == {None}


def test_slow_learning_rates_are_reported() -> None:
    net = network({"act1": LEAF.like("Tanh"), "act2": LEAF.like("Tanh")}, torch.float64)
    fast, slow = (audit(net, problem(torch.float64), p24sl=p24sl) for p24sl in (False, True))
    assert {row.verdict for row in fast.rows} == {"trainable"}
    for row in slow.rows:
        lowered = row.name.endswith(("p2", "p4"))
        assert row.steps.item() == pytest.approx(1e-6 if lowered else 1e-3, rel=1e-3)
        assert row.verdict == "trainable" or (lowered and "steps of 1e-06" in row.verdict)
    assert any("slow: a change of" in row.verdict for row in slow.rows)


def alone(activation: nn.Module, inputs: Tensor) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A network of an activation and a linear head, and labels for it."""
    torch.manual_seed(0)
    net = nn.Sequential(activation, nn.Linear(inputs.shape[1], 3)).to(inputs.dtype)
    return net, [(inputs, torch.arange(len(inputs)) % 3)]


def test_an_f_neuron_with_all_inputs_outside() -> None:
    net, batches = alone(FNeuron.like("Tanh", knots=5), torch.full((6, 2), 7.0).double())
    found = audit(net, batches)
    (row,) = found.rows
    assert (row.outside, row.interval, row.unreached) == (1.0, (-4.0, 4.0), (0, 1, 2, 3))
    assert row.verdict == "4 stalled: no input reaches them; the others are trainable"
    assert row.stalled == 0.8
    assert row.states == ("no input",) * 4 + ("trainable",)
    text = str(found)
    assert "100.00% of the inputs are outside [-4, 4]; none reaches the weights 0-3" in text
    assert "the others are trainable" in text


@pytest.mark.parametrize(
    ("inputs", "outside", "unreached"),
    [
        ([-9.0, 9.0], 1, (1, 2, 3)),
        ([-4.0, 4.0], 0, (1, 2, 3)),
        ([0.0, 0.0], 0, (0, 1, 3, 4)),
        ([0.1, -0.1], 0, (0, 4)),
        ([-3.0, 3.0, 1.0, 5.0], 0.25, ()),
    ],
)
def test_what_reaches_the_weights(inputs: list[float], outside: float, unreached: tuple[int, ...]) -> None:
    net, batches = alone(FNeuron.like("Tanh", knots=5), torch.tensor([inputs, inputs]).double())
    (row,) = audit(net, batches).rows
    assert (row.outside, row.unreached) == (outside, unreached)


@pytest.mark.parametrize(
    ("inputs", "unreached"),
    [([-9.0, 9.0], (2,)), ([4.0, -4.0], (1, 2, 3)), ([3.0, 5.0], (0, 1, 2)), ([5.0], (0, 1, 2))],
)
def test_what_reaches_the_weights_of_a_line_that_goes_on(inputs: list[float], unreached: tuple[int, ...]) -> None:
    # At 3 and at 5 the same weight has a half and minus a half of a say: it is reached all the same.
    given = torch.tensor([inputs, inputs]).double()
    net, batches = alone(FNeuron.like("Tanh", knots=5, outside="linear"), given)
    (row,) = audit(net, batches).rows
    assert row.unreached == unreached


def test_a_dead_layer_has_no_gradient() -> None:
    net, batches = alone(AHAF(-1.0, 1.0), torch.zeros(4, 2))
    for row in audit(net, batches).rows:
        assert (row.gradient, row.curvature, row.stalled) == (0, 0, 1)
        assert row.verdict == "stalled: its gradient is negligible"


@pytest.mark.parametrize(
    ("g", "value", "says"),
    [
        (1e-9, 1e4, "slow: its gradient is below Adam's eps"),
        (2e-11, 1e5, "stalled: its gradient is far below Adam's eps, and the remaining step of 2e-05 rounds away"),
        (1e-2, 1e3, "slow: a change of 1e+03 takes 10,000,010 steps of 0.0001"),
    ],
)
def test_small_gradients(g: float, value: float, says: str) -> None:
    # With gamma = 0, AHAF(2) = beta: the loss g AHAF(2) has the gradient g with respect to beta.
    net, x = nn.Sequential(AHAF(0.0, value)), torch.full((4, 1), 2.0)
    loss = aafit.loss_with_hessian(
        "linear", lambda out, y: g * out.flatten(), lambda out, y: torch.full((len(out), 1, 1), 1e-12)
    )
    found = audit(net, [(x, x)], lr=1e-2 if g < 1e-6 else 1e-4, loss=loss)
    assert row_of(found, "0.beta").verdict.startswith(says)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare, self.head = AHAF.like("SiLU"), AHAF.like("SiLU"), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.used(x))
        return logits


def test_an_activation_that_is_not_called() -> None:
    torch.manual_seed(0)
    found = audit(Unused(), [(torch.randn(8, 2), torch.arange(8) % 3)])
    assert {row.name: row.verdict for row in found.rows if row.name.startswith("spare")} == dict.fromkeys(
        ("spare.gamma", "spare.beta"), "stalled: the forward pass does not call it"
    )
    assert row_of(found, "used.gamma").verdict == "trainable"
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_value_that_is_not_finite() -> None:
    net = network(dtype=torch.float64)
    with torch.no_grad():
        net.act2.gamma.fill_(math.inf)
    found = audit(net, problem(torch.float64))
    assert row_of(found, "act2.gamma").verdict == "stalled: its value is not finite"
    assert row_of(found, "act1.p1").verdict == "undetermined: a value or the output is not finite"
    assert "not finite" in str(found)
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize("start", ["AHAF", "F-Neuron"])
def test_tens_of_thousands_of_parameters(start: str) -> None:
    made = AHAF.like("ReLU") if start == "AHAF" else FNeuron.like("Tanh")
    base = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 32 * 32, 3))
    x = torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    net, _ = replace_activations(base, {"ReLU": made}, "neuron", x)
    found = audit(net, [(x, torch.arange(6) % 3)])
    assert [row.elements for row in found.rows] == ([4096, 4096] if start == "AHAF" else [4096 * 18])
    if start == "AHAF":
        assert row_of(found, "1.gamma").verdict == "all stalled: steps of 0.001 are less than half the float32 spacing"
        assert row_of(found, "1.gamma").stalled == 1
    else:
        assert found.rows[0].unreached == ()
        assert found.rows[0].stalled > 0.5
    assert max(map(len, str(found).splitlines())) <= 124


@pytest.mark.parametrize("grad", [True, False])
def test_the_network_is_left_as_it_was(grad: bool) -> None:
    net = network()
    net.train().norm.eval()
    net.fc.weight.requires_grad_(False)
    net.act1.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]
    with torch.set_grad_enabled(grad):
        first, second = audit(net, problem()), audit(net, problem())
    assert first.as_dict() == second.as_dict()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert flags == ([p.requires_grad for p in net.parameters()], [m.training for m in net.modules()])
    assert all(p.grad is None and not p._backward_hooks for p in net.parameters())
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_the_number_of_samples() -> None:
    net, batches = network(dtype=torch.float64), problem(torch.float64)
    found = audit(net, batches, samples=10, batch_size=4)
    x, y = (torch.cat(parts)[:10] for parts in zip(*batches, strict=True))
    assert found.samples == 10
    assert found.as_dict() == audit(net, [(x, y)], batch_size=4).as_dict()


def test_sampled_curvature_is_right_on_average() -> None:
    net, batches = network(dtype=torch.float64), problem(torch.float64, count=800)
    sampled, exact = audit(net, batches, samples=800), audit(net, batches, samples=600)
    assert [row.curvature for row in sampled.rows] == pytest.approx([row.curvature for row in exact.rows], rel=0.3)


def test_it_prints_and_is_fit_for_json() -> None:
    net = network({"act1": LEAF.like("ReLU"), "act2": FNeuron.like("Tanh")})
    found = audit(net, problem(), p24sl=True, optimizer="rmsprop")
    lines = str(found).splitlines()
    assert lines[0].split() == ["parameter", "value", "gradient", "curvature", "verdict"]
    assert max(map(len, lines)) <= 124
    assert lines[-1] == f"24 samples, loss {found.loss:.4f}; steps of rmsprop at 0.0001, p24sl 1e-05"
    assert any(line == "Too large for float16 (at most 65504): act1.p3" for line in lines)
    content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert [row["name"] for row in content["rows"]] == ["act1.p1", "act1.p2", "act1.p3", "act1.p4", "act2.weight"]
    assert content["rows"][2]["too_large_for"] == ["float16"]


@pytest.mark.parametrize(
    ("net", "batches", "settings", "says"),
    [
        (nn.Linear(2, 2), problem(), {}, "no adaptive activation to audit"),
        (network(), [], {}, "nothing to audit on"),
        (network(), [(x[:0], y[:0]) for x, y in problem()], {}, "nothing to audit on"),
        (network(), problem(), {"samples": 0}, "must be an integer of at least 1; got 0"),
        (network(), problem(), {"samples": 2.5}, "must be an integer of at least 1; got 2.5"),
        (network(), [(x * math.nan, y) for x, y in problem()], {}, "not finite"),
        (network(), problem(), {"optimizer": "adm"}, "Did you mean 'adam'"),
        (network(), problem(), {"lr": 0.0}, "learning rate must be a positive number; got 0.0"),
        (
            network(),
            [(x, y + 3) for x, y in problem()],
            {},
            "24 of the labels are no class: the network has 3 classes",
        ),
        (network(), problem(), {"precision": "int8"}, "Unknown precision"),
    ],
)
def test_what_cannot_be_used(net: nn.Module, batches: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        audit(net, batches, **settings)
