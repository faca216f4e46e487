"""Curves of a run, from the lines of its `metrics.jsonl`."""

import math
from collections.abc import Sequence

from rmtrain.evaluation.samples import Row
from rmtrain.report.figures import Figure, Line, line_figure
from rmtrain.report.svg import Point

CURVES = (
    ("loss", "Loss", math.log(2), ()),
    ("accuracy", "Accuracy", 0.5, ()),
    ("margin", "Margin", None, (0.0,)),
    ("learning_rate", "Learning rate", None, (0.0,)),
    ("grad_norm", "Gradient norm", None, (0.0,)),
)
NOTES = {
    "loss": "Dashed: 0.6931, what a coin reaches.",
    "accuracy": "Dashed: 0.5, what a coin reaches. A tie counts as wrong.",
    "margin": "Mean reward of the preferred response less that of the other.",
    "learning_rate": "As the schedule gives it.",
    "grad_norm": "Before clipping, of the last step before each log line.",
}


def training_figures(metrics: Sequence[Row]) -> list[Figure]:
    """Loss, accuracy, margin, learning rate and gradient norm by step; those that the run has lines of."""
    figures = []
    for key, title, reference, also in CURVES:
        lines = [
            Line("train", _points(metrics, f"train/{key}"), "neutral"),
            Line("eval", _points(metrics, f"eval/{key}"), "accent", dots=True),
        ]
        named = [line for line in lines if line.points]
        if not named:
            continue
        if len(named) == 1 and key in ("learning_rate", "grad_norm"):
            named = [Line("", named[0].points, "accent")]
        figures.append(
            line_figure(f"curve-{key}", title, named, x_name="step", note=NOTES[key], reference=reference, also=also, digits=3)
        )
    return figures


def _points(metrics: Sequence[Row], key: str) -> list[Point]:
    """Values by step; of a step that has several lines the last counts."""
    by_step = {float(row["step"]): float(row[key]) for row in metrics if row.get(key) is not None}
    return sorted(by_step.items())
