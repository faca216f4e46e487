"""Pictures are opened and looked into."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmtrain.evaluation.diagnosis import diagnose
from rmtrain.evaluation.scores_file import ScoredComparison
from rmtrain.report.plots import COLORS, plot_calibration, plot_lengths, plot_rewards
from tests.evaluation.test_metrics import random_pairs


def lengths() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.integers(10, high, 500) for name, high in (("prompt", 200), ("chosen", 500), ("rejected", 400))}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).reshape(-1, 3)


def rgb(color: str) -> list[int]:
    return list(bytes.fromhex(color[1:]))


@pytest.mark.parametrize("limit", [None, 512, 100_000])
def test_the_picture_shows_all_three_distributions(tmp_path: Path, limit: int | None) -> None:
    path = tmp_path / "lengths.png"
    plot_lengths(lengths(), path, limit)
    found = pixels(path)
    for color in COLORS:
        assert np.mean(np.all(found == rgb(color), axis=1)) > 0.01, f"{color} fills a panel"
    assert 0.4 < np.mean(np.all(found == 255, axis=1)) < 0.95, "drawn on white"
    with Image.open(path) as image:
        assert image.width >= 1000
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_the_limit_is_drawn(tmp_path: Path) -> None:
    with_limit, without = tmp_path / "a.png", tmp_path / "b.png"
    plot_lengths(lengths(), with_limit, 499)
    plot_lengths(lengths(), without, None)
    assert np.mean(np.any(pixels(with_limit) != pixels(without), axis=1)) > 0.001


def test_rows_of_one_length_are_drawn(tmp_path: Path) -> None:
    plot_lengths({"prompt": np.full(5, 1)}, tmp_path / "lengths.png", 1024)
    assert np.mean(np.all(pixels(tmp_path / "lengths.png") == rgb(COLORS[0]), axis=1)) > 0.01


def test_an_old_picture_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "lengths.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="zero-size"):
        plot_lengths({"prompt": np.array([])}, path, None)
    assert path.read_bytes() == b"old"
    plot_lengths(lengths(), path, None)
    assert len(pixels(path)) > 1000


@pytest.mark.parametrize("rows", [random_pairs(300), random_pairs(1)], ids=["many", "one"])
def test_rewards_margins_and_calibration_are_drawn(tmp_path: Path, rows: list[ScoredComparison]) -> None:
    diagnosis = diagnose(rows)
    plot_rewards(diagnosis, tmp_path / "rewards.png")
    plot_calibration(diagnosis["calibration"], tmp_path / "calibration.png")
    for name, least in (("rewards.png", 0.01), ("calibration.png", 0.0005)):
        found = pixels(tmp_path / name)
        assert np.mean(np.all(found == rgb(COLORS[0]), axis=1)) > least
        assert np.mean(np.all(found == 255, axis=1)) > 0.3, "drawn on white"
