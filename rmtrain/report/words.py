"""What an evaluation shows, in sentences, each with what to try next.

A sentence is only said where a difference is beyond its 95 % interval, so that noise is not explained. What `summary["warnings"]` say, such
as ties or an accuracy that is not above that of the length alone, is not said again.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from rmtrain.intervals import t_quantile_95
from rmtrain.report.console import decimal

Numbers = Mapping[str, Any]

MOST = 5
FEW = 20
"""Preferences of a part below which nothing is said of it."""
WIDE = 0.1
"""Width of the interval of an accuracy above which the evaluation is called small."""
FEW_LINES = 5
"""Lines of `metrics.jsonl` of the last epoch below which its accuracy is not compared."""
OVERFIT = 0.05
"""By how much the interval of the training accuracy has to be above that of the evaluation, before it is mentioned."""
ROSE = 0.02
"""By what share of the lowest `eval/loss` it has to rise afterwards, before it is mentioned."""


def sentences(summary: Numbers, calibration: Numbers | None = None, metrics: Sequence[Numbers] = ()) -> list[str]:
    """Return at most five sentences on an evaluation of preferences, the most important first; none for targets alone.

    Args:
        summary: as `summarize` returns it.
        calibration: as `calibration_curve` returns it.
        metrics: the lines of `metrics.jsonl` of the run.
    """
    if not summary["preferences"] or summary["accuracy"] is None:
        return []
    found = [
        *_chance(summary),
        *_length(summary),
        *_overfit(summary, metrics),
        *_turn(metrics),
        *_sources(summary),
        *_confidence(summary, calibration),
        *_width(summary),
    ]
    if found or summary["warnings"]:
        return list(islice(found, MOST))
    return [
        "No part of these rows stands out: next, try a benchmark (rmtrain eval RUN --benchmark rewardbench2) or read the hardest errors."
    ]


def _chance(summary: Numbers) -> Iterator[str]:
    """A tie counts half, as by chance; the distances to the ends of the interval are those of the accuracy."""
    share, accuracy = summary["half_credit_accuracy"], summary["accuracy"]
    if share + summary["accuracy_high"] - accuracy < 0.5:
        yield (
            f"Wrong more often than chance would be: right on {_share(accuracy)}. Check in rmtrain inspect that chosen is the better "
            "response, in the training data and in these rows."
        )
    elif share - (accuracy - summary["accuracy_low"]) <= 0.5:
        yield (
            f"Right on {_share(accuracy)}, which could be chance: 0.5 is inside the 95 % interval. Look at the training loss; try more "
            "rows, more training.epochs or a higher optimizer.lr."
        )


def _length(summary: Numbers) -> Iterator[str]:
    """A bias where the intervals of the two accuracies, which allow for prompts with several preferences, do not overlap."""
    parts = summary["accuracy_by_length"]
    if parts is None:
        return
    longer, shorter = parts["winner_longer"], parts["winner_shorter"]
    if min(longer["preferences"], shorter["preferences"]) < FEW:
        return
    is_long, is_short = (one["accuracy_low"] > other["accuracy_high"] for one, other in ((longer, shorter), (shorter, longer)))
    if is_long or is_short:
        yield (
            f"Right on {_share(longer['accuracy'])} of the pairs where the better response is longer, and on "
            f"{_share(shorter['accuracy'])} where it is shorter: the model prefers {'long' if is_long else 'short'} responses. "
            "Try balance: longer, or augment, on the training sources."
        )


def _overfit(summary: Numbers, metrics: Sequence[Numbers]) -> Iterator[str]:
    """The last epoch against the evaluation. In the first epoch every row is new, so a difference there says nothing of overfitting.

    The interval of the mean over lines is Student's.
    """
    lines = [(line["train/epoch"], line["train/accuracy"]) for line in metrics if "train/accuracy" in line]
    end = max((epoch for epoch, _ in lines), default=0.0)
    shares = [share for epoch, share in lines if epoch > max(1.0, end - 1)]
    if len(shares) < FEW_LINES:
        return
    share, half = fmean(shares), t_quantile_95(len(shares) - 1) * stdev(shares) / sqrt(len(shares))
    if share - half > summary["accuracy_high"] + OVERFIT:
        yield (
            f"Right on {_share(share)} of the training rows in the last epoch, and on {_share(summary['accuracy'])} of these: it fits rows "
            "that it has seen before better than new ones. Try fewer training.epochs, a lower optimizer.lr, or more data."
        )


def _turn(metrics: Sequence[Numbers]) -> Iterator[str]:
    losses = [(line["eval/loss"], line["step"]) for line in metrics if line.get("eval/loss") is not None]
    if len(losses) > 2:
        (lowest, step), (last, end) = min(losses), losses[-1]
        if step < end and last > lowest * (1 + ROSE):
            yield (
                f"eval/loss was lowest at step {step:,} ({decimal(lowest)}) and rose to {decimal(last)} at step {end:,}. Try "
                "evaluation.early_stopping, or checkpoints.best: loss with load_best_at_end."
            )


def _sources(summary: Numbers) -> Iterator[str]:
    rated = {
        name: numbers
        for name, numbers in summary["sources"].items()
        if numbers["accuracy"] is not None and numbers["preferences"] >= FEW
    }
    if len(rated) > 1:
        name, weakest = min(rated.items(), key=lambda item: item[1]["accuracy"])
        if weakest["accuracy_high"] < summary["accuracy_low"]:
            yield (
                f"Weakest on {name}: right on {_share(weakest['accuracy'])}, and on {_share(summary['accuracy'])} of all rows. "
                "Look at its rows (rmtrain inspect --source), and train on more of them."
            )


def _confidence(summary: Numbers, calibration: Numbers | None) -> Iterator[str]:
    """As in the calibration, a tie has confidence 0.5 and is half right."""
    bins = calibration["bins"] if calibration else ()
    count = sum(row["preferences"] for row in bins)
    if count < FEW:
        return
    sure = sum(row["preferences"] * row["confidence"] for row in bins) / count
    right, accuracy = summary["half_credit_accuracy"], summary["accuracy"]
    expected = f"by sigmoid(margin) it expects to be right on {_share(sure)}, and is on {_share(right)}. The order of rewards is unaffected"
    if sure - right > summary["accuracy_high"] - accuracy:
        yield f"Too sure: {expected}; for probabilities try objective.label_smoothing or fewer training.epochs."
    elif right - sure > accuracy - summary["accuracy_low"]:
        yield f"Less sure than it could be: {expected}; longer training spreads them."


def _width(summary: Numbers) -> Iterator[str]:
    width = summary["accuracy_high"] - summary["accuracy_low"]
    if width > WIDE:
        yield (
            f"The interval is {100 * width:.0f} points wide, so a model that is a little better looks the same: evaluate on more rows."
        )


def _share(share: float) -> str:
    return decimal(share, 3)
