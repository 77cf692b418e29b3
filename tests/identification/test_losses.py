"""Factors of the losses' Hessians against autograd's own Hessians."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from identification_helpers import DISTANCE, distance, hessians
from torch import Tensor, nn

from aafit.activations import AHAF
from aafit.errors import UserError
from aafit.identification.identify import identify
from aafit.training.losses import CROSS_ENTROPY, LOSSES, SQUARED_ERROR, Loss, as_loss, loss_with_hessian


def drawn(B: int, K: int, seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs, and as targets classes, probabilities and numbers."""
    generator = torch.Generator().manual_seed(seed)
    outputs_BK, logits_BK, numbers_BK = torch.randn(3, B, K, generator=generator, dtype=torch.float64)
    classes_B = torch.randint(K, (B,), generator=generator)
    return outputs_BK * scale, classes_B, logits_BK.softmax(1), numbers_BK


@settings(max_examples=40, deadline=None)
@given(B=st.integers(1, 4), K=st.integers(1, 5), seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 1.0, 20.0]))
@pytest.mark.parametrize("name", ["classes", "probabilities", "numbers", "given"])
def test_the_factor_is_one_of_autograds_hessian(name: str, B: int, K: int, seed: int, scale: float) -> None:
    outputs_BK, *targets = drawn(B, K, seed, scale)
    loss, at = {
        "classes": (CROSS_ENTROPY, 0),
        "probabilities": (CROSS_ENTROPY, 1),
        "numbers": (SQUARED_ERROR, 2),
        "given": (DISTANCE, 2),
    }[name]
    factor_BKR = loss.factor(outputs_BK, targets[at])
    assert factor_BKR.shape[:2] == (B, K)
    assert torch.allclose(factor_BKR @ factor_BKR.mT, hessians(loss, outputs_BK, targets[at]), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, SQUARED_ERROR], ids=lambda loss: loss.name)
@pytest.mark.parametrize("columns", [1, 2])
def test_random_columns_are_right_on_average(loss: Loss, columns: int) -> None:
    outputs_BK, classes_B, _, numbers_BK = drawn(1, 4, seed=0, scale=1.0)
    targets = classes_B if loss is CROSS_ENTROPY else numbers_BK
    draws = 40_000
    repeated = (outputs_BK.expand(draws, -1), targets.expand(draws, *targets.shape[1:]))
    assert loss.sampled is not None
    factor_BKR = loss.sampled(*repeated, columns, torch.Generator().manual_seed(1))
    assert factor_BKR.shape == (draws, 4, columns)
    each_BKK = factor_BKR @ factor_BKR.mT
    expected_KK = hessians(loss, outputs_BK, targets)[0]
    error_KK = each_BKK.std(0) / draws**0.5
    # Five standard errors: a wrong factor is far more away, and the seed is fixed.
    assert ((each_BKK.mean(0) - expected_KK).abs() <= 5 * error_KK + 1e-12).all()


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, SQUARED_ERROR], ids=lambda loss: loss.name)
def test_random_columns_come_from_the_generator_alone(loss: Loss) -> None:
    outputs_BK, classes_B, _, numbers_BK = drawn(5, 3, seed=0)
    targets = classes_B if loss is CROSS_ENTROPY else numbers_BK
    assert loss.sampled is not None
    state = torch.get_rng_state()
    first, again, other = (
        loss.sampled(outputs_BK, targets, 4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_classes_without_any_probability_are_never_drawn() -> None:
    outputs_BK = torch.tensor([[-math.inf, 0.0, -math.inf]]).double().expand(200, -1)
    assert CROSS_ENTROPY.sampled is not None
    factor_BKR = CROSS_ENTROPY.sampled(outputs_BK, torch.ones(200).long(), 3, torch.Generator().manual_seed(0))
    assert torch.equal(factor_BKR, torch.zeros(200, 3, 3).double())


def test_the_values_are_those_of_torch() -> None:
    outputs_BK, classes_B, probabilities_BK, numbers_BK = drawn(6, 4, seed=3)
    for targets in (classes_B, probabilities_BK):
        assert CROSS_ENTROPY.value(outputs_BK, targets).mean() == F.cross_entropy(outputs_BK, targets)
    assert SQUARED_ERROR.value(outputs_BK, numbers_BK).mean().item() == pytest.approx(
        F.mse_loss(outputs_BK, numbers_BK).item()
    )
    assert CROSS_ENTROPY.value(outputs_BK, classes_B).shape == (6,)
    assert {name: loss.name for name, loss in LOSSES.items()} == {name: name for name in LOSSES}


def test_saturated_probabilities() -> None:
    outputs_BK = torch.tensor([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]]).double()
    factor_BKR = CROSS_ENTROPY.factor(outputs_BK, torch.tensor([0, 1]))
    assert torch.equal(factor_BKR[0], torch.zeros(3, 3).double())
    third = torch.full((3, 3), -1 / 9, dtype=torch.float64) + torch.eye(3, dtype=torch.float64) / 3
    assert torch.allclose(factor_BKR[1] @ factor_BKR[1].T, third)


def test_the_negative_part_of_a_given_hessian_is_left_out() -> None:
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())
    values = torch.tensor([2.0, -3.0, 0.5]).double()
    loss = loss_with_hessian(
        "saddle",
        lambda outputs, targets: outputs.sum(1),
        lambda outputs, targets: (rotation * values @ rotation.T)[None],
    )
    factor_BKR = loss.factor(torch.zeros(1, 3).double(), torch.zeros(1))
    assert torch.allclose(factor_BKR[0] @ factor_BKR[0].T, rotation * values.clamp(min=0) @ rotation.T)
    assert loss.sampled is None


def test_without_a_hessian_it_is_autograds() -> None:
    outputs_BK, _, _, numbers_BK = drawn(3, 4, seed=0)
    given, own = loss_with_hessian("distance", distance, None), DISTANCE
    factor_BKR, expected_BKR = given.factor(outputs_BK, numbers_BK), own.factor(outputs_BK, numbers_BK)
    assert torch.allclose(factor_BKR @ factor_BKR.mT, expected_BKR @ expected_BKR.mT)
    linear = loss_with_hessian("linear", lambda outputs, targets: outputs)
    assert not linear.factor(outputs_BK, numbers_BK).any()


@pytest.mark.parametrize(
    ("loss", "size", "says"),
    [
        (F.mse_loss, 4, "The loss 'mse_loss' returned shape .* for 3 samples. Return one value for each"),
        (lambda outputs, targets: 1.0, 4, "returned a float for 3 samples"),
        (lambda outputs, targets: outputs.mean(1), 600, "up to 512 outputs of a sample, and the network has 600"),
    ],
)
def test_functions_that_are_no_loss_by_sample(loss: Any, size: int, says: str) -> None:
    outputs_BK = torch.zeros(3, size, dtype=torch.float64)
    with pytest.raises(UserError, match=says):
        as_loss(loss).factor(outputs_BK, outputs_BK)
    with pytest.raises(UserError, match="The loss 3 cannot be used"):
        as_loss(3)  # type: ignore[arg-type]


def test_a_draw_has_the_curvature_of_a_network_that_is_sure() -> None:
    """Of two classes at odds any draw is exact, however sure the network is; a third class hardly matters."""
    outputs_BK = torch.tensor([[0.0, -9.0, -60.0]], dtype=torch.float64).expand(50, 3)
    assert CROSS_ENTROPY.sampled is not None
    factor_BKR = CROSS_ENTROPY.sampled(outputs_BK, torch.zeros(50).long(), 1, torch.Generator().manual_seed(0))
    exact_BKR = CROSS_ENTROPY.factor(outputs_BK, torch.zeros(50).long())
    assert torch.allclose(factor_BKR @ factor_BKR.mT, exact_BKR @ exact_BKR.mT, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_with_tensors_of_its_own_in_either_precision(dtype: torch.dtype) -> None:
    """Class weights, as for imbalanced classes: torch refuses to mix precisions."""
    torch.manual_seed(0)
    weight = torch.tensor([1.0, 5.0, 2.0])
    own = nn.CrossEntropyLoss(weight=weight.to(dtype), reduction="none")
    loss, wide = as_loss(own), as_loss(nn.CrossEntropyLoss(weight=weight.double(), reduction="none"))
    outputs, labels = torch.randn(5, 3, dtype=torch.float64), torch.randint(3, (5,))
    assert loss(outputs, labels).dtype == torch.float64
    assert torch.allclose(loss(outputs, labels), wide(outputs, labels), rtol=1e-6)
    hessian, expected = (one.factor(outputs, labels) @ one.factor(outputs, labels).mT for one in (loss, wide))
    assert torch.allclose(hessian, expected, rtol=1e-5, atol=1e-6)
    net = nn.Sequential(nn.Linear(4, 8), AHAF.like("SiLU"), nn.Linear(8, 3))
    x, y = torch.randn(60, 4), torch.randint(3, (60,))
    result = identify(net, [(x, y)], loss=own, heldout=0.0)
    assert result.steps[-1].loss <= result.steps[0].loss
