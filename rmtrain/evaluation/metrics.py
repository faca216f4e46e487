"""Scores to numbers, in plain numpy: everything here can be computed again from `scores.jsonl` alone.

Array legend: C comparisons, N responses of all comparisons, E preferences (edges).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrain.errors import DataError, NumericError
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.intervals import wilson_interval

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

CALIBRATION_BINS = 10
MAX_TIE_SHARE = 0.01
MAX_NAMED = 10

RULES = {
    "accuracy": "share of preferences whose winner has the strictly greater reward; a tie counts as wrong",
    "half_credit_accuracy": "the same, where a tie counts half",
    "accuracy_low, accuracy_high": "Wilson 95 % interval over comparisons, each counted once however many preferences it has",
    "longer_wins": "accuracy of preferring the response with more tokens, without any model; equal lengths count half",
    "loss": "Bradley-Terry with margin and target probability, averaged within a comparison, then over comparisons",
    "calibration_error": "expected calibration error of sigmoid(margin) over ten equal bins of confidence in [0.5, 1]",
    "spearman_length_within": "mean over prompts of the rank correlation of reward and length among the responses of one prompt",
    "soft_ties": "preferences with target probability 0.5: part of the loss, of nothing else",
}


def summarize(scored: Sequence[ScoredComparison]) -> dict[str, Any]:
    """Every number of an evaluation, JSON-ready; `RULES` says how each is counted.

    `n` counts comparisons and `preferences` their edges. All other numbers but `loss` are over the edges that have a winner
    (target probability above 0.5): `wins`, `losses` and `ties` add up to their count. A number without anything to count is None,
    and so are all numbers about length when a comparison has no lengths.

    Returns:
        The numbers over all comparisons; `sources` with the same numbers for each source, `warnings` and `rules`.

    Raises:
        DataError: nothing to summarize.
        NumericError: a reward is not finite. It would compare as lost, and pass for an error of the model.
    """
    if not scored:
        raise DataError("expected at least one scored comparison, got none")
    _refuse_not_finite(scored)
    by_source: dict[str, list[ScoredComparison]] = defaultdict(list)
    for row in scored:
        by_source[row.source].append(row)
    summary = _numbers(_table(scored))
    return {
        **summary,
        "sources": {source: _numbers(_table(rows)) for source, rows in by_source.items()},
        "warnings": _warnings(summary),
        "rules": RULES,
    }


@dataclass(frozen=True, slots=True)
class _Table:
    """Comparisons as flat arrays. `winner_E` and `loser_E` index the N responses; weights sum to 1 in each comparison."""

    rewards_N: Floats
    lengths_N: Integers | None
    counts_C: Integers
    comparison_E: Integers
    winner_E: Integers
    loser_E: Integers
    margin_E: Floats
    probability_E: Floats
    weight_E: Floats


def _table(scored: Sequence[ScoredComparison]) -> _Table:
    counts_C = np.array([len(row.rewards) for row in scored], dtype=np.int64)
    first_C = np.concatenate([[0], np.cumsum(counts_C)[:-1]])
    edges = [(number, edge) for number, row in enumerate(scored) for edge in row.preferences]
    comparison_E = np.array([number for number, _ in edges], dtype=np.int64)
    winner_E = np.array([edge.winner for _, edge in edges], dtype=np.int64)
    loser_E = np.array([edge.loser for _, edge in edges], dtype=np.int64)
    probability_E = np.array([edge.probability for _, edge in edges])
    weight_E = np.array([edge.weight for _, edge in edges])
    assert np.all(np.maximum(winner_E, loser_E) < counts_C[comparison_E]), "a preference names a response that is not there"
    assert np.all(probability_E >= 0.5), f"the winner must be the likelier side, got probability {probability_E.min()}"
    total_C = np.bincount(comparison_E, weights=weight_E, minlength=len(scored))
    lengths = [length for row in scored for length in row.lengths]
    return _Table(
        rewards_N=np.array([reward for row in scored for reward in row.rewards]),
        lengths_N=np.array(lengths, dtype=np.int64) if all(len(row.lengths) == len(row.rewards) for row in scored) else None,
        counts_C=counts_C,
        comparison_E=comparison_E,
        winner_E=first_C[comparison_E] + winner_E,
        loser_E=first_C[comparison_E] + loser_E,
        margin_E=np.array([edge.margin for _, edge in edges]),
        probability_E=probability_E,
        weight_E=weight_E / total_C[comparison_E],
    )


def _numbers(table: _Table) -> dict[str, Any]:
    decided_E = table.probability_E > 0.5
    winners_E, losers_E = table.rewards_N[table.winner_E[decided_E]], table.rewards_N[table.loser_E[decided_E]]
    margin_E = winners_E - losers_E
    credit_E = np.where(margin_E == 0, 0.5, margin_E > 0)
    return {
        "n": len(table.counts_C),
        "preferences": len(decided_E),
        "soft_ties": int(np.sum(~decided_E)),
        "wins": int(np.sum(margin_E > 0)),
        "losses": int(np.sum(margin_E < 0)),
        "ties": int(np.sum(margin_E == 0)),
        **_accuracy(margin_E > 0, comparisons=len(np.unique(table.comparison_E[decided_E]))),
        "half_credit_accuracy": _mean(credit_E),
        "loss": _loss(table),
        "margin": _mean(margin_E),
        **_length_numbers(table, decided_E, margin_E > 0),
        "rewards": {"winners": _statistics(winners_E), "losers": _statistics(losers_E)},
        "calibration_error": _calibration_error(margin_E, credit_E),
    }


def _accuracy(right_E: Booleans, comparisons: int) -> dict[str, float | None]:
    """The strict share and its interval. Edges of one comparison share responses, so the comparisons are the independent trials."""
    if not len(right_E):
        return {"accuracy": None, "accuracy_low": None, "accuracy_high": None}
    share = float(np.mean(right_E))
    low, high = wilson_interval(share, comparisons)
    return {"accuracy": share, "accuracy_low": low, "accuracy_high": high}


def _loss(table: _Table) -> float:
    """The objective of training without its regularisers: `-p log sigmoid(d) - (1 - p) log sigmoid(-d)`, d = r_w - r_l - margin."""
    logit_E = table.rewards_N[table.winner_E] - table.rewards_N[table.loser_E] - table.margin_E
    loss_E = table.probability_E * np.logaddexp(0, -logit_E) + (1 - table.probability_E) * np.logaddexp(0, logit_E)
    return float(np.sum(loss_E * table.weight_E) / len(table.counts_C))


def _calibration_error(margin_E: Floats, credit_E: Floats) -> float | None:
    """Expected calibration error: each prediction is the side with the greater reward, at confidence sigmoid(|margin|)."""
    if not len(margin_E):
        return None
    confidence_E = 1 / (1 + np.exp(-np.abs(margin_E)))
    bin_E = np.minimum(((confidence_E - 0.5) * 2 * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gap_per_bin = np.bincount(bin_E, weights=credit_E - confidence_E, minlength=CALIBRATION_BINS)
    return float(np.sum(np.abs(gap_per_bin)) / len(margin_E))


def _length_numbers(table: _Table, decided_E: Booleans, right_E: Booleans) -> dict[str, Any]:
    lengths_N = table.lengths_N
    if lengths_N is None:
        return dict.fromkeys(("longer_wins", "accuracy_by_length", "spearman_length", "spearman_length_within"))
    longer_E = np.sign(lengths_N[table.winner_E[decided_E]] - lengths_N[table.loser_E[decided_E]])
    return {
        "longer_wins": _mean((longer_E + 1) / 2),
        "accuracy_by_length": {
            name: {"preferences": int(np.sum(longer_E == sign)), "accuracy": _mean(right_E[longer_E == sign])}
            for name, sign in (("winner_longer", 1), ("winner_shorter", -1), ("equal", 0))
        },
        "spearman_length": _spearman(table.rewards_N[None], lengths_N[None])[0],
        "spearman_length_within": _spearman_within(table.rewards_N, lengths_N, table.counts_C),
    }


def _spearman_within(rewards_N: Floats, lengths_N: Integers, counts_C: Integers) -> float | None:
    """Mean of the comparisons' own correlations, over those where both rewards and lengths differ."""
    first_C = np.concatenate([[0], np.cumsum(counts_C)[:-1]])
    correlations: list[float | None] = []
    for count in np.unique(counts_C):
        responses = first_C[counts_C == count][:, None] + np.arange(count)
        correlations += _spearman(rewards_N[responses], lengths_N[responses])
    defined = [correlation for correlation in correlations if correlation is not None]
    return _mean(np.array(defined))


def _spearman(left: NDArray[Any], right: NDArray[Any]) -> list[float | None]:
    """Spearman's rho of each row of two [rows, K] arrays; None where a row has a single value."""
    left_ranks, right_ranks = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (_ranks(left), _ranks(right)))
    covariance = np.sum(left_ranks * right_ranks, axis=1)
    scale = np.sqrt(np.sum(left_ranks**2, axis=1) * np.sum(right_ranks**2, axis=1))
    return [float(c / s) if s > 0 else None for c, s in zip(covariance, scale, strict=True)]


def _ranks(values: NDArray[Any]) -> Floats:
    """Ranks within each row of [rows, K], equal values sharing their mean rank."""
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


def _mean(values: NDArray[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _statistics(values: Floats) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(("mean", "std", "min", "max"))
    return {"mean": float(values.mean()), "std": float(values.std()), "min": float(values.min()), "max": float(values.max())}


def _refuse_not_finite(scored: Sequence[ScoredComparison]) -> None:
    rows = [row for row in scored if not all(map(math.isfinite, row.rewards))]
    if not rows:
        return
    named = ", ".join(row.id for row in rows[:MAX_NAMED]) + (", ..." if len(rows) > MAX_NAMED else "")
    raise NumericError(
        f"{len(rows):,} of {len(scored):,} comparisons have a reward that is not finite: {named}; "
        "look at one with `rmtrain inspect --row`, and score it in float32"
    )


def _warnings(summary: dict[str, Any]) -> list[str]:
    decided = summary["preferences"] - summary["soft_ties"]
    warnings = []
    if not decided:
        return ["every preference is a tie (target probability 0.5): there is no accuracy"]
    if summary["ties"] > MAX_TIE_SHARE * decided:
        warnings.append(
            f"{summary['ties']:,} of {decided:,} preferences are ties ({100 * summary['ties'] / decided:.1f} %): "
            "rewards may be computed or stored in too low a precision, or responses may be identical"
        )
    longer = summary["longer_wins"]
    if longer is not None and max(longer, 1 - longer) >= summary["accuracy_low"]:
        rule, baseline = ("longer", longer) if longer >= 0.5 else ("shorter", 1 - longer)
        warnings.append(
            f"not better than length: accuracy {summary['accuracy']:.4f} "
            f"[{summary['accuracy_low']:.4f}, {summary['accuracy_high']:.4f}], "
            f"and preferring the {rule} response alone gives {baseline:.4f}"
        )
    return warnings
