"""The summary of an evaluation says the rule, the interval, the baseline and the warnings."""

import pytest

from rmtrain.data.comparison import PAIR, Preference
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.report.tables import evaluation_summary
from tests.report.render import render


def rows(ties: int = 0, second_source: bool = False) -> list[ScoredComparison]:
    made = [
        ScoredComparison(str(k), "hh", (1.0, 0.0 if k % 4 else 2.0), (20 + k % 2, 20 + (k + 1) % 2), PAIR) for k in range(100)
    ]
    made += [ScoredComparison(f"tie:{k}", "hh", (1.0, 1.0), (20, 20), PAIR) for k in range(ties)]
    if second_source:
        made.append(ScoredComparison("1", "ultrafeedback [prefs]", (2.0, 0.0), (30, 20), PAIR))
    return made


def test_the_whole_summary_of_one_source() -> None:
    assert render(evaluation_summary(summarize(rows()), "evaluation at step 300")) == (
        "evaluation at step 300\n"
        "accuracy      0.7500  95 % in [0.6570, 0.8245], of 100 comparisons\n"
        "ties               0  0 %; 75 right, 25 wrong; half credit 0.7500\n"
        "longer wins   0.5000  baseline; model: 1.000 if winner longer, 0.500 if shorter\n"
        "loss          0.5633  chance is 0.6931; calibration error 0.019\n"
        "margin       +0.5000  rewards of winners +1.000 ± 0.000, losers +0.500 ± 0.866\n"
    )


def test_trap_6_and_15_sources_ties_and_warnings_are_shown() -> None:
    text = render(evaluation_summary(summarize(rows(ties=5, second_source=True))), width=120)
    assert "ultrafeedback [prefs]    1    1.0000  [0.207, 1.000]     0  0.1269  1.0000" in text, "a tag is not markup"
    assert "\n! 5 of 106 preferences are ties (4.7 %)" in text
    by_length = [ScoredComparison(str(k), "hh", (1.0, 0.0), (9, 5), PAIR) for k in range(50)]
    assert "! not better than length: accuracy 1.0000" in render(evaluation_summary(summarize(by_length)))


def test_numbers_that_do_not_exist_are_dashes() -> None:
    soft = ScoredComparison("1", "hh", (1.0, 0.0), (), (Preference(0, 1, probability=0.5),))
    text = render(evaluation_summary(summarize([soft])), width=120)
    assert "accuracy          –  95 % in [–, –], of 1 comparison, 1 labelled ties left out" in text
    assert "longer wins       –  the scores come without lengths" in text
    assert "None" not in text


def test_a_list_says_how_many_preferences_it_has() -> None:
    edges = tuple(Preference(i, j) for i in range(3) for j in range(i + 1, 3))
    ranked = [ScoredComparison(str(k), "hh", (3.0, 2.0, 1.0), (1, 2, 3), edges) for k in range(10)]
    assert "10 comparisons with 30 preferences" in render(evaluation_summary(summarize(ranked)), width=120)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits_any_width(width: int) -> None:
    text = render(evaluation_summary(summarize(rows(ties=5, second_source=True))), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "0.7170" in text
