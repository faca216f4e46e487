"""Scores to numbers. Everything here can be computed again from `scores.jsonl` and its settings.

Array legend: N responses, E preferences (edges), M targets.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rmtrain.batching.layout import LabelBatch, label_tensors
from rmtrain.errors import DataError, NumericError
from rmtrain.evaluation.scores_file import ScoredComparison, prompt_numbers
from rmtrain.evaluation.targets import Floats, Integers, mean, spearman, target_numbers
from rmtrain.intervals import Sample, wilson_interval
from rmtrain.objective import PLAIN, compute_objective
from rmtrain.recipe.schema import (
    Binary,
    BradleyTerry,
    Objectives,
    OneObjective,
    OwnObjective,
    PlackettLuce,
    Regression,
    objective_for,
)

CALIBRATION_BINS = 10
MAX_TIE_SHARE = 0.01
MAX_NAMED = 10
# Few enough that torch adds them up in one thread: the digits of a loss must not depend on the number of threads.
LOSS_CHUNK = 512

RULES = {
    "accuracy": "share of preferences whose winner has the strictly greater reward; a tie counts as wrong",
    "half_credit_accuracy": "the same, but a tie counts half",
    "accuracy_low, accuracy_high": "Wilson 95 % interval; the effective number of trials follows from how much prompts differ, since "
    "preferences of one prompt are not independent",
    "longer_wins": "accuracy of preferring the response with more tokens, counted before anything was cut, without any model; equal "
    "lengths count half",
    "loss": "the training objective with all its terms, averaged within a comparison, then over comparisons by their weights; "
    "Bradley-Terry where the scores do not name one",
    "chance_loss": "the loss of a model that gives all responses the same reward",
    "calibration_error": "expected calibration error of sigmoid(margin) over ten equal bins of confidence in [0.5, 1]",
    "spearman_length_within": "mean over prompts of the rank correlation of reward and length among the responses of one prompt",
    "soft_ties": "preferences with target probability 0.5: they count in the loss only",
    "spearman, spearman_within": "rank correlation of reward and target, over all responses, and its mean over prompts",
    "mse, r2": "mean squared error of reward * std + mean against the targets, and the share of their variance that it explains",
    "auc": "probability that a response with target 1 has a greater reward than one with target 0; a tie counts half",
    "brier": "mean squared error of sigmoid(reward) against the targets",
    "accuracy_at_half": "share of targets other than 0.5 on whose side of 0.5 sigmoid(reward) is",
    "target_calibration_error": "expected calibration error of sigmoid(reward) over ten equal bins of [0, 1]",
}


@dataclass(frozen=True, slots=True)
class ScoredEdges:
    """Preferences with a target probability above 0.5, in the order of the comparisons.

    comparison_E, prompt_E, source_E: numbers of the comparison, of its prompt and of its source, int64.
    winner_E, loser_E: rewards, float64.
    winner_length_E, loser_length_E: tokens, int64; None where a comparison has no lengths.
    """

    comparison_E: Integers
    prompt_E: Integers
    source_E: Integers
    winner_E: Floats
    loser_E: Floats
    winner_length_E: Integers | None
    loser_length_E: Integers | None

    def __len__(self) -> int:
        return len(self.comparison_E)

    @property
    def margin_E(self) -> Floats:
        """Reward of the winner minus that of the loser; above 0 where the model agrees."""
        return self.winner_E - self.loser_E

    @property
    def credit_E(self) -> Floats:
        """1 where the model agrees, 0 where it does not, 0.5 for a tie."""
        return np.where(self.margin_E == 0, 0.5, self.margin_E > 0)

    def sample(self, inside_E: NDArray[np.bool_] | None = None) -> Sample:
        """Return all edges, or some, as a sample with the same weight for each, in clusters by prompt and stratified by source."""
        inside_E = np.ones(len(self), bool) if inside_E is None else inside_E
        return Sample.of(np.ones(int(inside_E.sum())), self.source_E[inside_E], self.prompt_E[inside_E])


def scored_edges(scored: Sequence[ScoredComparison]) -> ScoredEdges:
    """Collect the decided edges of comparisons; there may be none."""
    rows = [(number, row, edge) for number, row in enumerate(scored) for edge in row.preferences if edge.probability > 0.5]
    comparison_E = np.array([number for number, _, _ in rows], dtype=np.int64)
    numbered: dict[str, int] = {}
    sources = np.array([numbered.setdefault(row.source, len(numbered)) for row in scored], dtype=np.int64)
    prompts = prompt_numbers(scored)
    winner_length_E = loser_length_E = None
    if all(len(row.lengths) == len(row.rewards) for row in scored):
        winner_length_E = np.array([row.lengths[edge.winner] for _, row, edge in rows], dtype=np.int64)
        loser_length_E = np.array([row.lengths[edge.loser] for _, row, edge in rows], dtype=np.int64)
    return ScoredEdges(
        comparison_E=comparison_E,
        prompt_E=prompts[comparison_E],
        source_E=sources[comparison_E],
        winner_E=np.array([row.rewards[edge.winner] for _, row, edge in rows], dtype=np.float64),
        loser_E=np.array([row.rewards[edge.loser] for _, row, edge in rows], dtype=np.float64),
        winner_length_E=winner_length_E,
        loser_length_E=loser_length_E,
    )


def reward_statistics(scored: Sequence[ScoredComparison]) -> dict[str, float]:
    """Return number, mean and standard deviation of the rewards of all responses, in float64, by which RL normalizes rewards."""
    rewards_N = np.array([reward for row in scored for reward in row.rewards], dtype=np.float64)
    return {"responses": len(rewards_N), "mean": float(rewards_N.mean()), "std": float(rewards_N.std())}


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Scores of comparisons in the order of the data, their summary, and the time they took.

    hardest: the errors with the largest margins as text, for a report.
    settings: everything that the scores depend on, for their file.
    pad_token: see `replaced_pad_token`.
    """

    scored: list[ScoredComparison]
    summary: dict[str, Any]
    seconds: float
    micro_batches: int
    hardest: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    pad_token: Mapping[str, Any] | None = None

    def metrics(self) -> dict[str, float]:
        """Return the numbers of a log line, by their names in `metrics.jsonl`. A step of an evaluation is a micro-batch.

        They are the shares and means of the summary, and its ties; the other counts are left out.
        """
        sources = self.summary["sources"]
        values = {
            **{name: value for name, value in self.summary.items() if isinstance(value, float)},
            "ties": self.summary["ties"],
            "chosen_reward": self.summary["rewards"]["winners"]["mean"],
            "rejected_reward": self.summary["rewards"]["losers"]["mean"],
            **({f"{tag}/accuracy": numbers["accuracy"] for tag, numbers in sources.items()} if len(sources) > 1 else {}),
            "runtime": self.seconds,
            "samples_per_second": len(self.scored) / self.seconds,
            "steps_per_second": self.micro_batches / self.seconds,
        }
        return {f"eval/{name}": value for name, value in values.items() if value is not None}


def summarize(scored: Sequence[ScoredComparison], objective: Objectives = PLAIN) -> dict[str, Any]:
    """Compute every number of an evaluation, JSON-ready; `RULES` defines each.

    `n` counts comparisons, `preferences` their edges and `targets` their targets. `loss` is of the training objective, and weighted as in
    training; no other number is. The numbers of targets are at the end of `RULES`. All others are over the edges that have a winner
    (target probability above 0.5): `wins`, `losses` and `ties` add up to their count. A number without anything to count is None, as are
    all numbers about length when a comparison has no lengths.

    Returns:
        The numbers over all comparisons; `sources` with the same numbers for each source, `warnings` and `rules`.

    Raises:
        DataError, NumericError: see `check_rewards`.
    """
    check_rewards(scored, remedy="inspect one with `rmtrain inspect --row`, and score in float32")
    by_source: dict[str, list[ScoredComparison]] = defaultdict(list)
    for row in scored:
        by_source[row.source].append(row)
    summary = _numbers(scored, objective)
    return {
        **summary,
        "sources": {source: _numbers(rows, objective) for source, rows in by_source.items()},
        "warnings": _warnings(summary),
        "rules": RULES,
    }


def _numbers(scored: Sequence[ScoredComparison], objective: Objectives) -> dict[str, Any]:
    edges = scored_edges(scored)
    preferences = sum(len(row.preferences) for row in scored)
    margin_E, credit_E = edges.margin_E, edges.credit_E
    interval = share_with_interval(edges, margin_E > 0)
    sides = {"winners": edges.winner_E, "losers": edges.loser_E}
    return {
        "n": len(scored),
        "preferences": preferences,
        "soft_ties": preferences - len(edges),
        "wins": int(np.sum(margin_E > 0)),
        "losses": int(np.sum(margin_E < 0)),
        "ties": int(np.sum(margin_E == 0)),
        **{name: interval[name] for name in ("accuracy", "accuracy_low", "accuracy_high")},
        "half_credit_accuracy": mean(credit_E),
        "loss": objective_loss(scored, objective),
        "chance_loss": objective_loss([replace(row, rewards=(0.0,) * len(row.rewards)) for row in scored], objective),
        "margin": mean(margin_E),
        **_length_numbers(scored, edges),
        "rewards": {
            side: {name: float(getattr(values, name)()) if len(values) else None for name in ("mean", "std", "min", "max")}
            for side, values in sides.items()
        },
        "calibration_error": _calibration_error(margin_E, credit_E),
        **target_numbers(scored, objective),
    }


def objective_loss(scored: Sequence[ScoredComparison], objective: Objectives) -> float | None:
    """Return the mean over comparisons of the objective that trains, by their weights, in float64 from the float32 rewards.

    It has all terms of the objective, so that it means the same as `train/loss`. None where it cannot be computed: for `plackett_luce`
    where the preferences of a comparison do not order its responses, for a function whose file is not there, for targets whose scale is
    not known, without margins that scale it, and where no comparison has labels of its kind.
    """
    taken = [row for row in scored if _takes(objective_for(objective, row.source), row)]
    if not taken or not all(_is_computable(objective_for(objective, row.source), row) for row in taken):
        return None
    sums = []
    for begin in range(0, len(taken), LOSS_CHUNK):
        rows = taken[begin : begin + LOSS_CHUNK]
        batch = LabelBatch(**label_tensors(rows, [len(row.rewards) for row in rows], torch.float64))
        rewards_N = torch.tensor([reward for row in rows for reward in row.rewards], dtype=torch.float64)
        sums.append(float(compute_objective(objective, rewards_N, batch).loss))
    return math.fsum(sums) / math.fsum(row.weight for row in taken)


def _takes(objective: OneObjective, row: ScoredComparison) -> bool:
    """Return whether a comparison has labels that an objective learns from."""
    match objective:
        case Regression() | Binary():
            return bool(row.targets)
        case BradleyTerry(margin="scale"):
            return any(edge.margin for edge in row.preferences)
        case OwnObjective():
            return True
        case _:
            return bool(row.preferences)


def _is_computable(objective: OneObjective, row: ScoredComparison) -> bool:
    match objective:
        case PlackettLuce():
            return _is_ranking(row)
        case Regression():
            return objective.mean is not None
        case OwnObjective():
            return objective.hook is not None
        case _:
            return True


def _is_ranking(row: ScoredComparison) -> bool:
    balance = Counter(edge.winner for edge in row.preferences)
    balance.subtract(edge.loser for edge in row.preferences)
    return len({balance[response] for response in range(len(row.rewards))}) == len(row.rewards)


def share_with_interval(edges: ScoredEdges, credit_E: NDArray[Any], inside_E: NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """Return count, share and 95 % interval of credits in [0, 1], bool or float64, of all edges or of those inside a part."""
    inside_E = np.ones(len(edges), bool) if inside_E is None else inside_E
    if not inside_E.any():
        return {"preferences": 0, "accuracy": None, "accuracy_low": None, "accuracy_high": None}
    credits = credit_E[inside_E]
    share = float(np.mean(credits))
    low, high = wilson_interval(share, edges.sample(inside_E).effective_size(credits))
    return {"preferences": len(credits), "accuracy": share, "accuracy_low": low, "accuracy_high": high}


def confidence_bins(margin_E: Floats) -> tuple[Floats, Integers]:
    """Return the confidence sigmoid(|margin|) in the greater reward, and its bin among ten equal ones of [0.5, 1]."""
    confidence_E = 1 / (1 + np.exp(-np.abs(margin_E)))
    return confidence_E, np.minimum(((confidence_E - 0.5) * 2 * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def _calibration_error(margin_E: Floats, credit_E: Floats) -> float | None:
    """Return the expected calibration error (Guo et al. 2017, eq. 3); a tie is half right."""
    if not len(margin_E):
        return None
    confidence_E, bin_E = confidence_bins(margin_E)
    gap_per_bin = np.bincount(bin_E, weights=credit_E - confidence_E, minlength=CALIBRATION_BINS)
    return float(np.sum(np.abs(gap_per_bin)) / len(margin_E))


def _length_numbers(scored: Sequence[ScoredComparison], edges: ScoredEdges) -> dict[str, Any]:
    if edges.winner_length_E is None or edges.loser_length_E is None:
        return dict.fromkeys(("longer_wins", "accuracy_by_length", "spearman_length", "spearman_length_within"))
    longer_E, right_E = np.sign(edges.winner_length_E - edges.loser_length_E), edges.margin_E > 0
    rewards_1N = np.array([[reward for row in scored for reward in row.rewards]])
    lengths_1N = np.array([[length for row in scored for length in row.lengths]])

    # Comparisons of equally many responses are ranked together, as the rows of one array.
    by_count: dict[int, list[ScoredComparison]] = defaultdict(list)
    for row in scored:
        by_count[len(row.rewards)].append(row)
    within = [
        correlation
        for _, rows in sorted(by_count.items())
        for correlation in spearman(np.array([row.rewards for row in rows]), np.array([row.lengths for row in rows]))
    ]
    return {
        "longer_wins": mean((longer_E + 1) / 2),
        "accuracy_by_length": {
            name: share_with_interval(edges, right_E, longer_E == sign)
            for name, sign in (("winner_longer", 1), ("winner_shorter", -1), ("equal", 0))
        },
        "spearman_length": spearman(rewards_1N, lengths_1N)[0],
        "spearman_length_within": mean(np.array([correlation for correlation in within if correlation is not None])),
    }


def check_rewards(scored: Sequence[ScoredComparison], place: str = "", remedy: str = "score in float32") -> None:
    """Raise DataError where nothing is scored, and NumericError where a reward is not finite: it would look like an error of the model."""
    if not scored:
        raise DataError(f"{place}expected at least one scored comparison, got none")
    bad = [row.id for row in scored if not all(map(math.isfinite, row.rewards))]
    if bad:
        named = ", ".join(bad[:MAX_NAMED]) + (", ..." if len(bad) > MAX_NAMED else "")
        raise NumericError(f"{place}{len(bad):,} of {len(scored):,} rows have a reward that is not finite: {named}; {remedy}")


def _warnings(summary: Mapping[str, Any]) -> list[str]:
    warnings = []
    if summary["loss"] is None:
        warnings.append(
            "no loss: these rows lack what the objective learns from, such as targets for regression, margins for scaled Bradley-Terry, "
            "preferences that order all responses for plackett_luce, or the file of a function"
        )
    decided = summary["preferences"] - summary["soft_ties"]
    if summary["targets"] and not summary["preferences"]:
        return warnings
    if not decided:
        return [*warnings, "every preference is a tie (target probability 0.5): there is no accuracy"]
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
            f"while preferring the {rule} response alone gives {baseline:.4f}; to train against it, set balance: longer, or augment, "
            "on the training sources"
        )
    return warnings
