"""Training objectives: rewards to loss sums and statistics. The same formulas give `train/loss` and `eval/loss`.

Pure torch, without a model or collectives.
Tensor legend: N responses, C comparisons, K the most responses of a comparison, E preferences (edges).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rmtrain.batching.layout import PreferenceBatch
from rmtrain.recipe.schema import Objectives, PlackettLuce


class Objective(NamedTuple):
    """Sums over the comparisons of a batch; divide by `comparisons` for means.

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
        """Return the six sums as one vector [6], loss detached, for a single reduction."""
        return torch.stack([value.detach() for value in self])


def compute_objective(objective: Objectives, rewards_N: Tensor, batch: PreferenceBatch) -> Objective:
    """Compute the objective of a recipe, with all its terms that depend on rewards, on those of a batch, float [N], one per response."""
    if isinstance(objective, PlackettLuce):
        return plackett_luce(rewards_N, batch, objective.center_rewards)
    return bradley_terry(rewards_N, batch, objective.center_rewards, objective.label_smoothing)


def bradley_terry(
    rewards_N: Tensor, batch: PreferenceBatch, center_rewards: float | None = None, label_smoothing: float = 0.0
) -> Objective:
    """Sum over comparisons of the Bradley-Terry negative log-likelihood, averaged over the edges of each.

    With d = r_winner - r_loser - margin (Llama 2, arXiv:2307.09288, section 3.2.2), an edge costs
    `-p log sigmoid(d) - (1 - p) log sigmoid(-d)`, where p is the target probability that the winner is better. With `label_smoothing`,
    an assumed share e of flipped labels, p becomes `p (1 - e) + (1 - p) e`. For `center_rewards` see `_with_statistics`.
    """
    winner_E, loser_E = _sides(rewards_N, batch)
    logit_E = winner_E - loser_E - batch.margin_E
    probability_E = batch.probability_E * (1 - 2 * label_smoothing) + label_smoothing
    loss_E = -probability_E * logsigmoid(logit_E) - (1 - probability_E) * logsigmoid(-logit_E)
    return _with_statistics((loss_E * batch.weight_E).sum(), winner_E, loser_E, batch, center_rewards)


def plackett_luce(rewards_N: Tensor, batch: PreferenceBatch, center_rewards: float | None = None) -> Objective:
    """Sum over comparisons of the negative log-likelihood of their rankings (Luce 1959, Plackett 1975).

    The best response is chosen among all, the second among the rest, and so on; each choice is a softmax over rewards. For two responses
    this is `bradley_terry`. A response ranks by the edges it wins minus those it loses, so the edges of a comparison must order its
    responses. Margins and probabilities are not used; a comparison whose weights are zero is left out.
    """
    winner_E, loser_E = _sides(rewards_N, batch)
    comparison_N = batch.comparison_N
    won_N = torch.zeros_like(rewards_N).index_add(0, batch.winner_E, torch.ones_like(batch.weight_E))
    won_N = won_N.index_add(0, batch.loser_E, -torch.ones_like(batch.weight_E))

    # Two stable sorts order the responses by comparison, and best first within each, without a loop over comparisons.
    best_first_N = torch.argsort(won_N, descending=True, stable=True)
    best_first_N = best_first_N[torch.argsort(comparison_N[best_first_N], stable=True)]
    size_C = torch.bincount(comparison_N)  # this and `max` below wait for the GPU, which `bradley_terry` never does
    place_N = torch.arange(len(rewards_N), device=rewards_N.device) - (size_C.cumsum(0) - size_C)[comparison_N]

    # -inf in the places that a comparison does not fill adds nothing to the sums of exponentials.
    ranked_CK = rewards_N.new_full((len(size_C), int(place_N.max()) + 1), float("-inf"))
    ranked_CK = ranked_CK.index_put((comparison_N, place_N), rewards_N[best_first_N])
    rest_CK = ranked_CK.flip(1).logcumsumexp(1).flip(1)
    cost_CK = torch.where(ranked_CK.isfinite(), rest_CK - ranked_CK, 0.0)
    weight_C = torch.zeros_like(rewards_N[: len(size_C)]).index_add(0, comparison_N[batch.winner_E], batch.weight_E)
    return _with_statistics((cost_CK.sum(1) * weight_C).sum(), winner_E, loser_E, batch, center_rewards)


def _sides(rewards_N: Tensor, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """Return the rewards of winners and losers, [E] each."""
    # [N, 1] would broadcast against [E] to a loss over all pairs of edges, without an error.
    assert rewards_N.ndim == 1, f"rewards must be [N], got {tuple(rewards_N.shape)}"
    winner_E, loser_E = rewards_N[batch.winner_E], rewards_N[batch.loser_E]
    assert winner_E.shape == batch.margin_E.shape == batch.weight_E.shape, "one margin and one weight per edge"
    return winner_E, loser_E


def _with_statistics(
    loss: Tensor, winner_E: Tensor, loser_E: Tensor, batch: PreferenceBatch, center_rewards: float | None
) -> Objective:
    """Add the centering term, if any, `center_rewards * (r_winner + r_loser)^2` (arXiv:2312.09244, eq. 2), and the statistics."""
    weight_E = batch.weight_E
    if center_rewards is not None:
        loss = loss + center_rewards * ((winner_E + loser_E) ** 2 * weight_E).sum()
    winner_E, loser_E = winner_E.detach(), loser_E.detach()
    return Objective(
        loss=loss,
        correct=((winner_E > loser_E) * weight_E).sum(),
        margin=((winner_E - loser_E) * weight_E).sum(),
        winner_reward=(winner_E * weight_E).sum(),
        loser_reward=(loser_E * weight_E).sum(),
        comparisons=weight_E.sum(),
    )
