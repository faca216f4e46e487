"""The objective against its formula, term by term."""

import math

import pytest
import torch

from rmtrain.objective import bradley_terry

TWO_PAIRS = {
    "winner_E": torch.tensor([0, 2]),
    "loser_E": torch.tensor([1, 3]),
    "margin_E": torch.zeros(2),
    "probability_E": torch.ones(2),
    "weight_E": torch.ones(2),
}
REWARDS = torch.tensor([1.5, 0.25, -1.0, 2.0])


def cost(difference: float) -> float:
    return math.log1p(math.exp(-difference))


def test_loss_is_the_sum_over_pairs() -> None:
    result = bradley_terry(REWARDS, **TWO_PAIRS)
    assert result.loss.item() == pytest.approx(cost(1.25) + cost(-3.0), rel=1e-6)
    assert result.correct.item() == 1
    assert result.margin.item() == pytest.approx(1.25 - 3.0)
    assert result.comparisons.item() == 2


def test_margin_is_subtracted_inside_the_sigmoid() -> None:
    result = bradley_terry(REWARDS, **TWO_PAIRS | {"margin_E": torch.tensor([0.5, 0.1])})
    assert result.loss.item() == pytest.approx(cost(0.75) + cost(-3.1), rel=1e-6)


def test_centering_adds_the_square_of_the_sum() -> None:
    result = bradley_terry(REWARDS, **TWO_PAIRS, center_rewards=0.1)
    assert result.loss.item() == pytest.approx(cost(1.25) + cost(-3.0) + 0.1 * (1.75**2 + 1.0**2), rel=1e-6)


def test_a_tie_label_costs_the_same_from_both_sides_and_is_least_at_equal_rewards() -> None:
    half = TWO_PAIRS | {"probability_E": torch.full((2,), 0.5)}
    swapped = half | {"winner_E": half["loser_E"], "loser_E": half["winner_E"]}
    assert bradley_terry(REWARDS, **half).loss.item() == pytest.approx(bradley_terry(REWARDS, **swapped).loss.item())
    assert bradley_terry(torch.zeros(4), **half).loss.item() == pytest.approx(2 * math.log(2))
    assert bradley_terry(REWARDS, **half).loss > bradley_terry(torch.zeros(4), **half).loss


def test_edges_of_one_comparison_share_its_weight() -> None:
    edges = {
        "winner_E": torch.tensor([0, 0, 1]),
        "loser_E": torch.tensor([1, 2, 2]),
        "margin_E": torch.zeros(3),
        "probability_E": torch.ones(3),
        "weight_E": torch.full((3,), 1 / 3),
    }
    result = bradley_terry(torch.tensor([2.0, 1.0, -1.0]), **edges)
    assert result.loss.item() == pytest.approx((cost(1) + cost(3) + cost(2)) / 3, rel=1e-6)
    assert result.comparisons.item() == pytest.approx(1)


def test_trap_22_rewards_that_would_broadcast_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"rewards must be \[N\]"):
        bradley_terry(REWARDS[:, None], **TWO_PAIRS)


def test_equal_rewards_are_not_correct_and_gradients_push_apart() -> None:
    rewards = torch.zeros(4, requires_grad=True)
    result = bradley_terry(rewards, **TWO_PAIRS)
    assert result.correct.item() == 0
    result.loss.backward()
    assert rewards.grad is not None
    assert rewards.grad.tolist() == pytest.approx([-0.5, 0.5, -0.5, 0.5])
