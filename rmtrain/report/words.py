"""What an evaluation shows, in sentences, each with what to try next.

A sentence is only said where a difference is beyond its 95 % interval, so that noise is not explained.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from rmtrain.intervals import wilson_interval
from rmtrain.report.console import decimal

Numbers = Mapping[str, Any]

MOST = 5
FEW = 20
"""Preferences of a part below which nothing is said of it."""
WIDE = 0.1
"""Width of the interval of an accuracy above which the evaluation is called small."""
MEMORIZED = 0.05
"""By how much training is more often right than the upper end of the evaluation's interval, before it is called memorized."""
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
        *_length(summary),
        *_memorized(summary, metrics),
        *_turn(metrics),
        *_sources(summary),
        *_confidence(summary, calibration),
        *_width(summary),
    ]
    return list(islice(found, MOST)) or [
        "No part of these rows stands out: next, try a benchmark (rmtrain eval RUN --benchmark rewardbench2) or read the hardest errors."
    ]


def _length(summary: Numbers) -> Iterator[str]:
    """Two shares of different preferences, each with its interval (Wilson); a bias where the intervals do not overlap."""
    parts = summary["accuracy_by_length"]
    if parts is None:
        return
    longer, shorter = parts["winner_longer"], parts["winner_shorter"]
    if min(longer["preferences"], shorter["preferences"]) < FEW:
        return
    low_longer, high_longer = wilson_interval(longer["accuracy"], longer["preferences"])
    low_shorter, high_shorter = wilson_interval(shorter["accuracy"], shorter["preferences"])
    preferred = "long" if low_longer > high_shorter else "short" if low_shorter > high_longer else None
    if preferred is not None:
        yield (
            f"Right on {_share(longer['accuracy'])} of the pairs where the better response is longer, and on "
            f"{_share(shorter['accuracy'])} where it is shorter: the model prefers {preferred} responses. "
            "Try balance: longer, or augment, on the training sources."
        )


def _memorized(summary: Numbers, metrics: Sequence[Numbers]) -> Iterator[str]:
    """The accuracy of the last tenth of the steps is a mean over their rows, and needs no interval of its own next to `MEMORIZED`."""
    steps = [line["train/accuracy"] for line in metrics if line.get("train/accuracy") is not None]
    last = steps[-max(1, len(steps) // 10) :]
    if len(steps) >= FEW and sum(last) / len(last) > summary["accuracy_high"] + MEMORIZED:
        yield (
            f"Right on {_share(sum(last) / len(last))} of the training rows at the end, and on {_share(summary['accuracy'])} of these: "
            "it has memorized training rows. Try fewer training.epochs, a lower optimizer.lr, or more data."
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
    bins = calibration["bins"] if calibration else ()
    count = sum(row["preferences"] for row in bins)
    if count < FEW:
        return
    sure = sum(row["preferences"] * row["confidence"] for row in bins) / count
    if sure > summary["accuracy_high"]:
        yield (
            f"Too sure: by sigmoid(margin) it expects to be right on {_share(sure)}, and is on {_share(summary['accuracy'])}. "
            "The order of rewards is unaffected; for probabilities try objective.label_smoothing or fewer training.epochs."
        )
    elif sure < summary["accuracy_low"]:
        yield (
            f"Less sure than it could be: by sigmoid(margin) it expects to be right on {_share(sure)}, and is on "
            f"{_share(summary['accuracy'])}. The order of rewards is unaffected; longer training spreads them."
        )


def _width(summary: Numbers) -> Iterator[str]:
    width = summary["accuracy_high"] - summary["accuracy_low"]
    if width > WIDE:
        yield (
            f"The interval is {100 * width:.0f} points wide, so a model that is a little better looks the same: evaluate on more rows."
        )


def _share(share: float) -> str:
    return decimal(share, 3)
