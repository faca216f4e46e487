"""Plots: every word can be read, every picture has its numbers, and PNG files are opened and looked into."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from rmtrain.evaluation.diagnosis import diagnose
from rmtrain.evaluation.metrics import summarize
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.report.lengths import LENGTH_COLORS, plot_lengths
from rmtrain.report.panel import COLORS, WIDTH, save_png
from rmtrain.report.plots import (
    MAX_POINTS,
    MAX_SOURCES,
    Curve,
    Plot,
    calibration_plot,
    curve_plot,
    diagnosis_plots,
    downsample,
    drift_plot,
    margin_plot,
    reward_plot,
    share_plot,
    source_plot,
    stacked,
    training_plots,
)
from rmtrain.report.tables import Column, Row, Table
from tests.evaluation.test_metrics import pair, random_lists, random_pairs

CASES = {
    "pairs": random_pairs(500),
    "lists": random_lists(80),
    "one": [pair(1.0, 0.0)],
    "wrong": [pair(0.0, 5.0)],
    "ties": [pair(2.0, 2.0, name=str(k)) for k in range(4)],
    "large": [pair(1e6 * k, -3e5, (k, 4000), name=str(k)) for k in range(1, 40)],
    "without lengths": [ScoredComparison("a", "s", (1.0, 0.5), (), pair(0, 0).preferences)],
}
NUMBERS = Table("numbers", (Column("x"),), [Row(("1",))])


def words_of(plot: Plot) -> list[tuple[str, Any]]:
    """Each word of a plot with its box in points, from the bottom left."""
    figure = Figure(figsize=(WIDTH / 72, plot.height / 72), dpi=72)
    canvas = FigureCanvasAgg(figure)
    plot.draw(figure)
    canvas.draw()
    words = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    return [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in words]


def assert_readable(plot: Plot) -> None:
    """Check that no word touches another or leaves the picture, and that the numbers are there."""
    words = words_of(plot)
    assert len(words) > 2, "guard"
    for number, (word, box) in enumerate(words):
        assert box.x0 >= -0.5, f"{word} leaves {plot.title}"
        assert box.x1 <= WIDTH + 0.5, f"{word} leaves {plot.title}"
        assert box.y0 >= -0.5, f"{word} leaves {plot.title}"
        assert box.y1 <= plot.height + 0.5, f"{word} leaves {plot.title}"
        for other, other_box in words[number + 1 :]:
            across = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            down = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            assert across <= 0.5 or down <= 2.5, f"{word!r} and {other!r} touch in {plot.title}"
    assert plot.table.rows
    assert all(len(row.cells) == len(plot.table.columns) for row in plot.table.rows)
    assert not re.search("nan|inf", plot.svg())


def texts_of(plot: Plot) -> list[str]:
    return [word.text or "" for word in ElementTree.fromstring(with_namespace(plot)).iter("text")]


def with_namespace(plot: Plot) -> str:
    return str(plot.svg()).replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
def test_diagnosis_can_be_read(rows: list[ScoredComparison]) -> None:
    summary = summarize(rows)
    plots = [*diagnosis_plots(summary, diagnose(rows)), source_plot(summary)]
    assert len(plots) == (6 if rows[0].lengths else 4)
    for plot in plots:
        assert_readable(plot)


@pytest.mark.parametrize(
    "ys",
    [[0.7, 0.6, 0.5], [0.0, 0.0], [1e-7, 2e-7], [5e5, 1e6], [-3.0, 2.5], [0.6931], [1e-9, 1e9]],
    ids=str,
)
@pytest.mark.parametrize("first", [0, 1, 99_000])
def test_curves_of_any_values_can_be_read(ys: list[float], first: int) -> None:
    points = [(float(first + step), y) for step, y in enumerate(ys)]
    curves = [Curve("train", points, "neutral"), Curve("eval", [(x, y * 1.0001) for x, y in points], "accent", dots=True)]
    assert_readable(curve_plot("f", "Loss", curves, x_name="step", note="", reference=0.6931))


def numbers(share: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {"preferences": 10, "accuracy": share, "accuracy_low": low, "accuracy_high": high}


@pytest.mark.filterwarnings("ignore:Glyph")
def test_shares_of_any_name_can_be_read() -> None:
    names = ["a", "x" * 300, "東京" * 40, "<script>alert(1)</script>", "two\nlines", "\x1b[31m", "$x^2$", ' id="a" #0b63b5']
    shares = [(name, numbers(0.5 + k / 20, 0.4 + k / 20, 0.6 + k / 20), 0.45) for k, name in enumerate(names)]
    plot = share_plot("s", "Shares", [*shares, ("none", numbers(None, None, None), None)], note="", table=NUMBERS)
    assert_readable(plot)
    assert "<script>" not in plot.svg()
    assert "\x1b" not in plot.svg()
    assert {"a", "$x^2$", ' id="a" #0b63b5'} <= set(texts_of(plot)), "names are neither formulas nor tags"
    tops = sorted({round(box.y1) for word, box in words_of(plot) if word.startswith("0.") and box.x1 > WIDTH - 5})
    assert len(tops) == len(names)
    assert all(b - a > 10 for a, b in pairwise(tops))


def test_extreme_shares_stay_inside() -> None:
    shares = [("all", numbers(1.0, 0.99, 1.0), None), ("no", numbers(0.0, 0.0, 0.01), None)]
    assert_readable(share_plot("s", "Shares", shares, note="", table=NUMBERS))


@pytest.mark.parametrize(("ys", "is_drawn"), [((100.0, 101.0), False), ((0.6, 0.7), True)])
def test_far_reference_does_not_flatten_curves(ys: tuple[float, float], is_drawn: bool) -> None:
    plot = curve_plot("f", "t", [Curve("train", [(0.0, ys[0]), (1.0, ys[1])], "accent")], x_name="step", note="", reference=0.5)
    assert ("stroke-dasharray" in plot.svg()) == is_drawn


def test_downsampling_takes_means_of_neighbours() -> None:
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    few = downsample(points)
    assert len(few) <= MAX_POINTS
    assert sum(y for _, y in few) / len(few) == pytest.approx(0.5, abs=0.01)
    assert [x for x, _ in few] == sorted(x for x, _ in few)
    assert downsample(points[:5]) == points[:5]
    assert downsample([]) == []


def test_svg_is_reproducible_and_belongs_in_a_page() -> None:
    """The element has a title and a description, its own ids, no fonts, links or fixed colours, and the same bytes each time."""
    curve = [Curve("train", [(1.0, 0.5), (2.0, 0.25)], "accent", dots=True)]
    one, other = (curve_plot(name, 'a <b> & "c"', curve, x_name="step", note="") for name in ("one", "other"))
    svg = str(one.svg())
    assert svg == str(one.svg())
    root = ElementTree.fromstring(with_namespace(one))
    assert root.attrib["aria-labelledby"] == "one-title one-text"
    assert root.attrib["role"] == "img"
    assert [(child.tag, child.attrib["id"], child.text) for child in list(root)[:2]] == [
        ("title", "one-title", 'a <b> & "c"'),
        ("desc", "one-text", one.description),
    ]
    ids, other_ids = (set(re.findall(r' id="([^"]*)"', str(plot.svg()))) for plot in (one, other))
    assert ids
    assert not ids & other_ids, "two pictures in a page share no id"
    assert set(re.findall(r'"#([^"]*)"', svg)) <= ids
    assert "var(--accent)" in svg
    assert not re.search(r"#[0-9a-f]{6}|http|font-family|<style|<metadata", svg)


def test_margins_right_of_zero_have_the_accent() -> None:
    rows = [pair(float(k), 0.0, name=str(k)) for k in (-2, -1, 1, 2, 3)]
    margins = diagnosis_plots(summarize(rows), diagnose(rows))[1]
    assert {"right 60.0 %", "wrong 40.0 %"} <= set(texts_of(margins))
    assert "fill: var(--accent)" in margins.svg()
    assert "fill: var(--neutral)" in margins.svg()


def test_calibration_has_all_preferences_in_its_table() -> None:
    rows = random_pairs(300)
    plot = diagnosis_plots(summarize(rows), diagnose(rows))[-1]
    assert plot.name == "calibration"
    assert sum(int(row.cells[1].replace(",", "")) for row in plot.table.rows) == 300


def test_first_of_many_sources_are_drawn() -> None:
    """A plot of very many sources shows the first ones and all together; the note counts the others."""
    rows = [pair(1.0, 0.0, source=f"source {k}", name=str(k)) for k in range(MAX_SOURCES + 7)]
    plot = source_plot(summarize(rows))
    assert sum(word.startswith("source ") for word in texts_of(plot)) == MAX_SOURCES
    assert "all" in texts_of(plot)
    assert " 7 more " in plot.note
    assert len(plot.table.rows) == MAX_SOURCES + 7 + 1
    assert_readable(plot)


def test_drift_has_both_sides() -> None:
    drift = [{"step": float(s), "chosen": np.sin(s), "rejected": np.sin(s) - 0.01} for s in range(1, 9)]
    plot = drift_plot(drift)
    assert_readable(plot)
    assert {row.cells[0] for row in plot.table.rows} == {"chosen", "rejected"}


def test_training_plots_every_curve_of_the_run() -> None:
    names = ("loss", "accuracy", "margin", "learning_rate", "grad_norm")
    lines: list[dict[str, float]] = [{"step": s, **{f"train/{name}": s / 100 for name in names}} for s in range(1, 400)]
    lines += [{"step": step, "eval/loss": 0.5, "eval/accuracy": 0.7} for step in (100, 200, 200)]
    plots = training_plots(lines)
    assert [plot.name for plot in plots] == [f"curve-{name}" for name in names]
    for plot in plots:
        assert_readable(plot)
    assert "eval 0.500" in texts_of(plots[0])
    assert not any("eval" in word for word in texts_of(plots[2]))
    assert [row.cells for row in plots[0].table.rows if row.cells[0] == "eval"] == [
        ("eval", "100", "0.500"),
        ("eval", "200", "0.500"),
    ]


def test_training_plots_of_few_lines() -> None:
    assert training_plots([]) == []
    (only,) = training_plots([{"step": 1, "eval/loss": 0.7}])
    assert only.name == "curve-loss"
    (dashed,) = training_plots([{"step": 1, "eval/loss": 0.7, "eval/chance_loss": 0.71}])
    assert dashed.svg().count("stroke-dasharray") == only.svg().count("stroke-dasharray") + 1


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).reshape(-1, 3)


def rgb(color: str) -> list[int]:
    return list(bytes.fromhex(color[1:]))


@pytest.mark.parametrize("rows", [random_pairs(300), random_pairs(1)], ids=["many", "one"])
def test_png_shows_rewards_margins_and_calibration(tmp_path: Path, rows: list[ScoredComparison]) -> None:
    diagnosis = diagnose(rows)
    rewards = [reward_plot(diagnosis["rewards"], summarize(rows)["rewards"]), margin_plot(diagnosis["margins"])]
    save_png(stacked(rewards), tmp_path / "rewards.png")
    save_png(stacked([calibration_plot(diagnosis["calibration"])]), tmp_path / "calibration.png")
    for name, least in (("rewards.png", 0.01), ("calibration.png", 0.0005)):
        colors = pixels(tmp_path / name)
        assert np.mean(np.all(colors == rgb(COLORS["accent"]), axis=1)) > least
        assert np.mean(np.all(colors == 255, axis=1)) > 0.3, "drawn on white"


def lengths() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.integers(10, high, 500) for name, high in (("prompt", 200), ("chosen", 500), ("rejected", 400))}


@pytest.mark.parametrize("limit", [None, 512, 100_000])
def test_lengths_show_all_three_distributions(tmp_path: Path, limit: int | None) -> None:
    path = tmp_path / "lengths.png"
    plot_lengths(lengths(), path, limit)
    colors = pixels(path)
    for color in LENGTH_COLORS:
        assert np.mean(np.all(colors == rgb(color), axis=1)) > 0.01, f"{color} fills a panel"
    assert 0.4 < np.mean(np.all(colors == 255, axis=1)) < 0.95, "drawn on white"
    with Image.open(path) as image:
        assert image.width >= 1000
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_lengths_show_the_limit(tmp_path: Path) -> None:
    with_limit, without = tmp_path / "a.png", tmp_path / "b.png"
    plot_lengths(lengths(), with_limit, 499)
    plot_lengths(lengths(), without, None)
    assert np.mean(np.any(pixels(with_limit) != pixels(without), axis=1)) > 0.001


def test_equal_lengths_are_drawn(tmp_path: Path) -> None:
    plot_lengths({"prompt": np.full(5, 1)}, tmp_path / "lengths.png", 1024)
    assert np.mean(np.all(pixels(tmp_path / "lengths.png") == rgb(LENGTH_COLORS[0]), axis=1)) > 0.01


def test_old_picture_stays_until_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "lengths.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="zero-size"):
        plot_lengths({"prompt": np.array([])}, path, None)
    assert path.read_bytes() == b"old"
    plot_lengths(lengths(), path, None)
    assert len(pixels(path)) > 1000
