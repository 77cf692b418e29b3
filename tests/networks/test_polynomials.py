"""Polynomials exported: coefficients, ranges of inputs, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import aafit
from aafit.errors import UserError


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3), nn.GELU(), nn.Linear(3, 2)).eval()


def inputs(rows: int = 400) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))


def replaced(sharing: str = "layer") -> nn.Module:
    net, _ = aafit.replace_activations(base(), {"GELU": aafit.Polynomial}, sharing=sharing, sample=inputs())
    return net


@pytest.mark.parametrize("sharing", ["layer", "channel"])
def test_the_network_is_computed_from_the_json(sharing: str, tmp_path: Path) -> None:
    net, x = replaced(sharing), inputs()
    exported = aafit.export_polynomials(net, x.split(100))
    exported.save(tmp_path / "polynomials.json")
    rows = json.loads((tmp_path / "polynomials.json").read_text())["polynomials"]
    assert [row["path"] for row in rows] == ["1", "3"]
    y = x.double().numpy()
    for linear, row in zip((net[0], net[2], net[4]), [*rows, None], strict=True):
        y = y @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()
        if row is not None:
            assert row["least"] == pytest.approx(y.min(), rel=1e-4)
            assert row["largest"] == pytest.approx(y.max(), rel=1e-4)
            left, right = row["interval"]
            assert row["outside"] == pytest.approx(((y < left) | (y > right)).mean())
            sets = [row["powers"][0]] * y.shape[1] if len(row["powers"]) == 1 else row["powers"]
            y = np.stack([np.polynomial.polynomial.polyval(y[:, at], own) for at, own in enumerate(sets)], 1)
    np.testing.assert_allclose(net(x).detach().numpy(), y, atol=1e-4)
    assert "far outside" in str(exported)


def test_inputs_far_outside_are_refused_with_their_share() -> None:
    net, x = replaced(), inputs()
    x[:4] *= 40
    with pytest.raises(UserError, match=r"'1' receives \d+\.\d+% of its inputs far outside \[.*up to .* larger margin"):
        aafit.export_polynomials(net, [x])
    exported = aafit.export_polynomials(net, [x], allowed_far=1.0)
    u = net[0](x)
    left, right = net[1].interval
    reach = (right - left) / 2
    far = ((u < left - reach) | (u > right + reach)).double().mean().item()
    assert exported.rows[0].far == pytest.approx(far)
    assert far > 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: aafit.export_polynomials(base(), [inputs()]), "no polynomial to export"),
        (
            lambda: aafit.export_polynomials(nn.Sequential(aafit.LEAF.like("ReLU")), [inputs()]),
            "not a polynomial",
        ),
        (lambda: aafit.export_polynomials(replaced(), []), "do not reach the polynomial at '1'"),
        (lambda: aafit.export_polynomials(replaced(), [inputs() * math.inf]), "receives NaN or infinity"),
    ],
)
def test_wrong_values(make, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()
