"""Rewards to loss sums and statistics. Pure torch: no model, no recipe, no collective, no host synchronisation."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class Objective(NamedTuple):
    """Sums over the comparisons of a micro-batch; divide by `comparisons` for means.

    `loss` is differentiable, the others are detached. Each comparison counts once: its edges share its weight.
    `correct` counts strict wins, `margin` is r_winner - r_loser.
    """

    loss: Tensor
    correct: Tensor
    margin: Tensor
    winner_reward: Tensor
    loser_reward: Tensor
    comparisons: Tensor

    def statistics(self) -> Tensor:
        """The six sums as one float32 vector, loss detached, for a single reduction."""
        return torch.stack([value.detach() for value in self])


def bradley_terry(
    rewards_N: Tensor,
    winner_E: Tensor,
    loser_E: Tensor,
    margin_E: Tensor,
    probability_E: Tensor,
    weight_E: Tensor,
    center_rewards: float | None = None,
) -> Objective:
    """Sum over comparisons of the Bradley-Terry negative log-likelihood.

    With d = r_winner - r_loser - margin (Llama 2, arXiv:2307.09288, section 3.2.2), an edge costs
    `-p log sigmoid(d) - (1 - p) log sigmoid(-d)`, where p is the target probability that the winner is better, plus
    `center_rewards * (r_winner + r_loser)^2` (Eisenstein et al., arXiv:2312.09244, eq. 2).

    Args:
        rewards_N: float32 [N], one per response.
        winner_E, loser_E: int64 [E], indices into the rewards.
        margin_E, probability_E, weight_E: float32 [E]; the weights of one comparison's edges sum to 1.
        center_rewards: coefficient of the centering term; None: no such term.
    """
    assert rewards_N.ndim == 1, f"rewards must be [N], got {tuple(rewards_N.shape)}"
    winner_reward_E, loser_reward_E = rewards_N[winner_E], rewards_N[loser_E]
    assert winner_reward_E.shape == margin_E.shape == weight_E.shape, "one margin and one weight per edge"
    difference_E = winner_reward_E - loser_reward_E
    logit_E = difference_E - margin_E
    loss_E = -probability_E * logsigmoid(logit_E) - (1 - probability_E) * logsigmoid(-logit_E)
    if center_rewards is not None:
        loss_E = loss_E + center_rewards * (winner_reward_E + loser_reward_E) ** 2
    return Objective(
        loss=(loss_E * weight_E).sum(),
        correct=((difference_E > 0) * weight_E).sum(),
        margin=(difference_E.detach() * weight_E).sum(),
        winner_reward=(winner_reward_E.detach() * weight_E).sum(),
        loser_reward=(loser_reward_E.detach() * weight_E).sum(),
        comparisons=weight_E.sum(),
    )
