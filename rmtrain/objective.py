"""Rewards to loss sums and statistics. Pure torch: no model, no recipe, no collective, no host synchronisation.

Tensor legend: N responses of a micro-batch, C its comparisons, K the most responses of one, E preferences (edges).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class Edges(NamedTuple):
    """Preferences among N responses.

    winner_E, loser_E: int64, indices into the responses. margin_E, probability_E, weight_E: float32; a probability is that of the winner
    being better, 0.5 is a tie; the weights of one comparison sum to 1.
    """

    winner_E: Tensor
    loser_E: Tensor
    margin_E: Tensor
    probability_E: Tensor
    weight_E: Tensor


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
    rewards_N: Tensor, edges: Edges, center_rewards: float | None = None, label_smoothing: float = 0.0
) -> Objective:
    """Sum over comparisons of the Bradley-Terry negative log-likelihood, averaged over the edges of each.

    With d = r_winner - r_loser - margin (Llama 2, arXiv:2307.09288, section 3.2.2), an edge costs
    `-p log sigmoid(d) - (1 - p) log sigmoid(-d)`, where p is the target probability that the winner is better.

    Args:
        rewards_N: float32 [N], one per response.
        edges: preferences among them.
        center_rewards: coefficient of the centering term; None: no such term.
        label_smoothing: share by which each label is taken to be flipped: p becomes `p (1 - e) + (1 - p) e`.
    """
    winner_E, loser_E = _sides(rewards_N, edges)
    logit_E = winner_E - loser_E - edges.margin_E
    probability_E = edges.probability_E * (1 - 2 * label_smoothing) + label_smoothing
    loss_E = -probability_E * logsigmoid(logit_E) - (1 - probability_E) * logsigmoid(-logit_E)
    return _with_statistics((loss_E * edges.weight_E).sum(), winner_E, loser_E, edges, center_rewards)


def plackett_luce(rewards_N: Tensor, comparison_N: Tensor, edges: Edges, center_rewards: float | None = None) -> Objective:
    """Sum over comparisons of the negative log-likelihood of their rankings (Luce 1959, Plackett 1975).

    The best response is chosen among all, the second among the rest, and so on; each choice is a softmax over rewards. Of two responses
    this is `bradley_terry`. A ranking is that of the number of edges a response wins less those it loses, so the edges of a comparison
    must order its responses; margins and probabilities have no place in it.

    Args:
        rewards_N: float32 [N], one per response.
        comparison_N: int64 [N], the comparison of each response, numbered from 0 in order.
        edges: preferences among the responses; weights of zero leave a comparison out.
        center_rewards: coefficient of the centering term; None: no such term.
    """
    winner_E, loser_E = _sides(rewards_N, edges)
    won_N = torch.zeros_like(rewards_N).index_add(0, edges.winner_E, torch.ones_like(edges.weight_E))
    won_N = won_N.index_add(0, edges.loser_E, -torch.ones_like(edges.weight_E))
    best_first_N = torch.argsort(won_N, descending=True, stable=True)
    best_first_N = best_first_N[torch.argsort(comparison_N[best_first_N], stable=True)]
    size_C = torch.bincount(comparison_N)
    place_N = torch.arange(len(rewards_N), device=rewards_N.device) - (size_C.cumsum(0) - size_C)[comparison_N]
    ranked_CK = rewards_N.new_full((len(size_C), int(place_N.max()) + 1), float("-inf"))
    ranked_CK = ranked_CK.index_put((comparison_N, place_N), rewards_N[best_first_N])
    rest_CK = ranked_CK.flip(1).logcumsumexp(1).flip(1)
    cost_CK = torch.where(ranked_CK.isfinite(), rest_CK - ranked_CK, 0.0)
    weight_C = torch.zeros_like(rewards_N[: len(size_C)]).index_add(0, comparison_N[edges.winner_E], edges.weight_E)
    return _with_statistics((cost_CK.sum(1) * weight_C).sum(), winner_E, loser_E, edges, center_rewards)


def _sides(rewards_N: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    assert rewards_N.ndim == 1, f"rewards must be [N], got {tuple(rewards_N.shape)}"
    winner_E, loser_E = rewards_N[edges.winner_E], rewards_N[edges.loser_E]
    assert winner_E.shape == edges.margin_E.shape == edges.weight_E.shape, "one margin and one weight per edge"
    return winner_E, loser_E


def _with_statistics(loss: Tensor, winner_E: Tensor, loser_E: Tensor, edges: Edges, center_rewards: float | None) -> Objective:
    """The loss with its centering term, `center_rewards * (r_winner + r_loser)^2` (arXiv:2312.09244, eq. 2), and the statistics."""
    weight_E = edges.weight_E
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
