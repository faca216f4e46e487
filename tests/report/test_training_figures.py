"""Curves from the lines that a run keeps."""

from rmtrain.report.training_figures import training_figures
from tests.report.test_figures import assert_readable


def test_every_curve_the_run_has_is_drawn() -> None:
    names = ("loss", "accuracy", "margin", "learning_rate", "grad_norm")
    lines = [{"step": step, **{f"train/{name}": step / 100 for name in names}} for step in range(1, 400)]
    lines += [{"step": step, "eval/loss": 0.5, "eval/accuracy": 0.7} for step in (100, 200, 200)]
    figures = training_figures(lines)
    assert [figure.title for figure in figures] == ["Loss", "Accuracy", "Margin", "Learning rate", "Gradient norm"]
    for figure in figures:
        assert_readable(figure)
    assert "eval 0.500" in figures[0].picture
    assert "eval" not in figures[2].picture
    assert [row for row in figures[0].rows if row[0] == "eval"] == [("eval", "100", "0.500"), ("eval", "200", "0.500")]


def test_a_run_without_lines_has_no_curves() -> None:
    assert training_figures([]) == []
    (only,) = training_figures([{"step": 1, "eval/loss": 0.7}])
    assert only.title == "Loss"
