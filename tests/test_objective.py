"""The objectives against their formulas, term by term, and the choice among them."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rmtrain.batching.layout import PreferenceBatch
from rmtrain.objective import bradley_terry, compute_objective, plackett_luce
from rmtrain.recipe.schema import BradleyTerry, PlackettLuce

TWO_PAIRS = PreferenceBatch(
    comparison_N=torch.tensor([0, 0, 1, 1]),
    winner_E=torch.tensor([0, 2]),
    loser_E=torch.tensor([1, 3]),
    margin_E=torch.zeros(2),
    probability_E=torch.ones(2),
    weight_E=torch.ones(2),
)
REWARDS = torch.tensor([1.5, 0.25, -1.0, 2.0])
RANKED = PreferenceBatch(
    comparison_N=torch.tensor([0, 0, 0, 1, 1]),
    winner_E=torch.tensor([1, 1, 2, 3]),
    loser_E=torch.tensor([2, 0, 0, 4]),
    margin_E=torch.zeros(4),
    probability_E=torch.ones(4),
    weight_E=torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0]),
)
"""Comparison 0 ranks its responses 1 > 2 > 0, comparison 1 is a pair."""


def cost(difference: float) -> float:
    return math.log1p(math.exp(-difference))


def test_loss_is_sum_over_pairs() -> None:
    """The loss of a micro-batch is the sum of -log sigmoid of the reward differences."""
    result = bradley_terry(REWARDS, TWO_PAIRS)
    assert result.loss.item() == pytest.approx(cost(1.25) + cost(-3.0), rel=1e-6)
    assert result.correct.item() == 1
    assert result.margin.item() == pytest.approx(1.25 - 3.0)
    assert result.comparisons.item() == 2


def test_margin_is_inside_the_sigmoid() -> None:
    """A margin is subtracted from the reward difference."""
    result = bradley_terry(REWARDS, replace(TWO_PAIRS, margin_E=torch.tensor([0.5, 0.1])))
    assert result.loss.item() == pytest.approx(cost(0.75) + cost(-3.1), rel=1e-6)


def test_centering_adds_the_square_of_sums() -> None:
    result = bradley_terry(REWARDS, TWO_PAIRS, center_rewards=0.1)
    assert result.loss.item() == pytest.approx(cost(1.25) + cost(-3.0) + 0.1 * (1.75**2 + 1.0**2), rel=1e-6)


def test_tie_label_is_symmetric() -> None:
    """A target probability of 0.5 costs the same from both sides, and least at equal rewards."""
    half = replace(TWO_PAIRS, probability_E=torch.full((2,), 0.5))
    swapped = replace(half, winner_E=half.loser_E, loser_E=half.winner_E)
    assert bradley_terry(REWARDS, half).loss.item() == pytest.approx(bradley_terry(REWARDS, swapped).loss.item())
    assert bradley_terry(torch.zeros(4), half).loss.item() == pytest.approx(2 * math.log(2))
    assert bradley_terry(REWARDS, half).loss > bradley_terry(torch.zeros(4), half).loss


def test_edges_share_the_weight_of_their_comparison() -> None:
    batch = PreferenceBatch(
        comparison_N=torch.zeros(3, dtype=torch.int64),
        winner_E=torch.tensor([0, 0, 1]),
        loser_E=torch.tensor([1, 2, 2]),
        margin_E=torch.zeros(3),
        probability_E=torch.ones(3),
        weight_E=torch.full((3,), 1 / 3),
    )
    result = bradley_terry(torch.tensor([2.0, 1.0, -1.0]), batch)
    assert result.loss.item() == pytest.approx((cost(1) + cost(3) + cost(2)) / 3, rel=1e-6)
    assert result.comparisons.item() == pytest.approx(1)


def test_trap_22_broadcastable_rewards_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"\[N\]"):
        bradley_terry(REWARDS[:, None], TWO_PAIRS)


def test_equal_rewards_are_wrong_and_pushed_apart() -> None:
    rewards = torch.zeros(4, requires_grad=True)
    result = bradley_terry(rewards, TWO_PAIRS)
    assert result.correct.item() == 0
    result.loss.backward()
    assert rewards.grad is not None
    assert rewards.grad.tolist() == pytest.approx([-0.5, 0.5, -0.5, 0.5])


def test_label_smoothing_flips_a_share_of_labels() -> None:
    smooth = bradley_terry(REWARDS, TWO_PAIRS, label_smoothing=0.1)
    expected = 0.9 * cost(1.25) + 0.1 * cost(-1.25) + 0.9 * cost(-3.0) + 0.1 * cost(3.0)
    assert smooth.loss.item() == pytest.approx(expected, rel=1e-6)


def test_zero_weight_leaves_a_comparison_out() -> None:
    weighed = bradley_terry(REWARDS, replace(TWO_PAIRS, weight_E=torch.tensor([1.0, 0.0])))
    assert weighed.loss.item() == pytest.approx(cost(1.25), rel=1e-6)
    assert weighed.comparisons.item() == 1


def test_plackett_luce_of_pairs_is_bradley_terry() -> None:
    """Losses and gradients are the same for comparisons of two responses."""
    gradients, losses = [], []
    for objective in (bradley_terry, plackett_luce):
        rewards = REWARDS.clone().requires_grad_()
        result = objective(rewards, TWO_PAIRS, 0.1)
        result.loss.backward()
        assert rewards.grad is not None
        gradients.append(rewards.grad)
        losses.append(result.loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


def test_plackett_luce_is_the_product_of_choices() -> None:
    rewards = torch.tensor([0.5, 2.0, -1.0, 0.3, 0.4], requires_grad=True)
    result = plackett_luce(rewards, RANKED)
    first = -2.0 + math.log(math.exp(0.5) + math.exp(2.0) + math.exp(-1.0))
    second = 1.0 + math.log(math.exp(0.5) + math.exp(-1.0))
    assert result.loss.item() == pytest.approx(first + second + cost(-0.1), rel=1e-5)
    result.loss.backward()
    assert rewards.grad is not None
    assert torch.isfinite(rewards.grad).all()
    assert rewards.grad.abs().min() > 0
    left_out = plackett_luce(rewards, replace(RANKED, weight_E=torch.tensor([0.0, 0.0, 0.0, 1.0])))
    assert left_out.loss.item() == pytest.approx(cost(-0.1), rel=1e-5)


def test_recipe_chooses_objective_with_all_terms() -> None:
    """Each key of the objective changes the loss, in float64 as in float32."""
    rewards = torch.tensor([0.5, 2.0, -1.0, 0.3, 0.4])

    def loss(objective: Any, dtype: torch.dtype = torch.float32) -> float:
        floats = {name: getattr(RANKED, name).to(dtype) for name in ("margin_E", "probability_E", "weight_E")}
        return compute_objective(objective, rewards.to(dtype), replace(RANKED, **floats)).loss.item()

    objectives = [
        BradleyTerry(),
        BradleyTerry(center_rewards=0.1),
        BradleyTerry(label_smoothing=0.2),
        PlackettLuce(type="plackett_luce"),
        PlackettLuce(type="plackett_luce", center_rewards=0.1),
    ]
    losses = [loss(objective) for objective in objectives]
    assert len({round(value, 4) for value in losses}) == len(objectives)
    assert losses[0] == bradley_terry(rewards, RANKED).loss.item()
    assert losses[3] == plackett_luce(rewards, RANKED).loss.item()
    assert [loss(objective, torch.float64) for objective in objectives] == pytest.approx(losses, rel=1e-6)
