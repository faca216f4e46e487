"""The diagnosis in a terminal: narrow enough, with every number, whatever the scores."""

import pytest
from rich.console import Console

from rmtrain.evaluation.diagnosis import diagnose
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.report.diagnosis import BLOCKS, blocks, diagnosis_view
from tests.evaluation.test_metrics import pair, random_pairs
from tests.report.test_diagnosis_figures import CASES


def shown(rows: list[ScoredComparison], width: int = 80) -> str:
    console = Console(width=width, record=True, quiet=False, file=None, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(diagnosis_view(diagnose(rows)))
    return captured.get()


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
def test_it_fits_a_terminal_of_80_columns(rows: list[ScoredComparison]) -> None:
    lines = shown(rows).splitlines()
    assert len(lines) >= 3
    assert max(map(len, lines)) <= 80
    assert not any("nan" in line or "…" in line for line in lines)


def test_every_bin_has_its_row() -> None:
    rows = random_pairs(400)
    text, found = shown(rows), diagnose(rows)
    for part in ("length_difference", "calibration"):
        bins = found[part] if part == "length_difference" else found[part]["bins"]
        for row in bins:
            assert f"{row['accuracy']:.3f}" in text
    assert text.count("●") == len(found["length_difference"]) + len(found["calibration"]["bins"])
    assert "right 6" in text


def test_wrong_margins_are_left_of_the_line() -> None:
    (line,) = [line for line in shown([pair(0.0, 3.0), pair(4.0, 0.0)]).splitlines() if line.startswith("margin")]
    left, right = line.split("│")
    assert any(block in left for block in BLOCKS[1:])
    assert any(block in right for block in BLOCKS[1:])
    assert "right 50.0 %, wrong 50.0 %" in line


def test_whatever_is_not_empty_shows() -> None:
    assert blocks([0, 1, 1000], 1000) == " ▁█"


def test_without_preferences_it_is_empty() -> None:
    assert shown([]).strip() == ""
