"""Numbers of rewards against the targets of responses: errors, rank correlations, and how well they separate right from wrong.

Array legend: M targets.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrain.evaluation.scores_file import ScoredComparison, prompt_numbers
from rmtrain.recipe.schema import Binary, Objectives, Regression, objective_for

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
BINS = 10


def target_numbers(scored: Sequence[ScoredComparison], objective: Objectives) -> dict[str, Any]:
    """Return the numbers of targets that `RULES` defines, each over the targets it applies to, None without any.

    Errors need the scale of rewards: `mse` and `r2` are of the sources that the objective learns by regression, `brier`,
    `accuracy_at_half` and `target_calibration_error` of those that it learns as right or wrong. `auc` is over targets of 0 and 1.
    """
    prompts = prompt_numbers(scored)
    rows = [(row, target, prompt) for row, prompt in zip(scored, prompts.tolist(), strict=True) for target in row.targets]
    reward_M = np.array([row.rewards[target.response] for row, target, _ in rows], np.float64)
    target_M = np.array([target.value for _, target, _ in rows], np.float64)
    prompt_M = np.array([prompt for *_, prompt in rows], np.int64)
    objectives = [objective_for(objective, row.source) for row, _, _ in rows]
    # rewards in units of the targets, where they have such a scale
    predicted = [
        (reward * part.std + part.mean, target)
        for part, reward, target in zip(objectives, reward_M, target_M, strict=True)
        if isinstance(part, Regression) and part.mean is not None and part.std is not None
    ]
    is_binary_M = np.array([isinstance(part, Binary) for part in objectives], bool)
    within = [spearman(reward_M[None, chosen], target_M[None, chosen])[0] for chosen in _groups(prompt_M)]
    return {
        "targets": len(rows),
        "spearman": spearman(reward_M[None], target_M[None])[0] if rows else None,
        "spearman_within": mean([correlation for correlation in within if correlation is not None]),
        **_errors(np.array(predicted, np.float64).reshape(-1, 2)),
        "auc": _auc(reward_M, target_M),
        **_probability_numbers(np.exp(-np.logaddexp(0, -reward_M[is_binary_M])), target_M[is_binary_M]),
    }


def _groups(prompt_M: Integers) -> list[Integers]:
    """Return the places of each prompt that has two or more targets."""
    order = np.argsort(prompt_M, kind="stable")
    starts = np.flatnonzero(np.diff(prompt_M[order])) + 1
    return [places for places in np.split(order, starts) if len(places) > 1]


def _errors(predicted: Floats) -> dict[str, float | None]:
    """Return the mean squared error and the coefficient of determination of [M, 2] predictions and targets."""
    if not len(predicted):
        return {"mse": None, "r2": None}
    error, variance = float(np.mean((predicted[:, 0] - predicted[:, 1]) ** 2)), float(np.var(predicted[:, 1]))
    return {"mse": error, "r2": 1 - error / variance if variance > 0 else None}


def _auc(reward_M: Floats, target_M: Floats) -> float | None:
    """Return the area under the ROC curve by the rank sum of Mann and Whitney; None unless targets are 0 and 1, and both occur."""
    right = int(np.sum(target_M == 1))
    wrong = int(np.sum(target_M == 0))
    if not right or not wrong or right + wrong < len(target_M):
        return None
    rank_sum = float(np.sum(rank_values(reward_M[None])[0][target_M == 1])) + right  # ranks are counted from 0
    return (rank_sum - right * (right + 1) / 2) / (right * wrong)


def _probability_numbers(probability_M: Floats, target_M: Floats) -> dict[str, float | None]:
    if not len(target_M):
        return dict.fromkeys(("brier", "accuracy_at_half", "target_calibration_error"))
    decided = target_M != 0.5
    right_M = (probability_M > 0.5) == (target_M > 0.5)
    bin_M = np.minimum((probability_M * BINS).astype(np.int64), BINS - 1)
    gap_per_bin = np.bincount(bin_M, weights=target_M - probability_M, minlength=BINS)
    return {
        "brier": float(np.mean((probability_M - target_M) ** 2)),
        "accuracy_at_half": mean(right_M[decided]),
        "target_calibration_error": float(np.sum(np.abs(gap_per_bin)) / len(target_M)),
    }


def spearman(left: NDArray[Any], right: NDArray[Any]) -> list[float | None]:
    """Return Spearman's rho of each row of two [rows, K] arrays; None where a row has a single value."""
    left_ranks, right_ranks = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (rank_values(left), rank_values(right)))
    covariance = np.sum(left_ranks * right_ranks, axis=1)
    scale = np.sqrt(np.sum(left_ranks**2, axis=1) * np.sum(right_ranks**2, axis=1))
    return [float(c / s) if s > 0 else None for c, s in zip(covariance, scale, strict=True)]


def rank_values(values: NDArray[Any]) -> Floats:
    """Return the ranks within each row of [rows, K]; equal values share their mean rank."""
    # By hand: scipy.stats would add 35 MB of imports to every evaluation.
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    position = np.broadcast_to(np.arange(values.shape[1], dtype=np.float64), values.shape)
    starts = np.concatenate([np.ones((len(values), 1), bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    ends = np.concatenate([starts[:, 1:], np.ones((len(values), 1), bool)], axis=1)
    first = np.maximum.accumulate(np.where(starts, position, -1), axis=1)
    last = np.flip(np.minimum.accumulate(np.flip(np.where(ends, position, np.inf), axis=1), axis=1), axis=1)
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2, axis=1)
    return ranks


def mean(values: NDArray[Any] | Sequence[float]) -> float | None:
    """Return the mean of values; None without any."""
    return float(np.mean(values)) if len(values) else None
