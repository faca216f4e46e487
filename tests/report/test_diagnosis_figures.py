"""The pictures of a diagnosis, of many scores and of hardly any."""

import numpy as np
import pytest

from rmtrain.evaluation.diagnosis import diagnose
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.report.diagnosis_figures import LONGEST_LIST, diagnosis_figures, drift_figure, source_figure
from tests.evaluation.test_metrics import pair, random_lists, random_pairs
from tests.report.test_figures import assert_readable

CASES = {
    "pairs": random_pairs(500),
    "lists": random_lists(80),
    "one": [pair(1.0, 0.0)],
    "wrong": [pair(0.0, 5.0)],
    "ties": [pair(2.0, 2.0, name=str(k)) for k in range(4)],
    "large": [pair(1e6 * k, -3e5, (k, 4000), name=str(k)) for k in range(1, 40)],
    "without lengths": [ScoredComparison("a", "s", (1.0, 0.5), (), pair(0, 0).preferences)],
}


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
def test_every_picture_can_be_read(rows: list[ScoredComparison]) -> None:
    summary = summarize(rows)
    figures = [*diagnosis_figures(summary, diagnose(rows)), source_figure(summary)]
    assert len(figures) == (6 if rows[0].lengths else 4)
    for figure in figures:
        assert_readable(figure)


def test_bars_right_of_zero_have_the_accent() -> None:
    rows = [pair(float(k), 0.0, name=str(k)) for k in (-2, -1, 1, 2, 3)]
    margins = diagnosis_figures(summarize(rows), diagnose(rows))[1].picture
    assert "right 60.0 %" in margins
    assert "wrong 40.0 %" in margins
    accent, neutral = (margins.count(f'class="bar {tone}"') for tone in ("accent", "neutral"))
    assert accent > 0
    assert neutral > 0


def test_calibration_numbers_stand_beside_the_picture() -> None:
    rows = random_pairs(300)
    figure = diagnosis_figures(summarize(rows), diagnose(rows))[-1]
    assert figure.title == "Calibration"
    assert sum(int(row[1].replace(",", "")) for row in figure.rows) == 300


def test_of_very_many_sources_the_first_are_shown_and_the_rest_counted() -> None:
    rows = [pair(1.0, 0.0, source=f"source {k}", name=str(k)) for k in range(LONGEST_LIST + 7)]
    figure = source_figure(summarize(rows))
    assert len(figure.rows) == LONGEST_LIST + 1, "and all of them together"
    assert "7 more sources are not shown" in figure.note
    assert_readable(figure)


def test_drift_has_both_sides() -> None:
    drift = [{"step": float(s), "chosen": np.sin(s), "rejected": np.sin(s) - 0.01} for s in range(1, 9)]
    figure = drift_figure(drift)
    assert_readable(figure)
    assert {row[0] for row in figure.rows} == {"chosen", "rejected"}
