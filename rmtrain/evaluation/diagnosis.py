"""Where a model is fooled, and how far its numbers can be trusted: the details behind the accuracy, and single comparisons as text.

Array legend: E preferences (edges).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.artifact import TokenizedData
from rmtrain.data.comparison import Preference, TokenizedComparison
from rmtrain.evaluation.metrics import CALIBRATION_BINS, ScoredEdges, confidence_bins, scored_edges, share_with_interval
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.evaluation.targets import Floats

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # numbers of scores alone need no transformers

HISTOGRAM_BINS = 30
LENGTH_BINS = 8
Row = Mapping[str, Any]
ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
"""First digits of a round width."""


def diagnose(scored: Sequence[ScoredComparison]) -> dict[str, Any]:
    """Compute every part below over the preferences that have a winner, and `targets` over these; a part without any is None."""
    edges, targets = scored_edges(scored), reward_by_target(scored)
    parts: dict[str, Callable[[ScoredEdges], Any]] = {
        "rewards": reward_histograms,
        "margins": margin_histogram,
        "length_difference": accuracy_by_length_difference,
        "reward_by_length": reward_by_length,
        "calibration": calibration_curve,
    }
    numbers = {name: part(edges) if len(edges) else None for name, part in parts.items()}
    return {"preferences": len(edges), **numbers, "reward_by_target": targets}


def reward_histograms(edges: ScoredEdges) -> dict[str, Any]:
    """Return the rewards of winners and losers over the same bins: `edges` (one more than bins), counts `winners` and `losers`."""
    rewards = np.concatenate([edges.winner_E, edges.loser_E])
    bins = round_edges(float(rewards.min()), float(rewards.max()), HISTOGRAM_BINS)
    winners, losers = (_counts(values, bins) for values in (edges.winner_E, edges.loser_E))
    return {"edges": bins.tolist(), "winners": winners, "losers": losers}


def margin_histogram(edges: ScoredEdges) -> dict[str, Any]:
    """Return the margins of rewards: `edges`, including 0, `counts`, and the shares `right`, `wrong` and `tied`.

    A tie counts in the bin above 0.
    """
    margin_E = edges.margin_E
    bins = round_edges(min(0.0, float(margin_E.min())), max(0.0, float(margin_E.max())), HISTOGRAM_BINS)
    shares = {name: float(np.mean(np.sign(margin_E) == sign)) for name, sign in (("right", 1), ("wrong", -1), ("tied", 0))}
    return {"edges": bins.tolist(), "counts": _counts(margin_E, bins), **shares}


def accuracy_by_length_difference(edges: ScoredEdges) -> list[dict[str, Any]] | None:
    """Return the accuracy by how many tokens longer the winner is than the loser, from much shorter to much longer.

    The bounds are the thirds of the differences' sizes, the same for both signs, so that a preference for length shows as a slope, which
    `balance` and `augment` of a training source reduce; equal lengths have a bin of their own. A bin has `low` and `high` (both included;
    None: unbounded), and `accuracy` with its interval.
    """
    if edges.winner_length_E is None or edges.loser_length_E is None:
        return None
    difference_E = edges.winner_length_E - edges.loser_length_E
    sizes = np.abs(difference_E[difference_E != 0])
    thirds = np.unique(np.quantile(sizes, (1 / 3, 2 / 3), method="inverted_cdf")).astype(int).tolist() if len(sizes) else []
    above: list[tuple[int | None, int | None]] = list(zip([1, *(bound + 1 for bound in thirds)], [*thirds, None], strict=True))
    below = [(None if high is None else -high, None if low is None else -low) for low, high in reversed(above)]
    bins = []
    for low, high in [*below, (0, 0), *above]:
        inside_E = (difference_E >= (-np.inf if low is None else low)) & (difference_E <= (np.inf if high is None else high))
        if inside_E.any():
            numbers = share_with_interval(edges, edges.margin_E > 0, inside_E)
            bins.append({"low": low, "high": high, **numbers})
    return bins


def reward_by_length(edges: ScoredEdges) -> list[dict[str, Any]] | None:
    """Return the mean reward of responses of similar length, in bins of equal counts.

    A response counts once for each preference it is in. A bin has `low` and `high` in tokens, prompt included, `responses`, their mean
    `reward` and its standard `deviation`.
    """
    if edges.winner_length_E is None or edges.loser_length_E is None:
        return None
    lengths = np.concatenate([edges.winner_length_E, edges.loser_length_E])
    rewards = np.concatenate([edges.winner_E, edges.loser_E])
    quantiles = np.arange(1, LENGTH_BINS) / LENGTH_BINS
    uppers = np.unique(np.append(np.quantile(lengths, quantiles, method="inverted_cdf"), lengths.max()))
    return _rewards_by_bin(lengths, rewards, uppers)


def reward_by_target(scored: Sequence[ScoredComparison]) -> list[dict[str, Any]] | None:
    """Return the mean reward of responses with similar targets, in bins of about equal counts, equal targets in one bin.

    A bin has `low` and `high`, the number of `responses`, their mean `reward` and its standard `deviation`. None without targets.
    """
    pairs = [(target.value, row.rewards[target.response]) for row in scored for target in row.targets]
    if not pairs:
        return None
    targets, rewards = np.array(pairs, np.float64).T
    quantiles = np.arange(1, LENGTH_BINS + 1) / LENGTH_BINS
    uppers = np.unique(np.quantile(targets, quantiles, method="inverted_cdf"))
    return _rewards_by_bin(targets, rewards, uppers)


def _rewards_by_bin(values: NDArray[Any], rewards: Floats, uppers: NDArray[Any]) -> list[dict[str, Any]]:
    """Return bins of responses by a value of theirs, whose upper edges are included, with their mean reward."""
    bin_of = np.searchsorted(uppers, values)
    return [
        {
            "low": values[bin_of == number].min().item(),
            "high": values[bin_of == number].max().item(),
            "responses": int(np.sum(bin_of == number)),
            "reward": float(rewards[bin_of == number].mean()),
            "deviation": float(rewards[bin_of == number].std()),
        }
        for number in range(len(uppers))
    ]


def calibration_curve(edges: ScoredEdges) -> dict[str, Any]:
    """Return how often the model is right at each level of confidence (Guo et al. 2017, eq. 3); see `confidence_bins`.

    A tie has confidence 0.5 and is half right. The `error` is `sum_b n_b / n * |right_b - confidence_b|` over the bins that have any.
    """
    (confidence_E, bin_E), credit_E = confidence_bins(edges.margin_E), edges.credit_E
    bins = [
        {
            "low": 0.5 + number / (2 * CALIBRATION_BINS),
            "high": 0.5 + (number + 1) / (2 * CALIBRATION_BINS),
            "confidence": float(confidence_E[bin_E == number].mean()),
            **share_with_interval(edges, credit_E, bin_E == number),
        }
        for number in np.unique(bin_E).tolist()
    ]
    error = sum(row["preferences"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / len(edges)
    return {"error": error, "bins": bins}


def round_width(span: float, most: int) -> float:
    """Return the smallest round width of which at most `most` cover a span; 1 for a span of 0."""
    if span <= 0:
        return 1.0
    least = span / most
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(digits * power for digits in ROUND if digits * power >= least * (1 - 1e-9))


def round_edges(low: float, high: float, most: int) -> Floats:
    """Return edges at multiples of a round width that enclose `low` to `high`; about `most` bins, one more where both ends are cut."""
    width = round_width(high - low, most)
    first, last = math.floor(low / width + 1e-9), math.ceil(high / width - 1e-9)
    return np.arange(first, max(last, first + 1) + 1, dtype=np.float64) * np.float64(width)


def _counts(values: Floats, bins: Floats) -> list[int]:
    """Count the values in each bin, its lower edge included; rounding at the outer edges loses none."""
    counts: list[int] = np.histogram(np.clip(values, bins[0], bins[-1]), bins)[0].tolist()
    return counts


def sample_rows(
    data: TokenizedData, scored: Sequence[ScoredComparison], tokenizer: "PreTrainedTokenizerBase", count: int
) -> list[dict[str, Any]]:
    """Return up to `count` comparisons as text, spread evenly over the data and the same ones each time; see `describe_edge`.

    Comparisons with targets and no preference are not among them.
    """
    compared = np.flatnonzero(data.preference_counts)
    places = np.unique(np.linspace(0, len(compared) - 1, min(count, len(compared))).astype(int))
    rows = [(data[number], scored[number].rewards) for number in compared[places].tolist()]
    return [describe_edge(row, row.preferences[0], rewards, tokenizer) for row, rewards in rows]


def hardest_errors(scored: Sequence[ScoredComparison], count: int) -> list[tuple[int, Preference]]:
    """Return the numbers of up to `count` comparisons with the largest wrong margin, and the preference whose loser leads most.

    Worst first. Ties are not errors here.
    """
    wrong = []
    for number, row in enumerate(scored):
        margins = [
            (row.rewards[edge.winner] - row.rewards[edge.loser], edge) for edge in row.preferences if edge.probability > 0.5
        ]
        margin, edge = min(margins, key=lambda pair: pair[0], default=(0.0, None))
        if edge is not None and margin < 0:
            wrong.append((margin, number, edge))
    wrong.sort(key=lambda error: error[:2])
    return [(number, edge) for _, number, edge in wrong[:count]]


def describe_edge(
    row: TokenizedComparison, edge: Preference, rewards: Sequence[float], tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, Any]:
    """Return a preference as text: `id`, `source`, `prompt`, `chosen`, `rejected`, and the two of the comparison's `rewards`."""
    chosen, rejected = row.sequences[edge.winner], row.sequences[edge.loser]
    parts = {
        "prompt": chosen[: row.prompt_length],
        "chosen": chosen[row.prompt_length :],
        "rejected": rejected[row.prompt_length :],
    }
    return {
        "id": row.id,
        "source": row.source,
        **{name: tokenizer.decode(ids, skip_special_tokens=True) for name, ids in parts.items()},
        "rewards": [rewards[edge.winner], rewards[edge.loser]],
    }


def reward_drift(metrics: Iterable[Row]) -> list[dict[str, float]]:
    """Return the mean rewards of winners and losers at each evaluation, by step, from the lines of `metrics.jsonl`; the last counts.

    Only differences of rewards are trained: where the mean drifts, rewards of two checkpoints are not on one scale.
    """
    chosen, rejected = "eval/chosen_reward", "eval/rejected_reward"
    by_step = {row["step"]: row for row in metrics if chosen in row and rejected in row}
    return [{"step": step, "chosen": by_step[step][chosen], "rejected": by_step[step][rejected]} for step in sorted(by_step)]


def sample_histories(samples: Iterable[Row]) -> list[dict[str, Any]]:
    """Return each comparison of the lines of `samples.jsonl` once, with its `history`: `step` and `rewards`, chosen first, by step."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for sample in samples:
        texts = {key: sample[key] for key in ("id", "source", "prompt", "chosen", "rejected")}
        row = rows.setdefault((sample["source"], sample["id"]), {**texts, "history": {}})
        row["history"][sample["step"]] = {"step": sample["step"], "rewards": list(sample["rewards"])}
    return [{**row, "history": [row["history"][step] for step in sorted(row["history"])]} for row in rows.values()]
