"""xIELU beyond what every family has: its starts, its tails, and the checkpoints of language models."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aafit.activations import FUNCTIONS, XIELU, Histogram
from aafit.activations.fitting import FitTarget


def test_the_papers_initial_values() -> None:
    a_p, a_n = XIELU.initial().curvatures
    torch.testing.assert_close(a_p, torch.tensor([0.8]))
    torch.testing.assert_close(a_n, torch.tensor([0.8]))
    # Its derivative at 0 is beta on both sides.
    u = torch.tensor([-1e-4, 1e-4], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(XIELU.initial().double()(u).sum(), u)
    torch.testing.assert_close(slope, torch.tensor([0.5, 0.5], dtype=torch.float64), rtol=0, atol=2e-4)


@pytest.mark.parametrize(("name", "rms"), [("ReLU", 0.28), ("SiLU", 0.06), ("GELU", 0.12)])
def test_a_start_has_the_least_squared_error_for_normal_inputs(name: str, rms: float) -> None:
    edges = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    centres = (edges[1:] + edges[:-1]) / 2
    normal = Histogram(edges, torch.exp(-centres.square() / 2))
    start, target = XIELU.like(name), FitTarget.of(FUNCTIONS[name], normal, "XIELU")
    assert target.residual(start).rms == pytest.approx(rms, abs=0.006)
    fitted = XIELU.fit(FUNCTIONS[name], normal)
    for one, other in zip(fitted.curvatures, start.curvatures, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_large_and_infinite_inputs(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    u = torch.tensor([math.inf, largest, -largest, -math.inf, 100.0, -100.0], dtype=dtype, requires_grad=True)
    activation = XIELU.initial().to(torch.promote_types(dtype, torch.float32))
    y = activation(u)
    assert not y.isnan().any()
    assert (y > 0).all()
    torch.testing.assert_close(
        y[4:].detach().double(), torch.tensor([8050.0, 29.2], dtype=torch.float64), rtol=0.01, atol=0
    )
    gradients = torch.autograd.grad(activation(u.float()).sum(), (u, *activation.parameters()))
    assert not any(gradient.isnan().any() for gradient in gradients)


def test_a_checkpoint_of_a_language_model_loads() -> None:
    """There the parameters have these names, one value each, before the softplus."""

    class Published(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alpha_p, self.alpha_n = nn.Parameter(torch.tensor([0.4])), nn.Parameter(torch.tensor([-0.7]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            right = F.softplus(self.alpha_p) * x**2 + 0.5 * x
            left = (0.5 + F.softplus(self.alpha_n)) * (torch.exp(x) - 1 - x) + 0.5 * x
            return torch.where(x > 0, right, left)

    made, published = XIELU.initial(), Published()
    made.load_state_dict(published.state_dict())
    u = torch.linspace(-5, 5, 1001)
    torch.testing.assert_close(made(u), published(u), rtol=1e-5, atol=2e-6)
