"""Standard errors: against closed forms, against simulation from a known truth, and what the prior alone determines."""

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aafit
from aafit.identification.uncertainty import Uncertainty, UncertaintyRow, scaled_inverse

KNOTS = torch.linspace(-2, 2, 5, dtype=torch.float64)


def tents(u: Tensor) -> Tensor:
    """The membership functions of an F-Neuron with 5 knots on [-2, 2], (N, 5)."""
    return (1 - (u.clamp(-2, 2) - KNOTS).abs()).clamp(min=0)


def regression(samples: int = 2000, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs and targets whose noise grows with |u|."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(samples, 1, generator=generator, dtype=torch.float64) * 5 - 2.5
    noise = torch.randn(samples, 1, generator=generator, dtype=torch.float64) * (0.1 + u.abs())
    return u, u.sin() + noise


def neuron() -> nn.Module:
    return nn.Sequential(nn.Identity(), aafit.FNeuron(torch.zeros(1, 5, dtype=torch.float64), (-2.0, 2.0)))


def test_linear_regression_against_the_closed_form() -> None:
    net, (u, y) = neuron(), regression()
    found = aafit.identify(net, [(u, y)], loss="mean squared error", prior=None, heldout=0.0).uncertainty
    assert found is not None
    A = tents(u)
    weights = torch.linalg.lstsq(A, y).solution.flatten()
    inverse = torch.linalg.inv(A.T @ A)
    residuals = (A @ weights - y.flatten()).square()
    # White's covariance of least squares, for errors of unequal size.
    robust = inverse @ (A.T * residuals) @ A @ inverse
    assert [row.name for row in found.rows] == [f"1.weight[{i}]" for i in range(5)]
    assert [row.value for row in found.rows] == pytest.approx(weights.tolist(), rel=1e-4)
    assert [row.error for row in found.rows] == pytest.approx(robust.diag().sqrt().tolist(), rel=1e-3)
    assert torch.allclose(found.covariance_PP, robust, rtol=1e-2, atol=1e-6)


def test_the_result_does_not_depend_on_the_units_of_targets_or_loss() -> None:
    results = []
    for scale, factor in ((1.0, 1.0), (100.0, 1.0), (1.0, 1e-3)):
        u, y = regression()
        base = nn.Sequential(nn.Identity(), aafit.FNeuron.like("Tanh", interval=(-2, 2), knots=5)).double()
        net = nn.Sequential(*base, nn.Linear(1, 1)).double()
        with torch.no_grad():
            net[2].weight.fill_(scale), net[2].bias.zero_()

        def loss(outputs: Tensor, targets: Tensor, factor: float = factor) -> Tensor:
            return factor * (outputs - targets).square().sum(1)

        found = aafit.identify(net, [(u, scale * y)], loss=aafit.loss_with_hessian("scaled", loss))
        assert found.uncertainty is not None
        results.append([*found.values, *(row.error for row in found.uncertainty.rows)])
    assert results[1] == pytest.approx(results[0], rel=5e-3)
    assert results[2] == pytest.approx(results[0], rel=5e-3)


def small(activation: nn.Module) -> nn.Module:
    torch.manual_seed(11)
    net = nn.Sequential(nn.Linear(6, 16), activation, nn.Linear(16, 4))
    with torch.no_grad():
        net[0].weight.mul_(2), net[2].weight.mul_(4), net[2].bias.mul_(4)
    return net


CASES: dict[str, Any] = {
    "AHAF": (aafit.AHAF.like("SiLU"), aafit.AHAF(1.2, 0.9), "cross-entropy"),
    "F-Neuron": (aafit.FNeuron.like("SiLU", knots=10), None, "mean squared error"),
}


@pytest.mark.parametrize("case", CASES)
def test_standard_errors_cover(case: str) -> None:
    """From a known truth; benchmarks/error_coverage.py has eight cases with more repetitions."""
    start, truth, loss = CASES[case]
    if truth is None:
        truth = aafit.FNeuron.like("SiLU", knots=10)
        with torch.no_grad():
            truth.weight += 0.3 * torch.sin(1.3 * truth.knot_positions.float())
    true = torch.cat([p.detach().flatten() for p in truth.parameters()]).tolist()
    inside = []
    for seed in range(30):
        net, teacher = small(start.reshaped((1,))), small(truth)
        torch.manual_seed(1000 + seed)
        x = torch.randn(800, 6)
        with torch.no_grad():
            y = teacher(x)
        y = torch.distributions.Categorical(logits=y).sample() if loss == "cross-entropy" else y + torch.randn_like(y)
        found = aafit.identify(net, [(x, y)], loss=loss).uncertainty
        assert found is not None
        assert sum(row.determined for row in found.rows) >= 0.9 * len(found.rows)
        inside += [abs(r.value - t) < 1.96 * r.error for r, t in zip(found.rows, true, strict=True) if r.determined]
    assert 0.9 <= sum(inside) / len(inside) <= 0.99


def test_what_no_input_reaches_is_not_determined_and_has_a_wide_band() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), aafit.FNeuron.like("ReLU", interval=(-8, 8)))
    x = torch.rand(1000, 1) * 4 - 2
    found = aafit.identify(net, [(x, F.silu(x) + 0.1 * torch.randn(1000, 1))], loss="mean squared error")
    assert found.uncertainty is not None
    rows = {row.name: row for row in found.uncertainty.rows}
    assert not rows["1.weight[0]"].determined
    assert not rows["1.weight[17]"].determined
    assert rows["1.weight[9]"].determined
    deviation = found.uncertainty.covariance_PP.diag().sqrt()
    assert deviation[0] > 10 * deviation[9]
    assert deviation.isfinite().all()
    assert "not determined by these samples, set by the prior" in str(found)
    assert net[1].weight[0, 0].abs() < 0.5
    content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert content["uncertainty"]["rows"][0]["determined"] is False


def test_a_slope_that_is_only_known_to_be_steep_has_no_error() -> None:
    def row(factor: float) -> UncertaintyRow:
        return UncertaintyRow("act.gamma", 6609.0, 1e3, True, factor)

    def printed(factor: float) -> str:
        return str(Uncertainty((row(factor),), (), 100, torch.zeros(1, 1), 1.0, 1.0))

    assert row(20.0).has_error
    assert not row(2.5e29).has_error
    assert "1e+03" in printed(20.0)
    assert "determined to a factor of 20" in printed(20.0)
    assert "1e+03" not in printed(2.5e29)
    assert "any slope as steep fits these samples as well" in printed(2.5e29)


def test_collinear_parameters_are_named() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), aafit.LEAF.like("SiLU"))
    x = torch.rand(1000, 1) * 0.5 + 4  # where the sigmoid is nearly constant
    found = aafit.identify(net, [(x, x + 0.001 * torch.randn(1000, 1))], loss="mean squared error").uncertainty
    assert found is not None
    assert any({pair.first, pair.second} <= {"1.p1", "1.p2", "1.p4"} for pair in found.pairs)
    assert "Collinear parameters" in str(found)


def test_the_scaled_inverse_does_not_depend_on_units() -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    H, units = rows.T @ rows, torch.tensor([1.0, 1e8, 1e-8, 1e3]).double()
    inverse, flat = scaled_inverse(H * torch.outer(units, units))
    assert flat.shape == (4, 0)
    assert torch.allclose(inverse * torch.outer(units, units), torch.linalg.inv(H), rtol=1e-9)


def test_many_outputs_take_random_probes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), aafit.AHAF.like("SiLU"), nn.Linear(8, 40)).double()
    x = torch.randn(400, 4).double()
    y = torch.distributions.Categorical(logits=net(x).detach()).sample()
    results = [aafit.identify(net, [(x, y)], curvature=curvature).uncertainty for curvature in ("sampled", "exact")]
    sampled, exact = results
    assert sampled is not None
    assert exact is not None
    assert (sampled.probes, exact.probes) == (8, None)
    assert "8 random probes" in str(sampled)
    assert [row.error for row in sampled.rows] == pytest.approx([row.error for row in exact.rows], rel=0.4)


def test_a_slope_as_steep_as_relu_is_explained() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(600, 4)
    smooth = nn.Sequential(base[0], nn.SiLU(), base[2])
    printed = {}
    for start, truth in (("ReLU", base), ("SiLU", smooth)):
        net, _ = aafit.replace_activations(base, {"ReLU": aafit.AHAF.like(start)}, sample=x[:2])
        y = truth(x).detach() + 0.05 * torch.randn(600, 3)
        printed[start] = str(aafit.identify(net, [(x, y)], loss="mean squared error"))
    assert "few samples determine it" in printed["ReLU"]
    assert "few samples determine it" not in printed["SiLU"]


@pytest.mark.parametrize(("start", "advised"), [("ReLU", True), ("SiLU", False)])
def test_smoother_functions_are_advised_only_for_steep_ones(start: str, advised: bool) -> None:
    """Few samples determine neither slope; a smooth start is no advice for what is smooth."""
    torch.manual_seed(0)
    x, y = torch.randn(60, 4), torch.randint(3, (60,))
    net = nn.Sequential(nn.Linear(4, 8), aafit.LEAF.like(start), nn.Linear(8, 3))
    found = aafit.identify(net, [(x, y)], verbose=False).uncertainty
    assert found is not None
    slopes = [row for row in found.rows if row.name in ("1.p1", "1.p3")]
    assert not all(row.determined and row.factor < 2 for row in slopes)
    assert ("as steep as ReLU" in str(found)) == advised
