"""Figures: names at the ends of lines that do not touch, numbers beside every picture, however odd the values."""

import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from rmtrain.report.axis import FONT_SIZE, text_width
from rmtrain.report.figures import MOST_POINTS, Figure, Line, Share, line_figure, share_figure, thinned
from rmtrain.report.svg import WIDTH


def boxes(figure: Figure) -> list[tuple[str, float, float, float, float]]:
    """Each word with its left, right, top and bottom."""
    found = []
    for word in ElementTree.fromstring(str(figure.picture)).iter("text"):
        x, foot, content = float(word.attrib["x"]), float(word.attrib["y"]), word.text or ""
        width = text_width(content)
        left = x - {"start": 0, "middle": width / 2, "end": width}[word.attrib["text-anchor"]]
        found.append((content, left, left + width, foot - 0.75 * FONT_SIZE, foot))
    return found


def assert_readable(figure: Figure) -> None:
    """No word touches another or leaves the picture."""
    words = boxes(figure)
    assert len(words) > 2, "guard"
    for number, (word, left, right, top, bottom) in enumerate(words):
        assert left >= -0.5, f"{word} leaves {figure.title}"
        assert right <= WIDTH + 0.5, f"{word} leaves {figure.title}"
        for other, left_2, right_2, top_2, bottom_2 in words[number + 1 :]:
            apart = right <= left_2 + 0.5 or right_2 <= left + 0.5 or bottom <= top_2 + 0.5 or bottom_2 <= top + 0.5
            assert apart, f"{word!r} and {other!r} touch in {figure.title}"
    assert figure.rows
    assert all(len(row) == len(figure.headings) for row in figure.rows)
    assert not re.search("nan|inf", str(figure.picture).replace("infer", ""))


@pytest.mark.parametrize(
    "ys",
    [[0.7, 0.6, 0.5], [0.0, 0.0], [1e-7, 2e-7], [5e5, 1e6], [-3.0, 2.5], [0.6931], [1e-9, 1e9]],
    ids=str,
)
@pytest.mark.parametrize("first", [0, 1, 99_000])
def test_lines_of_any_values_can_be_read(ys: list[float], first: int) -> None:
    points = [(float(first + step), y) for step, y in enumerate(ys)]
    lines = [Line("train", points, "neutral"), Line("eval", [(x, y * 1.0001) for x, y in points], "accent", dots=True)]
    assert_readable(line_figure("f", "Loss", lines, x_name="step", note="", reference=0.6931))


def test_a_reference_far_away_does_not_flatten_the_lines() -> None:
    line = Line("train", [(0.0, 100.0), (1.0, 101.0)], "accent")
    assert 'class="reference"' not in line_figure("f", "t", [line], x_name="step", note="", reference=0.5).picture
    near = Line("train", [(0.0, 0.6), (1.0, 0.7)], "accent")
    assert 'class="reference"' in line_figure("f", "t", [near], x_name="step", note="", reference=0.5).picture


def test_many_points_become_means_of_neighbours() -> None:
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    few = thinned(points)
    assert len(few) <= MOST_POINTS
    assert sum(y for _, y in few) / len(few) == pytest.approx(0.5, abs=0.01)
    assert [x for x, _ in few] == sorted(x for x, _ in few)
    assert thinned(points[:5]) == points[:5]
    assert thinned([]) == []


def numbers(share: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {"preferences": 10, "accuracy": share, "accuracy_low": low, "accuracy_high": high}


def test_shares_of_any_name_can_be_read() -> None:
    names = ["a", "x" * 300, "東京" * 40, "<script>alert(1)</script>", "two\nlines", "\x1b[31m"]
    shares = [Share(name, numbers(0.5 + k / 20, 0.4 + k / 20, 0.6 + k / 20), 0.45) for k, name in enumerate(names)]
    figure = share_figure("s", "Shares", [*shares, Share("none", numbers(None, None, None))], note="", mark_name="longer wins")
    assert_readable(figure)
    assert "<script>" not in figure.picture
    assert "\x1b" not in figure.picture
    tops = sorted({top for _, _, _, top, _ in boxes(figure)})
    assert all(b - a > 10 for a, b in pairwise(tops))
    assert figure.picture.count('class="diamond neutral"') == len(names)


def test_perfect_and_hopeless_shares_stay_inside() -> None:
    assert_readable(
        share_figure("s", "Shares", [Share("all", numbers(1.0, 0.99, 1.0)), Share("no", numbers(0.0, 0.0, 0.01))], note="")
    )
