"""The objective against its formula, term by term."""

import math

import pytest
import torch

from rmtrain.objective import Edges, bradley_terry, plackett_luce

TWO_PAIRS = Edges(torch.tensor([0, 2]), torch.tensor([1, 3]), torch.zeros(2), torch.ones(2), torch.ones(2))
REWARDS = torch.tensor([1.5, 0.25, -1.0, 2.0])


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
    result = bradley_terry(REWARDS, TWO_PAIRS._replace(margin_E=torch.tensor([0.5, 0.1])))
    assert result.loss.item() == pytest.approx(cost(0.75) + cost(-3.1), rel=1e-6)


def test_centering_adds_squared_sum() -> None:
    """`center_rewards` adds the squared sum of winner and loser."""
    result = bradley_terry(REWARDS, TWO_PAIRS, center_rewards=0.1)
    assert result.loss.item() == pytest.approx(cost(1.25) + cost(-3.0) + 0.1 * (1.75**2 + 1.0**2), rel=1e-6)


def test_tie_label_is_symmetric() -> None:
    """A probability of 0.5 costs the same in both directions, and least at equal rewards."""
    half = TWO_PAIRS._replace(probability_E=torch.full((2,), 0.5))
    swapped = half._replace(winner_E=half.loser_E, loser_E=half.winner_E)
    assert bradley_terry(REWARDS, half).loss.item() == pytest.approx(bradley_terry(REWARDS, swapped).loss.item())
    assert bradley_terry(torch.zeros(4), half).loss.item() == pytest.approx(2 * math.log(2))
    assert bradley_terry(REWARDS, half).loss > bradley_terry(torch.zeros(4), half).loss


def test_edges_share_the_weight_of_their_comparison() -> None:
    """All pairs of one comparison together count as one comparison."""
    edges = Edges(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), torch.zeros(3), torch.ones(3), torch.full((3,), 1 / 3))
    result = bradley_terry(torch.tensor([2.0, 1.0, -1.0]), edges)
    assert result.loss.item() == pytest.approx((cost(1) + cost(3) + cost(2)) / 3, rel=1e-6)
    assert result.comparisons.item() == pytest.approx(1)


def test_trap_22_broadcasting_rewards_are_refused() -> None:
    """Rewards of shape [N, 1] would broadcast to a matrix of differences; they are refused."""
    with pytest.raises(AssertionError, match=r"rewards must be \[N\]"):
        bradley_terry(REWARDS[:, None], TWO_PAIRS)


def test_equal_rewards_are_not_correct() -> None:
    """A tie does not count as correct; its gradient moves winner and loser apart."""
    rewards = torch.zeros(4, requires_grad=True)
    result = bradley_terry(rewards, TWO_PAIRS)
    assert result.correct.item() == 0
    result.loss.backward()
    assert rewards.grad is not None
    assert rewards.grad.tolist() == pytest.approx([-0.5, 0.5, -0.5, 0.5])


def test_label_smoothing_flips_a_share() -> None:
    """Smoothing e equals mixing the loss with that of flipped labels, with weight e."""
    smooth = bradley_terry(REWARDS, TWO_PAIRS, label_smoothing=0.1)
    expected = 0.9 * cost(1.25) + 0.1 * cost(-1.25) + 0.9 * cost(-3.0) + 0.1 * cost(3.0)
    assert smooth.loss.item() == pytest.approx(expected, rel=1e-6)


def test_zero_weight_removes_a_comparison() -> None:
    """A comparison of weight zero adds nothing to any sum."""
    weighed = bradley_terry(REWARDS, TWO_PAIRS._replace(weight_E=torch.tensor([1.0, 0.0])))
    assert weighed.loss.item() == pytest.approx(cost(1.25), rel=1e-6)
    assert weighed.comparisons.item() == 1


def test_plackett_luce_of_pairs_is_bradley_terry() -> None:
    """With two responses, loss, statistics and gradients equal those of Bradley-Terry."""
    comparison_N = torch.tensor([0, 0, 1, 1])
    gradients, losses = [], []
    for objective in (lambda r: bradley_terry(r, TWO_PAIRS, 0.1), lambda r: plackett_luce(r, comparison_N, TWO_PAIRS, 0.1)):
        rewards = REWARDS.clone().requires_grad_()
        result = objective(rewards)
        result.loss.backward()
        gradients.append(rewards.grad)
        losses.append(result.loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


def test_plackett_luce_is_a_product_of_choices() -> None:
    """The probability of a ranking is the product of softmax choices among the remaining responses."""
    rewards = torch.tensor([0.5, 2.0, -1.0, 0.3, 0.4], requires_grad=True)
    edges = Edges(
        torch.tensor([1, 1, 2, 3]),
        torch.tensor([2, 0, 0, 4]),
        torch.zeros(4),
        torch.ones(4),
        torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0]),
    )
    result = plackett_luce(rewards, torch.tensor([0, 0, 0, 1, 1]), edges)
    first = -2.0 + math.log(math.exp(0.5) + math.exp(2.0) + math.exp(-1.0))
    second = 1.0 + math.log(math.exp(0.5) + math.exp(-1.0))
    assert result.loss.item() == pytest.approx(first + second + cost(-0.1), rel=1e-5)
    result.loss.backward()
    assert rewards.grad is not None
    assert torch.isfinite(rewards.grad).all()
    assert rewards.grad.abs().min() > 0
    left_out = plackett_luce(rewards, torch.tensor([0, 0, 0, 1, 1]), edges._replace(weight_E=torch.tensor([0.0, 0.0, 0.0, 1.0])))
    assert left_out.loss.item() == pytest.approx(cost(-0.1), rel=1e-5)
