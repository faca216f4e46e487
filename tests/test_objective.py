"""The objectives against their formulas, term by term, and the choice among them."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from rmtrain.batching.layout import LabelBatch, label_tensors
from rmtrain.data.comparison import Target, TokenizedComparison
from rmtrain.objective import bradley_terry, compute_objective, plackett_luce
from rmtrain.recipe.schema import Binary, BradleyTerry, BySource, PlackettLuce, Regression

NO_TARGETS: Any = {
    "response_M": torch.zeros(0, dtype=torch.int64),
    "target_M": torch.zeros(0),
    "target_weight_M": torch.zeros(0),
}
TWO_PAIRS = LabelBatch(
    comparison_N=torch.tensor([0, 0, 1, 1]),
    winner_E=torch.tensor([0, 2]),
    loser_E=torch.tensor([1, 3]),
    margin_E=torch.zeros(2),
    probability_E=torch.ones(2),
    weight_E=torch.ones(2),
    **NO_TARGETS,
    sources=("pairs", "pairs"),
)
REWARDS = torch.tensor([1.5, 0.25, -1.0, 2.0])
RANKING = PlackettLuce(type="plackett_luce")
RANKED = LabelBatch(
    comparison_N=torch.tensor([0, 0, 0, 1, 1]),
    winner_E=torch.tensor([1, 1, 2, 3]),
    loser_E=torch.tensor([2, 0, 0, 4]),
    margin_E=torch.zeros(4),
    probability_E=torch.ones(4),
    weight_E=torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0]),
    **NO_TARGETS,
    sources=("ranked", "ranked"),
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
    result = bradley_terry(REWARDS, TWO_PAIRS, BradleyTerry(center_rewards=0.1))
    assert result.loss.item() == pytest.approx(cost(1.25) + cost(-3.0) + 0.1 * (1.75**2 + 1.0**2), rel=1e-6)


def test_tie_label_is_symmetric() -> None:
    """A target probability of 0.5 costs the same from both sides, and least at equal rewards."""
    half = replace(TWO_PAIRS, probability_E=torch.full((2,), 0.5))
    swapped = replace(half, winner_E=half.loser_E, loser_E=half.winner_E)
    assert bradley_terry(REWARDS, half).loss.item() == pytest.approx(bradley_terry(REWARDS, swapped).loss.item())
    assert bradley_terry(torch.zeros(4), half).loss.item() == pytest.approx(2 * math.log(2))
    assert bradley_terry(REWARDS, half).loss > bradley_terry(torch.zeros(4), half).loss


def test_edges_share_the_weight_of_their_comparison() -> None:
    batch = LabelBatch(
        comparison_N=torch.zeros(3, dtype=torch.int64),
        winner_E=torch.tensor([0, 0, 1]),
        loser_E=torch.tensor([1, 2, 2]),
        margin_E=torch.zeros(3),
        probability_E=torch.ones(3),
        weight_E=torch.full((3,), 1 / 3),
        **NO_TARGETS,
        sources=("ranked",),
    )
    result = bradley_terry(torch.tensor([2.0, 1.0, -1.0]), batch)
    assert result.loss.item() == pytest.approx((cost(1) + cost(3) + cost(2)) / 3, rel=1e-6)
    assert result.comparisons.item() == pytest.approx(1)


def test_trap_22_broadcastable_rewards_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"\[N\]"):
        compute_objective(BradleyTerry(), REWARDS[:, None], TWO_PAIRS)


def test_equal_rewards_are_wrong_and_pushed_apart() -> None:
    rewards = torch.zeros(4, requires_grad=True)
    result = bradley_terry(rewards, TWO_PAIRS)
    assert result.correct.item() == 0
    result.loss.backward()
    assert rewards.grad is not None
    assert rewards.grad.tolist() == pytest.approx([-0.5, 0.5, -0.5, 0.5])


def test_label_smoothing_flips_a_share_of_labels() -> None:
    smooth = bradley_terry(REWARDS, TWO_PAIRS, BradleyTerry(label_smoothing=0.1))
    expected = 0.9 * cost(1.25) + 0.1 * cost(-1.25) + 0.9 * cost(-3.0) + 0.1 * cost(3.0)
    assert smooth.loss.item() == pytest.approx(expected, rel=1e-6)


def test_zero_weight_leaves_a_comparison_out() -> None:
    weighed = bradley_terry(REWARDS, replace(TWO_PAIRS, weight_E=torch.tensor([1.0, 0.0])))
    assert weighed.loss.item() == pytest.approx(cost(1.25), rel=1e-6)
    assert weighed.comparisons.item() == 1


def test_plackett_luce_of_pairs_is_bradley_terry() -> None:
    """Losses and gradients are the same for comparisons of two responses."""
    gradients, losses = [], []
    for objective in (BradleyTerry(center_rewards=0.1), PlackettLuce(type="plackett_luce", center_rewards=0.1)):
        rewards = REWARDS.clone().requires_grad_()
        result = compute_objective(objective, rewards, TWO_PAIRS)
        result.loss.backward()
        assert rewards.grad is not None
        gradients.append(rewards.grad)
        losses.append(result.loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


def test_plackett_luce_is_the_product_of_choices() -> None:
    rewards = torch.tensor([0.5, 2.0, -1.0, 0.3, 0.4], requires_grad=True)
    result = plackett_luce(rewards, RANKED, RANKING)
    first = -2.0 + math.log(math.exp(0.5) + math.exp(2.0) + math.exp(-1.0))
    second = 1.0 + math.log(math.exp(0.5) + math.exp(-1.0))
    assert result.loss.item() == pytest.approx(first + second + cost(-0.1), rel=1e-5)
    result.loss.backward()
    assert rewards.grad is not None
    assert torch.isfinite(rewards.grad).all()
    assert rewards.grad.abs().min() > 0
    left_out = plackett_luce(rewards, replace(RANKED, weight_E=torch.tensor([0.0, 0.0, 0.0, 1.0])), RANKING)
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
    assert losses[3] == plackett_luce(rewards, RANKED, RANKING).loss.item()
    assert [loss(objective, torch.float64) for objective in objectives] == pytest.approx(losses, rel=1e-6)


SCORED = LabelBatch(
    **label_tensors(
        [
            TokenizedComparison("a:0", "ratings", ((1, 2), (1, 3)), 1, 1, (), (Target(0, 4.0), Target(1, 1.0))),
            TokenizedComparison("b:0", "verifier", ((1, 2),), 1, 1, (), (Target(0, 1.0),), weight=0.5),
            TokenizedComparison("c:0", "pairs", ((1, 2), (1, 3)), 1, 1, weight=2.0),
        ],
        [2, 1, 2],
    )
)
"""Two rated responses, a right answer of weight 0.5, and a pair of weight 2."""


def test_regression_is_the_error_of_standardised_targets() -> None:
    """Squared error as in torch, Huber's loss as in torch; the targets of a comparison share its weight, pairs add nothing."""
    rewards = torch.tensor([0.5, -1.0, 0.0, 3.0, -3.0])
    scaled = (torch.tensor([4.0, 1.0, 1.0]) - 2.0) / 1.5
    weights = torch.tensor([0.5, 0.5, 0.5])
    for huber, function in ((None, torch.nn.functional.mse_loss), (0.4, partial(torch.nn.functional.huber_loss, delta=0.4))):
        objective = Regression(type="regression", mean=2.0, std=1.5, huber=huber)
        result = compute_objective(objective, rewards, SCORED)
        assert result.loss.item() == pytest.approx(
            (function(rewards[:3], scaled, reduction="none") * weights).sum().item(), rel=1e-6
        )
        assert result.comparisons.item() == 1.5
        assert result.preferences.item() == 0


def test_binary_is_the_logistic_loss() -> None:
    rewards = torch.tensor([0.5, -1.0, 0.7, 3.0, -3.0])
    result = compute_objective(Binary(type="binary"), rewards, replace(SCORED, target_M=torch.tensor([1.0, 0.0, 0.3])))
    expected = 0.5 * cost(0.5) + 0.5 * cost(1.0) + 0.5 * (0.3 * cost(0.7) + 0.7 * cost(-0.7))
    assert result.loss.item() == pytest.approx(expected, rel=1e-6)


def test_scaled_margin_multiplies_the_loss() -> None:
    """Scaled Bradley-Terry, arXiv:2410.01257, equation 3; `none` leaves margins out."""
    with_margins = replace(TWO_PAIRS, margin_E=torch.tensor([3.0, 0.5]))
    scaled, plain = (compute_objective(BradleyTerry(margin=use), REWARDS, with_margins).loss.item() for use in ("scale", "none"))
    assert scaled == pytest.approx(3 * cost(1.25) + 0.5 * cost(-3.0), rel=1e-6)
    assert plain == bradley_terry(REWARDS, TWO_PAIRS).loss.item()


def test_sources_add_up_with_their_weights() -> None:
    """Each source has its own objective, times its factor; statistics of preferences are those of the pairs alone."""
    rewards = torch.tensor([0.5, -1.0, 0.7, 1.0, -0.5], requires_grad=True)
    ratings, verifier = Regression(type="regression", mean=2.0, std=1.5), Binary(type="binary", weight=0.25)
    both = BySource(type="by_source", sources={"ratings": ratings, "verifier": verifier})
    result = compute_objective(both, rewards, SCORED)
    scaled = (torch.tensor([4.0, 1.0]) - 2.0) / 1.5
    errors = ((rewards[:2] - scaled) ** 2).mean().item()
    assert result.loss.item() == pytest.approx(errors + 0.25 * 0.5 * cost(0.7) + 2 * cost(1.5), rel=1e-6)
    assert result.comparisons.item() == 3.5
    assert (result.preferences.item(), result.correct.item()) == (2, 2)
    result.loss.backward()
    assert rewards.grad is not None
    assert (rewards.grad != 0).all(), "every response has a part in the loss"


def test_share_of_votes_equals_expanded_rows() -> None:
    """A probability of 2/3 costs what two rows one way and one the other way cost, and its gradient is theirs."""
    votes = replace(TWO_PAIRS, probability_E=torch.tensor([2 / 3, 1.0]))
    expanded = replace(
        TWO_PAIRS,
        winner_E=torch.tensor([0, 0, 1, 2]),
        loser_E=torch.tensor([1, 1, 0, 3]),
        margin_E=torch.zeros(4),
        probability_E=torch.ones(4),
        weight_E=torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0]),
    )
    results = []
    for batch in (votes, expanded):
        rewards = REWARDS.clone().requires_grad_()
        loss = bradley_terry(rewards, batch).loss
        loss.backward()
        assert rewards.grad is not None
        results.append((loss.item(), rewards.grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-7)
    assert results[0][0] != pytest.approx(bradley_terry(REWARDS, TWO_PAIRS).loss.item())
