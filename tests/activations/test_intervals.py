"""F-Neurons with an interval for each parameter set."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aafit import (
    LEAF,
    FNeuron,
    UserError,
    audit,
    find_activations,
    freeze_activations,
    identify,
    load_activations,
    replace_activations,
    save_activations,
)
from aafit.activations import from_settings

SCALES = torch.tensor([0.01, 1.0, 100.0, 3.0])
ENDS = torch.tensor([[-1.0, -2.0, -40.0, 0.0], [1.0, 6.0, 40.0, 5.0]])


def of_ends(outside: str = "flat") -> FNeuron:
    return FNeuron.like("SiLU", (4,), ENDS, knots=9, outside=outside)


def by_channel(family: object = FNeuron) -> tuple[nn.Sequential, nn.Module, object, torch.Tensor]:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 3))
    with torch.no_grad():
        base[0].weight.mul_(SCALES[:, None])
    x = torch.randn(500, 3)
    net, report = replace_activations(base, {"*": family}, "channel", x)
    return base, net, report, x


@pytest.mark.parametrize("outside", ["flat", "linear"])
def test_each_set_is_the_neuron_of_its_interval(outside: str) -> None:
    u = torch.randn(200, 4) * 30
    each = [FNeuron.like("SiLU", interval=tuple(ends), knots=9, outside=outside) for ends in ENDS.T.tolist()]
    wanted = torch.stack([own(u[:, at]) for at, own in enumerate(each)], 1)
    torch.testing.assert_close(of_ends(outside)(u), wanted)
    assert of_ends().interval == (-40.0, 40.0)
    torch.testing.assert_close(of_ends().knot_positions[3], each[3].knot_positions)
    assert torch.equal(of_ends().is_outside(u), torch.stack([n.is_outside(u[:, c]) for c, n in enumerate(each)], 1))


@pytest.mark.parametrize("outside", ["flat", "linear"])
def test_gradients_are_those_of_finite_differences(outside: str) -> None:
    f = of_ends(outside).double()
    u = (torch.randn(5, 4, dtype=torch.float64) * 3).requires_grad_()
    assert torch.autograd.gradcheck(f, (u,))
    assert torch.autograd.gradcheck(lambda w: torch.func.functional_call(f, {"weight": w}, (u,)), (f.weight,))


def test_half_precision_keeps_the_knots() -> None:
    f = copy.deepcopy(of_ends()).bfloat16()
    assert f.intervals is not None
    torch.testing.assert_close(f.intervals, ENDS)
    u = torch.randn(50, 4).bfloat16()
    assert f(u).dtype == torch.bfloat16
    torch.testing.assert_close(f(u).float(), of_ends()(u.float()), rtol=0.02, atol=0.02)


def test_a_state_dict_and_settings_have_the_intervals() -> None:
    shared = FNeuron.like("Tanh", (4,), knots=9)
    shared.load_state_dict(of_ends("linear").state_dict())
    u = torch.randn(50, 4) * 9
    assert torch.equal(shared(u), of_ends("linear")(u))
    back = of_ends()
    back.load_state_dict(FNeuron.like("Tanh", (4,), knots=9).state_dict())
    assert back.intervals is None
    assert torch.equal(back(u), FNeuron.like("Tanh", (4,), knots=9)(u))
    made = from_settings(of_ends().settings())
    made.load_state_dict(of_ends().state_dict())
    assert torch.equal(made(u), of_ends()(u))
    with pytest.raises(UserError, match="3 or 9 numbers"):
        back.set_extra_state(torch.zeros(7))


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (ENDS[:, :3], r"need the shape \(2, 4\)"),
        (torch.stack([ENDS[1], ENDS[0]]), "left < right"),
        (ENDS * math.nan, "finite ends"),
        (torch.tensor([[1e5], [1e5 + 0.5]]).expand(2, 4), "not usable in float32"),
    ],
)
def test_intervals_that_cannot_be_used(ends: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FNeuron(torch.zeros(4, 9), ends)


@pytest.mark.parametrize("family", [FNeuron, "F-Neuron", partial(FNeuron.fit, knots=34, outside="linear")])
def test_a_fit_by_channel_takes_the_intervals_from_the_inputs_of_each_channel(family: object) -> None:
    base, net, report, x = by_channel(family)
    neuron = net[1]
    left, right = neuron.intervals
    widths = (right - left) / (right - left)[1]
    assert widths[0] < 0.5 * widths[1] < 0.05 * widths[2]
    u = base[0](x)
    error = ((neuron(u) - F.silu(u)).square().mean(0) / F.silu(u).var(0)).sqrt()
    assert error.max() < 0.02, error
    shared, _ = replace_activations(base, {"*": FNeuron}, "layer", x)
    of_shared = ((shared[1](u) - F.silu(u)).square().mean(0) / F.silu(u).var(0)).sqrt()
    assert of_shared.max() > 0.2  # the narrow channel lies within one segment
    assert report.residuals["1"] < 0.02


def test_a_fit_by_channel_of_a_prelu_has_the_slope_of_each_channel() -> None:
    base = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4))
    base[1].weight.data = torch.tensor([0.1, 0.2, 0.0, 0.4])
    x = torch.randn(20, 3, 8, 8)
    net, _ = replace_activations(base, {"PReLU": FNeuron}, "channel", x)
    torch.testing.assert_close(net(x), base(x), rtol=0, atol=0.03)


def test_a_channel_with_one_value_is_fitted_on_the_inputs_of_all() -> None:
    base = nn.Sequential(nn.Linear(3, 4), nn.SiLU())
    with torch.no_grad():
        base[0].weight[2] = 0
    x = torch.randn(300, 3)
    net, _ = replace_activations(base, {"*": FNeuron}, "channel", x)
    torch.testing.assert_close(net(x), base(x), rtol=0, atol=0.03)


def test_an_outlier_does_not_set_the_interval_of_a_channel() -> None:
    inputs = torch.stack([torch.randn(500), torch.randn(500)])
    inputs[0, 0] = 1e4
    fitted = FNeuron.fit_each(torch.sin, inputs, (2,))
    assert fitted.interval[1] < 20
    assert fitted.residual is not None
    assert fitted.residual.outliers == pytest.approx(1 / 1000)


def test_saved_and_loaded(tmp_path) -> None:
    base, net, _, x = by_channel()
    save_activations(net, tmp_path / "a.safetensors")
    assert torch.equal(load_activations(base, tmp_path / "a.safetensors")(x), net(x))


def test_matching_a_layer_uses_the_intervals() -> None:
    base, net, _, x = by_channel()
    with torch.no_grad():
        net[1].weight.zero_()
    found = identify(net, [(x, None)], base=base, target="activations", errors=False)
    assert found.state.matched[0].after < 0.02
    u = base[0](x)
    assert ((net[1](u) - F.silu(u)).square().mean(0) / F.silu(u).var(0)).sqrt().max() < 0.05


def test_a_table_states_its_error() -> None:
    _, net, _, x = by_channel()
    frozen, report = freeze_activations(net, "table", sample=x)
    assert report.rows[0].rms < 0.01
    assert ((frozen(x) - net(x)).norm() / net(x).norm()).item() < 0.01


def test_find_replace_identify_and_audit_state_the_share_outside() -> None:
    base = nn.Sequential(nn.Identity(), nn.Tanh(), nn.Linear(4, 3))
    x = torch.tensor([-9.0, -1.0, 0.5, 2.0]).expand(40, 4) + torch.linspace(0, 0.1, 40)[:, None]
    found = find_activations(base, x)
    assert found["1"].outside == 0.25
    assert "25.00%" in str(found)
    assert "[-4, 4]" in str(found)
    net, report = replace_activations(base, {"Tanh": FNeuron.like("Tanh", interval=(-1.5, 1.5))}, sample=x)
    assert report.outside == {"1": 0.5}
    assert "Inputs outside the interval of an activation: 1 50.00%." in str(report)
    assert find_activations(net, x)["1"].outside == 0.5
    result = identify(net, [(x, torch.arange(40) % 3)], steps=1, errors=False)
    assert result.outside == {"1": 0.5}
    assert "1 50.00%" in str(result)
    assert result.as_dict()["outside"] == {"1": 0.5}
    net[1] = FNeuron.like("Tanh", (4,), torch.tensor([[-1.0] * 4, [1.0] * 4]))
    assert "50.00% of the inputs are outside the interval of their parameter set" in str(
        audit(net, [(x, torch.arange(40) % 3)])
    )
    _, report = replace_activations(base, {"Tanh": LEAF.like("Tanh")}, sample=x)
    assert report.outside == {}
    assert "Inputs outside" not in str(report)


def test_a_mask_is_not_outside() -> None:
    base = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(2, 2))
    x = torch.tensor([[-math.inf, 1.0], [9.0, 2.0]])
    _, report = replace_activations(base, {"ReLU": FNeuron.like("ReLU")}, sample=x)
    assert report.outside["1"] == pytest.approx(1 / 3)
