"""Training objectives: rewards to loss sums and statistics. The same formulas give `train/loss` and `eval/loss`.

Without a model or collectives. `for_training` adds what an objective takes from the training data, once.
Tensor legend: N responses, C comparisons, K the most responses of a comparison, E preferences (edges), M targets.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss, logsigmoid

from rmtrain.batching.layout import LabelBatch, label_tensors
from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import TokenizedComparison
from rmtrain.data.rows.hook import at_line, load_function
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.schema import (
    Binary,
    BradleyTerry,
    BySource,
    Objectives,
    OneObjective,
    OwnObjective,
    PlackettLuce,
    Regression,
    objective_for,
)

TRIED_ROWS = 8
"""Rows that a function of the user is tried on before training."""


class Objective(NamedTuple):
    """Sums over the comparisons of a batch, each times its weight; divide by `comparisons` for the mean loss.

    `loss` is differentiable, the others are detached. The labels of a comparison share its weight. `correct` counts strict wins, `margin`
    is r_winner - r_loser: divide these and the two rewards by `preferences`, the weight of the comparisons that have any.
    """

    loss: Tensor
    correct: Tensor
    margin: Tensor
    winner_reward: Tensor
    loser_reward: Tensor
    preferences: Tensor
    comparisons: Tensor

    def statistics(self) -> Tensor:
        """Return the sums as one vector [7], loss detached, for a single reduction."""
        return torch.stack([value.detach() for value in self])


def compute_objective(objective: Objectives, rewards_N: Tensor, batch: LabelBatch) -> Objective:
    """Compute the objective of a recipe, with all its terms that depend on rewards, on those of a batch, float [N], one per response.

    Comparisons with labels of another kind add nothing, not even to `comparisons`.

    Raises:
        RecipeError: see `own_objective`.
    """
    # [N, 1] would broadcast against [E] to a loss over all pairs of edges, without an error.
    assert rewards_N.ndim == 1, f"rewards must be [N], got {tuple(rewards_N.shape)}"
    match objective:
        case BySource():
            parts = [compute_objective(part, rewards_N, batch.only({tag})) for tag, part in objective.sources.items()]
            parts.append(compute_objective(objective.others, rewards_N, batch.only(objective.sources, inside=False)))
            result = Objective(*(torch.stack(sums).sum() for sums in zip(*parts, strict=True)))
        case BradleyTerry():
            result = bradley_terry(rewards_N, batch, objective)
        case PlackettLuce():
            result = plackett_luce(rewards_N, batch, objective)
        case Regression():
            result = regression(rewards_N, batch, objective)
        case Binary():
            result = binary(rewards_N, batch)
        case OwnObjective():
            result = own_objective(rewards_N, batch, objective)
    return result if objective.weight == 1 else result._replace(loss=objective.weight * result.loss)


PLAIN = BradleyTerry()


def bradley_terry(rewards_N: Tensor, batch: LabelBatch, objective: BradleyTerry = PLAIN) -> Objective:
    """Sum over comparisons of the Bradley-Terry negative log-likelihood, averaged over the edges of each.

    With d = r_winner - r_loser - margin (Llama 2, arXiv:2307.09288, section 3.2.2), an edge costs
    `-p log sigmoid(d) - (1 - p) log sigmoid(-d)`, where p is the target probability that the winner is better. With `label_smoothing`,
    an assumed share e of flipped labels, p becomes `p (1 - e) + (1 - p) e`. With `margin: scale`, d has no margin, and the cost is
    multiplied by it (arXiv:2410.01257, eq. 3). For `center_rewards` see `_with_statistics`.
    """
    winner_E, loser_E = _sides(rewards_N, batch)
    logit_E = winner_E - loser_E
    if objective.margin == "subtract":
        logit_E = logit_E - batch.margin_E
    smoothing = objective.label_smoothing
    probability_E = batch.probability_E * (1 - 2 * smoothing) + smoothing
    loss_E = -probability_E * logsigmoid(logit_E) - (1 - probability_E) * logsigmoid(-logit_E)
    if objective.margin == "scale":
        loss_E = loss_E * batch.margin_E
    return _with_statistics((loss_E * batch.weight_E).sum(), winner_E, loser_E, batch, objective.center_rewards)


def plackett_luce(rewards_N: Tensor, batch: LabelBatch, objective: PlackettLuce) -> Objective:
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
    return _with_statistics((cost_CK.sum(1) * weight_C).sum(), winner_E, loser_E, batch, objective.center_rewards)


def regression(rewards_N: Tensor, batch: LabelBatch, objective: Regression) -> Objective:
    """Sum over comparisons of the squared error of rewards against standardised targets, averaged over the targets of each.

    With `huber`, that of Huber (1964): half the square of an error up to this threshold, beyond it `huber * (|error| - huber / 2)`.
    """
    assert objective.mean is not None, "for_training sets it"
    assert objective.std is not None, "for_training sets it"
    reward_M, target_M = rewards_N[batch.response_M], (batch.target_M - objective.mean) / objective.std
    if objective.huber is None:
        loss_M = (reward_M - target_M) ** 2
    else:
        loss_M = huber_loss(reward_M, target_M, reduction="none", delta=objective.huber)
    return _of_targets((loss_M * batch.target_weight_M).sum(), batch)


def binary(rewards_N: Tensor, batch: LabelBatch) -> Objective:
    """Sum over comparisons of the logistic loss of rewards as log-odds of targets in [0, 1], averaged over the targets of each."""
    loss_M = binary_cross_entropy_with_logits(rewards_N[batch.response_M], batch.target_M, reduction="none")
    return _of_targets((loss_M * batch.target_weight_M).sum(), batch)


def own_objective(rewards_N: Tensor, batch: LabelBatch, objective: OwnObjective) -> Objective:
    """Call a function of the user, `loss(rewards_N, batch)`, whose result is the sum of the loss over comparisons.

    Raises:
        RecipeError: the recipe was not loaded from a file; or the function fails, or returns anything but a tensor with one number.
    """
    if objective.hook is None:
        raise RecipeError("objective.path: needs a recipe that is a file, next to its code; load it with load_recipe")
    hook = objective.hook
    function = load_function(hook.code, hook.function, str(hook.file), "objective.path")
    try:
        loss = function(rewards_N, batch)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the user's function may raise anything
        raise RecipeError(f"objective.path: {at_line(str(hook.file), error, f'{hook.function}: ')}") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise RecipeError(
            f"objective.path: {objective.path} returned {found}; expected a tensor with one number, the sum over comparisons"
        )
    result = bradley_terry(rewards_N.detach(), batch)
    return result._replace(loss=loss.reshape(()), comparisons=batch.weight_E.sum() + batch.target_weight_M.sum())


def for_training(objective: Objectives, data: TokenizedData) -> Objectives:
    """Return an objective with the mean and standard deviation of the training targets, where the recipe leaves these open.

    Raises:
        DataError: targets that the objective cannot learn: all equal, or not from 0 to 1.
        RecipeError: a regression without training rows; see `own_objective`; or its function does not depend on the rewards, or returns a
            number that is not finite.
    """

    rows_M = np.repeat(np.arange(len(data)), data.target_counts)

    def fitted(part: OneObjective, is_its_row: NDArray[np.bool_], key: str = "objective") -> OneObjective:
        chosen_M = is_its_row[rows_M]
        targets = data.values("targets")[chosen_M]
        match part:
            case Regression() if len(targets):
                mean, std = float(targets.mean()), float(targets.std())
                if part.std is None and not std:
                    first = data.sources[int(is_its_row.argmax())]
                    raise DataError(f"{first}: all {len(targets)} targets are {mean:g}; regression needs different ones")
                return _with_scale(part, mean, std)
            case Regression(mean=None) | Regression(std=None):
                raise RecipeError(f"{key}: no training row has targets to take mean and std from; set both, or remove it")
            case Binary() if len(targets):
                outside = np.flatnonzero((targets < 0) | (targets > 1))
                if len(outside):
                    row_id = data.ids[int(rows_M[chosen_M][outside[0]])]
                    raise DataError(
                        f"{row_id}: its target is {targets[outside[0]]:g}, and {len(outside) - 1} more are not from 0 to 1, which "
                        "objective.type: binary needs; set values, or scale and offset"
                    )
            case OwnObjective() if is_its_row.any():
                _try_out(part, [data[int(number)] for number in np.flatnonzero(is_its_row)[:TRIED_ROWS]])
        return part

    if not isinstance(objective, BySource):
        return fitted(objective, np.ones(len(data), bool))
    rows_of = {tag: data.is_of_source(tag) for tag in objective.sources}
    sources = {tag: fitted(part, rows_of[tag], f"objective.sources.{tag}") for tag, part in objective.sources.items()}
    others = fitted(objective.others, ~np.any([*rows_of.values()], axis=0), "objective.others")
    return objective.model_copy(update={"sources": sources, "others": others})


def with_scale_of(objective: Objectives, trained: Objectives) -> Objectives:
    """Return an objective with the mean and standard deviation of targets that a model was trained with, where it leaves these open."""
    if isinstance(objective, BySource):
        sources = {tag: _filled(part, objective_for(trained, tag)) for tag, part in objective.sources.items()}
        others = _filled(objective.others, trained.others if isinstance(trained, BySource) else trained)
        return objective.model_copy(update={"sources": sources, "others": others})
    return objective if isinstance(trained, BySource) else _filled(objective, trained)


def _filled(part: OneObjective, trained: OneObjective) -> OneObjective:
    if isinstance(part, Regression) and isinstance(trained, Regression) and trained.mean is not None and trained.std is not None:
        return _with_scale(part, trained.mean, trained.std)
    return part


def _with_scale(part: Regression, mean: float, std: float) -> Regression:
    return part.model_copy(
        update={"mean": mean if part.mean is None else part.mean, "std": std if part.std is None else part.std}
    )


def _try_out(objective: OwnObjective, rows: Sequence[TokenizedComparison]) -> None:
    """Compute a function of the user on some rows before anything is trained with it."""
    counts = [len(row.sequences) for row in rows]
    rewards_N = torch.linspace(-1, 1, sum(counts), requires_grad=True)
    loss = own_objective(rewards_N, LabelBatch(**label_tensors(rows, counts)), objective).loss
    if not bool(torch.isfinite(loss)):
        raise RecipeError(
            f"objective.path: {objective.path} returned {loss.item()} for rewards from -1 to 1; expected a finite number"
        )
    if not loss.requires_grad:
        raise RecipeError(
            f"objective.path: the result of {objective.path} does not depend on the rewards; compute it from them with torch"
        )


def _sides(rewards_N: Tensor, batch: LabelBatch) -> tuple[Tensor, Tensor]:
    """Return the rewards of winners and losers, [E] each."""
    winner_E, loser_E = rewards_N[batch.winner_E], rewards_N[batch.loser_E]
    assert winner_E.shape == batch.margin_E.shape == batch.weight_E.shape, "one margin and one weight per edge"
    return winner_E, loser_E


def _with_statistics(
    loss: Tensor, winner_E: Tensor, loser_E: Tensor, batch: LabelBatch, center_rewards: float | None
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
        preferences=weight_E.sum(),
        comparisons=weight_E.sum(),
    )


def _of_targets(loss: Tensor, batch: LabelBatch) -> Objective:
    zero = torch.zeros_like(loss.detach())
    return Objective(loss, zero, zero, zero, zero, zero, comparisons=batch.target_weight_M.sum())
