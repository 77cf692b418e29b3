"""Loss, gradient and Gauss-Newton curvature against autograd's own, and steps against plain solves."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from identification_helpers import DISTANCE, hessians
from small import network
from torch import Tensor, nn
from torch.func import functional_call

from aafit.activations import AHAF, LEAF, AdaptiveActivation, FNeuron
from aafit.errors import UserError
from aafit.identification.coordinates import Coordinates
from aafit.identification.damped_steps import KrylovSteps, dense_step
from aafit.identification.gauss_newton import Model, descend, model_at
from aafit.identification.problem import Problem, Quadratic
from aafit.identification.samples import load_samples
from aafit.networks.adaptive import adaptive_parameters
from aafit.networks.batches import Batch
from aafit.networks.surgery import replace_activations
from aafit.training.losses import CROSS_ENTROPY, SQUARED_ERROR, Loss, as_loss
from aafit.training.predictor import Predictor

SHARP = ("gamma", "p3")
STARTS: dict[str, dict[str, Any]] = {
    "LEAF and AHAF": {"act1": LEAF.like("SiLU"), "act2": AHAF.like("SiLU")},
    "AHAF and F-Neuron": {"act1": AHAF.like("SiLU"), "act2": FNeuron.like("Tanh", knots=5)},
    "F-Neuron and LEAF": {"act1": FNeuron.like("Tanh", knots=4), "act2": LEAF.like("Tanh")},
}


def turned(net: nn.Module) -> Any:
    """`net` whose adaptive parameters all differ."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adaptive_parameters(net).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3)
    return net.eval()


def case(start: str = "LEAF and AHAF", sharing: Any = "layer", count: int = 6) -> tuple[Any, Batch, Tensor]:
    """A convolutional network, images with classes for it, and outputs of other images to use as targets."""
    generator = torch.Generator().manual_seed(2)
    net = turned(network(STARTS[start], torch.float64, sharing))
    x, other = torch.randn(2, count, 2, 4, 4, generator=generator, dtype=torch.float64)
    return net, Batch((x,), {}, torch.randint(3, (count,), generator=generator)), net(other).detach()


def slopes_of(parameters: dict[str, Any]) -> Tensor:
    """dp/dt at t = asinh(p) of a steepness, 1 of the others."""
    each = ((1 + p.square()).sqrt() if name.endswith(SHARP) else torch.ones_like(p) for name, p in parameters.items())
    return torch.cat([slope.flatten() for slope in each]).detach()


def by_autograd(net: nn.Module, loss: Loss, images: Batch) -> Quadratic:
    """The same by the Jacobian of the outputs by p, its chain rule to t = asinh(p) for a steepness, and a Hessian."""
    parameters = adaptive_parameters(net)
    derivatives_P = slopes_of(parameters)

    def outputs(*tensors: Tensor) -> Any:
        return functional_call(net, dict(zip(parameters, tensors, strict=True)), images.args)

    pieces = torch.autograd.functional.jacobian(outputs, tuple(p.detach() for p in parameters.values()))
    N = len(images)
    J_NKP = torch.cat([piece.reshape(N, piece.shape[1], -1) for piece in pieces], 2) * derivatives_P
    outputs_NK = net(*images.args).detach().requires_grad_()
    values_N = loss.value(outputs_NK, images.target)
    (g_NK,) = torch.autograd.grad(values_N.sum(), outputs_NK)
    H_NKK = hessians(loss, outputs_NK.detach(), images.target)
    g_NP = torch.einsum("nk,nkp->np", g_NK, J_NKP)
    curvature_PP = torch.einsum("nkp,nkl,nlq->pq", J_NKP, H_NKK, J_NKP)
    return Quadratic(values_N.mean().item(), g_NP.mean(0), curvature_PP / N, g_NP.T @ g_NP / N, N)


def same(found: Quadratic, expected: Quadratic, rtol: float = 1e-9, atol: float = 1e-13) -> None:
    assert (found.loss, found.samples) == (pytest.approx(expected.loss, rel=rtol), expected.samples)
    for name in ("gradient_P", "curvature_PP", "scatter_PP"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), rtol=rtol, atol=atol), name


def problem_of(net: nn.Module, loss: Loss = CROSS_ENTROPY, batch_size: int = 4) -> tuple[Problem, Tensor]:
    coordinates = Coordinates(net)
    return Problem(Predictor(net, batch_size=batch_size), coordinates, loss), coordinates.read()


@pytest.mark.parametrize("sharing", ["layer", "channel", "neuron"])
@pytest.mark.parametrize("start", STARTS)
def test_the_matrix_is_autograds(start: str, sharing: Any) -> None:
    net, images, _ = case(start, sharing)
    problem, vector_P = problem_of(net)
    expected = by_autograd(net, CROSS_ENTROPY, images)
    same(problem.quadratic(vector_P, images), expected)
    loss, gradient_P = problem.gradient(vector_P, images)
    assert loss == pytest.approx(expected.loss)
    assert torch.allclose(gradient_P, expected.gradient_P, rtol=1e-9, atol=1e-13)
    direction_P = torch.randn(len(vector_P), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product_P = problem.product(vector_P, images, direction_P)
    assert torch.allclose(product_P, expected.curvature_PP @ direction_P, rtol=1e-8, atol=1e-12)


def test_the_model_of_a_step_has_the_covariance_of_the_gradients() -> None:
    """Away from a minimum, where the mean gradient is not 0."""
    net, images, _ = case("AHAF and F-Neuron", "channel")
    problem, vector_P = problem_of(net)
    expected = by_autograd(net, CROSS_ENTROPY, images)
    groups = [torch.arange(len(vector_P)).unsqueeze(0)]
    model = model_at(problem, vector_P, images, groups, None, 0)
    assert model.loss == pytest.approx(expected.loss)
    assert torch.allclose(model.gradient_P, expected.gradient_P, rtol=1e-9, atol=1e-13)
    assert torch.allclose(model.curvature[0][0], expected.curvature_PP, rtol=1e-9, atol=1e-13)
    covariance_PP = expected.scatter_PP - torch.outer(expected.gradient_P, expected.gradient_P)
    assert torch.allclose(model.scatter[0][0], covariance_PP, rtol=1e-9, atol=1e-13)
    assert not torch.allclose(model.scatter[0][0], expected.scatter_PP, rtol=1e-3)
    kept = model_at(problem, vector_P, images, groups, None, 0, curvature=[2 * model.curvature[0]])
    assert torch.equal(kept.gradient_P, model.gradient_P)
    assert torch.equal(kept.curvature[0], 2 * model.curvature[0])
    renewed = model_at(problem, vector_P, images, groups, None, 0, known=kept)
    assert (renewed.loss, renewed.labelled) == (model.loss, model.labelled)
    assert torch.equal(renewed.gradient_P, model.gradient_P)
    assert torch.equal(renewed.curvature[0], model.curvature[0])


@pytest.mark.parametrize("name", ["probabilities", "mean squared error", "given"])
def test_other_losses(name: str) -> None:
    net, images, other = case("AHAF and F-Neuron", "channel")
    targets = other.softmax(1) if name == "probabilities" else other
    loss = {"probabilities": CROSS_ENTROPY, "mean squared error": SQUARED_ERROR, "given": DISTANCE}[name]
    images = Batch(images.args, {}, targets)
    problem, vector_P = problem_of(net, loss)
    expected = by_autograd(net, loss, images)
    same(problem.quadratic(vector_P, images), expected)
    direction_P = torch.linspace(-1, 1, len(vector_P), dtype=torch.float64)
    assert torch.allclose(problem.product(vector_P, images, direction_P), expected.curvature_PP @ direction_P)
    assert torch.allclose(problem.gradient(vector_P, images)[1], expected.gradient_P)


@pytest.mark.parametrize(
    ("kind", "sharing"),
    [
        *((kind, sharing) for kind in ("linear", "channels last") for sharing in ("layer", "channel", "neuron")),
        ("sequences", "layer"),
        ("sequences", "neuron"),
    ],
)
def test_other_networks(kind: str, sharing: Any) -> None:
    torch.manual_seed(1)
    if kind == "channels last":
        net, images, _ = case("LEAF and AHAF", sharing)
        net = net.to(memory_format=torch.channels_last)
        images = Batch((images.args[0].to(memory_format=torch.channels_last),), {}, images.target)
    else:
        x = torch.randn(*((5, 4) if kind == "linear" else (5, 3, 4)), dtype=torch.float64)
        flat = nn.Identity() if kind == "linear" else nn.Flatten()
        head = nn.Linear(4 if kind == "linear" else 12, 3)
        base = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.SiLU(), flat, head).double()
        starts = {"ReLU": LEAF.like("SiLU"), "SiLU": FNeuron.like("SiLU", knots=4)}
        net, images = turned(replace_activations(base, starts, sharing, x)[0]), Batch((x,), {}, torch.arange(5) % 3)
    problem, vector_P = problem_of(net)
    same(problem.quadratic(vector_P, images), by_autograd(net, CROSS_ENTROPY, images))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (1, 2, 2), (2,)])
def test_parameters_of_any_shape_that_broadcasts(shape: tuple[int, ...]) -> None:
    net, images, _ = case()
    net.act1 = LEAF.like("Tanh", shape).double()
    net = turned(net)
    problem, vector_P = problem_of(net)
    same(problem.quadratic(vector_P, images), by_autograd(net, CROSS_ENTROPY, images))


def test_sampled_curvature_is_right_on_average() -> None:
    net, images, _ = case("LEAF and AHAF", "layer", count=3)
    with torch.no_grad():
        net.out.weight.mul_(0.1)
    draws = 4000
    many = Batch((images.args[0].repeat(draws, 1, 1, 1),), {}, images.target.repeat(draws))
    problem, vector_P = problem_of(net, batch_size=1000)
    exact = problem.quadratic(vector_P, images)
    sampled = problem.quadratic(vector_P, many, probes=1, seed=1)
    same(Quadratic(sampled.loss, sampled.gradient_P, exact.curvature_PP, sampled.scatter_PP, 3), exact)
    root_P = exact.curvature_PP.diagonal().sqrt()
    assert ((sampled.curvature_PP - exact.curvature_PP) / (root_P[:, None] * root_P)).abs().max() < 0.05
    estimate_P = problem.diagonal(vector_P, many, seed=2)
    assert torch.allclose(estimate_P, exact.curvature_PP.diagonal(), rtol=0.05)
    again = problem.quadratic(vector_P, images, probes=1, seed=3)
    assert torch.equal(again.curvature_PP, problem.quadratic(vector_P, images, probes=1, seed=3).curvature_PP)
    assert not torch.equal(again.curvature_PP, problem.quadratic(vector_P, images, probes=1, seed=4).curvature_PP)
    # As many columns as outputs are the exact ones.
    assert torch.equal(problem.quadratic(vector_P, images, probes=3).curvature_PP, exact.curvature_PP)


@pytest.mark.parametrize("sharing", ["layer", "neuron"])
def test_float32_and_batches_of_any_size(sharing: str) -> None:
    net, images, _ = case("LEAF and AHAF", sharing, count=7)
    expected = by_autograd(net, CROSS_ENTROPY, images)
    direction_P = torch.ones(len(expected.gradient_P)).double()
    for size in (1, 3, 100):
        problem, vector_P = problem_of(net, batch_size=size)
        same(problem.quadratic(vector_P, images), expected)
        assert torch.allclose(problem.product(vector_P, images, direction_P), expected.curvature_PP @ direction_P)
        assert torch.allclose(problem.outputs(vector_P, images), net(*images.args))
        losses_N = problem.scores(problem.outputs(vector_P, images), images.target).loss_B
        assert torch.allclose(losses_N, F.cross_entropy(net(*images.args), images.target, reduction="none"))
    narrow, x = net.float(), images.args[0].float()
    problem, vector_P = problem_of(narrow)
    same(problem.quadratic(vector_P, Batch((x,), {}, images.target)), expected, rtol=1e-3, atol=1e-5)


def test_a_vector_that_is_not_what_the_network_holds() -> None:
    net, images, _ = case()
    problem, vector_P = problem_of(net)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    found = problem.quadratic(vector_P + 0.1, images)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert all(p.grad is None for p in net.parameters())
    problem.coordinates.write(vector_P + 0.1)
    same(found, by_autograd(net, CROSS_ENTROPY, images))


class Folded(nn.Module):
    """A network of sequences (B, T, 4) whose first activation receives them in another form."""

    def __init__(self, form: str, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.form, self.lin, self.act1 = form, nn.Linear(4, 4), LEAF.like("SiLU")
        self.act2, self.out = AHAF.like("SiLU"), nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        u = self.lin(x)
        if self.form == "positions folded":
            u = self.act1(u.flatten(0, 1)).reshape(u.shape)
        elif self.form == "positions first":
            u = self.act1(u.transpose(0, 1)).transpose(0, 1)
        elif self.form == "positions first, folded":
            u = self.act1(u.transpose(0, 1).flatten(0, 1)).reshape(x.shape[1], -1, 4).transpose(0, 1)
        elif self.form == "all in one":
            u = self.act1(u.reshape(-1)).reshape(u.shape)
        elif self.form == "called twice":
            u = self.act1(self.act1(u) + 1)
        elif self.form == "mixed":
            u = self.act1(u.mean(0)) + u
        logits: Tensor = self.out(self.act2(u).mean(1) if self.form != "outputs" else self.act2(u))
        return logits


FORMS = ["positions folded", "positions first", "positions first, folded", "all in one", "called twice", "plain"]


@pytest.mark.parametrize("form", FORMS)
def test_samples_that_are_not_rows_of_what_an_activation_receives(form: str) -> None:
    net = turned(Folded(form).double())
    samples = Batch(
        (torch.randn(7, 5, 4, generator=torch.Generator().manual_seed(1)).double(),), {}, torch.arange(7) % 3
    )
    problem, vector_P = problem_of(net)
    same(problem.quadratic(vector_P, samples), by_autograd(net, CROSS_ENTROPY, samples))


def test_samples_that_mix_are_refused() -> None:
    with pytest.raises(UserError, match="outputs for a sample depend on the other samples of the batch"):
        load_samples(Predictor(Folded("mixed").double()), [torch.randn(5, 5, 4).double()], "test")


def by_positions(net: nn.Module, loss: Any, samples: Batch) -> Quadratic:
    """Gradient and curvature of the mean of loss(outputs, target), a number for each sample, by autograd throughout."""
    parameters = adaptive_parameters(net)
    slopes = {
        name: (1 + p.square()).sqrt() if name.endswith(SHARP) else torch.ones_like(p) for name, p in parameters.items()
    }
    derivatives_P = torch.cat([slope.flatten() for slope in slopes.values()]).detach()
    given = tuple(p.detach() for p in parameters.values())
    N, gradients, curvature_PP, total = len(samples), [], 0.0, 0.0
    for n in range(N):
        one = samples.part(n, n + 1)

        def outputs(*tensors: Tensor, one: Batch = one) -> Any:
            return functional_call(net, dict(zip(parameters, tensors, strict=True)), one.args, one.kwargs)

        y = outputs(*given).detach()
        J_KP = torch.cat([p.reshape(y.numel(), -1) for p in torch.autograd.functional.jacobian(outputs, given)], 1)
        value = lambda y, one=one: loss(y, one.target).sum()  # noqa: E731
        H = torch.autograd.functional.hessian(value, y).reshape(y.numel(), y.numel())
        leaf = y.clone().requires_grad_()
        (g,) = torch.autograd.grad(value(leaf), leaf)
        J_KP = J_KP * derivatives_P
        gradients.append(g.flatten() @ J_KP)
        curvature_PP = curvature_PP + J_KP.T @ H @ J_KP
        total += value(y).item()
    g_NP = torch.stack(gradients)
    return Quadratic(total / N, g_NP.mean(0), torch.as_tensor(curvature_PP) / N, g_NP.T @ g_NP / N, N)


class Pictures(nn.Module):
    """Classes for each place of a picture, as a segmentation gives them, called with a keyword."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.act, self.out = nn.Conv2d(2, 3, 3, padding=1), AHAF.like("SiLU"), nn.Conv2d(3, 4, 1)

    def forward(self, *, pixels: Tensor) -> Tensor:
        logits: Tensor = self.out(self.act(self.conv(pixels)))
        return logits


def masked(y: Tensor, target: Tensor) -> Tensor:
    """The sum of F.cross_entropy over the labelled positions of one sample."""
    classes_first = y.movedim(-1, 1) if y.ndim == 3 else y
    each = F.cross_entropy(classes_first, target, reduction="none", ignore_index=-100)
    return each.sum()


@pytest.mark.parametrize("kind", ["sequences", "pictures"])
@pytest.mark.parametrize("probes", [None, 4000])
def test_classes_at_positions_some_of_which_do_not_count(kind: str, probes: int | None) -> None:
    generator = torch.Generator().manual_seed(4)
    if kind == "sequences":
        net = turned(Folded("outputs").double())
        x = torch.randn(6, 5, 4, generator=generator, dtype=torch.float64)
        labels = torch.randint(3, (6, 5), generator=generator)
    else:
        net = turned(Pictures().double())
        x = torch.randn(6, 2, 3, 4, generator=generator, dtype=torch.float64)
        labels = torch.randint(4, (6, 3, 4), generator=generator)
    labels[0, 1:], labels[1] = -100, -100
    samples = Batch((x,), {}, labels) if kind == "sequences" else Batch((), {"pixels": x}, labels)
    problem, vector_P = problem_of(net)
    each = (labels != -100).sum() / len(labels)
    expected = by_positions(net, lambda y, target: masked(y, target) / each, samples)
    same(problem.quadratic(vector_P, samples, probes), expected, rtol=1e-7)
    direction_P = torch.linspace(-1, 1, len(vector_P), dtype=torch.float64)
    product_P = problem.product(vector_P, samples, direction_P)
    assert torch.allclose(product_P, expected.curvature_PP @ direction_P, rtol=1e-6, atol=1e-10)
    drawn = [problem.quadratic(vector_P, samples, 8, seed).curvature_PP for seed in range(40)]
    error_PP = torch.stack(drawn).std(0) / 40**0.5
    assert ((torch.stack(drawn).mean(0) - expected.curvature_PP).abs() <= 5 * error_PP + 1e-10).all()


def huber(y: Tensor, target: Tensor) -> Tensor:
    return F.huber_loss(y, target, reduction="none")


def test_a_loss_that_is_a_function_of_output_and_target() -> None:
    net = turned(Folded("outputs").double())
    x, target = torch.randn(2, 4, 5, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    samples = Batch((x,), {}, target[..., :3])
    problem, vector_P = problem_of(net, as_loss(huber))
    expected = by_positions(net, lambda y, t: huber(y, t).flatten(1).mean(1), samples)
    same(problem.quadratic(vector_P, samples), expected, rtol=1e-7)
    squared, _ = problem_of(net, SQUARED_ERROR)
    expected = by_positions(net, lambda y, t: (y - t).square().flatten(1).mean(1), samples)
    same(squared.quadratic(vector_P, samples), expected, rtol=1e-7)
    given = problem_of(net, as_loss(lambda y, t: (y - t).square()))[0].quadratic(vector_P, samples)
    same(given, expected, rtol=1e-7)


SHAPES = st.sampled_from([(1,), (3,), (2, 1, 1), (2, 2, 3)])


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.sampled_from(["AHAF", "LEAF", "F-Neuron"]), SHAPES), min_size=1),
    seed=st.integers(0, 99),
)
def test_coordinates_there_and_back(shapes: list[tuple[str, tuple[int, ...]]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kinds: dict[str, Any] = {"AHAF": AHAF, "LEAF": LEAF, "F-Neuron": FNeuron}
    activations: list[AdaptiveActivation] = [kinds[kind].random(shape, generator) for kind, shape in shapes]
    net = nn.Sequential(*activations).double()
    coordinates = Coordinates(net)
    numbers = [p.numel() for p in net.parameters()]
    assert len(coordinates) == len(coordinates.names) == len(coordinates.layers) == sum(numbers)
    assert len(set(coordinates.names)) == len(coordinates)
    vector_P = torch.randn(len(coordinates), generator=generator, dtype=torch.float64) * 3
    coordinates.write(vector_P)
    assert torch.allclose(coordinates.read(), vector_P, rtol=1e-12, atol=1e-12)
    flat_P = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert torch.allclose(coordinates.values(vector_P), flat_P, rtol=1e-12)
    sharp = [name.split(".")[1].split("[")[0] in SHARP for name in coordinates.names]
    assert coordinates.is_slope_P.tolist() == sharp
    assert torch.equal(flat_P, torch.where(torch.tensor(sharp), vector_P.sinh(), vector_P))
    wide_P = vector_P.clone().requires_grad_()
    (derivatives_P,) = torch.autograd.grad(coordinates.values(wide_P).sum(), wide_P)
    assert torch.allclose(coordinates.derivatives(vector_P), derivatives_P)
    for name, tensor in coordinates.tensors(vector_P).items():
        assert torch.equal(tensor, net.get_parameter(name))


def test_names_of_elements() -> None:
    net = nn.ModuleDict({"a": AHAF.like("ReLU"), "f": FNeuron.like("Tanh", knots=3), "c": AHAF.like("SiLU", (2, 1, 1))})
    names = ["a.gamma", "a.beta", "f.weight[0]", "f.weight[1]", "f.weight[2]"]
    names += [f"c.{name}[{at},0,0]" for name in ("gamma", "beta") for at in range(2)]
    assert Coordinates(net).names == names
    assert Coordinates(AHAF.like("ReLU")).names == ["gamma", "beta"]


def positive(P: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A gradient and a positive definite curvature of very different scales."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3 * P, P, generator=generator, dtype=torch.float64) * torch.logspace(-3, 3, P).double()
    return torch.randn(P, generator=generator, dtype=torch.float64) * rows.norm(dim=0), rows.T @ rows / (3 * P)


@pytest.mark.parametrize("damping", [0.0, 1e-3, 1.0, 1e4])
def test_steps_against_a_plain_solve(damping: float) -> None:
    g_P, C_PP = positive(8)
    expected_P = torch.linalg.solve(C_PP + damping * C_PP.diagonal().diag(), -g_P)
    assert torch.allclose(dense_step(g_P, C_PP, damping), expected_P, rtol=1e-8, atol=0)
    found_P = KrylovSteps(g_P, C_PP.mv, C_PP.diagonal(), products=100, tolerance=1e-12)(damping)
    assert torch.allclose(found_P, expected_P, rtol=1e-6, atol=0)
    # What it costs is bounded, and it goes down all the same.
    assert g_P @ KrylovSteps(g_P, C_PP.mv, C_PP.diagonal(), products=2)(damping) < 0


def test_the_products_for_one_damping_serve_the_next() -> None:
    g_P, C_PP = positive(60)
    made = []

    def product(d_P: Tensor) -> Tensor:
        made.append(d_P)
        return C_PP.mv(d_P)

    steps = KrylovSteps(g_P, product, C_PP.diagonal(), products=60, tolerance=1e-10)
    count = None
    for damping in (0.01, 0.08, 0.64, 1e3):
        expected_P = torch.linalg.solve(C_PP + damping * C_PP.diagonal().diag(), -g_P)
        assert torch.allclose(steps(damping), expected_P, rtol=1e-5, atol=1e-8 * expected_P.abs().max())
        count = count or len(made)
        assert len(made) == count < 60
    # A weaker one needs more of them.
    steps(1e-4)
    assert len(made) > count


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("what", ["gradient", "diagonal", "first product", "second product"])
def test_what_is_not_finite_is_no_step(what: str, bad: float) -> None:
    """NaN, or no step at all: never an error of the linear algebra."""
    g_P, C_PP = positive(8)
    diagonal_P, made = C_PP.diagonal().clone(), []
    if what in ("gradient", "diagonal"):
        {"gradient": g_P, "diagonal": diagonal_P}[what][3] = bad

    def product(d_P: Tensor) -> Tensor:
        made.append(d_P)
        at = {"first product": 1, "second product": 2}.get(what)
        return torch.full_like(d_P, bad) if len(made) == at else C_PP.mv(d_P)

    steps = KrylovSteps(g_P, product, diagonal_P, tolerance=1e-12)
    for damping in (0.1, 10.0):
        step_P = steps(damping)
        assert step_P.isnan().any() or not step_P.any()
    assert len(made) <= 2


@pytest.mark.parametrize("products", [1, 3, 6])
def test_each_step_is_the_best_of_what_its_products_reach(products: int) -> None:
    """What conjugate gradients find: the least value over the powers of the scaled curvature times the gradient."""
    g_P, C_PP = positive(12)
    root_P = C_PP.diagonal().sqrt()
    scaled_PP, scaled_P = C_PP / (root_P[:, None] * root_P) + 0.1 * torch.eye(12).double(), -g_P / root_P
    reached_PK = torch.stack([torch.linalg.matrix_power(scaled_PP, k) @ scaled_P for k in range(products)], 1)
    basis_PK = torch.linalg.qr(reached_PK).Q
    best_P = basis_PK @ torch.linalg.solve(basis_PK.T @ scaled_PP @ basis_PK, basis_PK.T @ scaled_P) / root_P
    found_P = KrylovSteps(g_P, C_PP.mv, C_PP.diagonal(), products=products, tolerance=0)(0.1)
    assert torch.allclose(found_P, best_P, rtol=1e-6, atol=1e-9 * best_P.abs().max())


@pytest.mark.parametrize("damping", [1e-6, 1e-3, 1.0])
def test_what_nothing_depends_on_does_not_move(damping: float) -> None:
    g_P, C_PP = positive(5)
    g_P[2], C_PP[2], C_PP[:, 2] = 0, 0, 0
    others = [0, 1, 3, 4]
    part_PP = C_PP[others][:, others]
    expected_P = torch.linalg.solve(part_PP + damping * part_PP.diagonal().diag(), -g_P[others])
    for step_P in (
        dense_step(g_P, C_PP, damping),
        KrylovSteps(g_P, C_PP.mv, C_PP.diagonal(), products=100, tolerance=1e-12)(damping),
    ):
        assert step_P[2] == 0
        assert torch.allclose(step_P[others], expected_P, rtol=1e-6)
    nothing_P = torch.zeros(5).double()
    assert torch.equal(dense_step(nothing_P, torch.zeros(5, 5).double(), damping), nothing_P)
    assert torch.equal(KrylovSteps(nothing_P, torch.zeros_like, nothing_P)(damping), nothing_P)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(-1, 3))
def test_a_step_updates_the_curvature_by_the_change_of_the_gradient(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    root_PP, step_P, noise_P = (torch.randn(*shape, generator=generator).double() for shape in ((4, 4), (4,), (4,)))
    before_PP = root_PP @ root_PP.T + 0.1 * torch.eye(4).double()
    curved = (step_P @ before_PP @ step_P).item()
    # A change of the gradient whose part along the step is `share` of what the curvature implies.
    change_P = noise_P + step_P * (share * curved - noise_P @ step_P) / step_P.square().sum()

    def model(gradient_P: Tensor) -> Model:
        return Model([torch.arange(4).unsqueeze(0)], 0.0, gradient_P, [before_PP.unsqueeze(0)], [], 100, 100)

    start_P = torch.zeros(4).double()
    updated_PP = model(change_P).updated(model(start_P), step_P).curvature[0][0]
    assert torch.allclose(updated_PP, updated_PP.T)
    assert torch.linalg.eigvalsh(updated_PP).min() > 0
    found = (step_P @ updated_PP @ step_P).item()
    assert found == pytest.approx(max(share, 0.2) * curved, rel=1e-6)
    if share >= 0.2:
        assert torch.allclose(updated_PP @ step_P, change_P, rtol=1e-6, atol=1e-9)


class Parabola:
    """A quadratic model of t^2 / 2 at t = 1, whose damped steps are -1 / (1 + damping)."""

    vector_P = torch.ones(1, dtype=torch.float64)
    gradient_P = torch.ones(1, dtype=torch.float64)
    objective = 0.5

    def step(self, damping: float) -> Tensor:
        return -self.vector_P / (1 + damping)

    def predicted(self, step_P: Tensor) -> float:
        return -(step_P + step_P.square() / 2).item()

    def prior_term(self, vector_P: Tensor) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("damping", "longest", "following"),
    [
        (0.0, 2.0, 0.0),  # as predicted: undamped again
        (0.8, 2.0, 0.1),  # a good first step: less
        (1e-7, 2.0, 0.0),  # so little damping has no effect
        (0.0, 0.9, 0.512),  # 0, 0.001, 0.008 and 0.064 lead too far: what was found is kept
        (1e-7, 0.9, 0.512),
        (0.064, 0.9, 0.512),
    ],
)
def test_the_damping_that_was_found_is_kept(damping: float, longest: float, following: float) -> None:
    """The loss is the parabola up to the longest step, and high beyond it."""

    def loss(t_P: Tensor, limit: float = math.inf) -> float:
        return t_P.square().item() / 2 if 1 - t_P.item() <= longest else 9.0

    found = descend(Parabola(), loss, damping)  # type: ignore[arg-type]
    assert found is not None
    assert found.damping == pytest.approx(following)
    assert found.loss == loss(found.vector_P) < 0.5
    assert found.gained == pytest.approx(found.predicted)
    assert descend(Parabola(), loss, damping, least_predicted=0.51) is None  # type: ignore[arg-type]
    assert descend(Parabola(), lambda t_P, limit: 9.0, damping) is None  # type: ignore[arg-type]
    assert descend(Parabola(), lambda t_P, limit: math.nan, damping) is None  # type: ignore[arg-type]
