"""Tables and pictures reach the trackers that show them, through the thread that harms no run."""

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rmtrain.engine.run_log import COLUMNS, RunLog, pixels, send_pictures, send_samples
from rmtrain.engine.trackers import Trackers

SAMPLE = {"id": "a:0", "source": "a", "prompt": "p", "chosen": "c", "rejected": "hf_" + "x" * 34, "rewards": [2.0, 0.5]}


def draw() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], color="black")
    return figure


class Shower:
    """What accelerate's trackers of these names offer, noting what comes."""

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, []  # type: ignore[var-annotated]

    def log_table(self, table: str, columns: list[str], data: list[list[Any]], step: int) -> None:
        self.calls.append((table, columns, data, step))

    def log_images(self, images: dict[str, Any], step: int, **options: Any) -> None:
        self.calls.append((images, step, options))

    def log_figure(self, figure: Figure, file: str) -> None:
        self.calls.append((figure, file))

    def log(self, values: dict[str, Any], step: int) -> None:
        self.calls.append((values, step))


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library trackio, as far as it is used: what is shown is what it was made of."""
    module = SimpleNamespace(Table=lambda columns, data: (columns, data), Image=lambda array: array)
    monkeypatch.setitem(sys.modules, "trackio", module)


def test_samples_are_a_table_of_those_that_show_tables(trackio: None) -> None:
    shown = [Shower(name) for name in ("wandb", "trackio", "tensorboard", "mlflow")]
    for tracker in shown:
        send_samples(tracker, 7, [SAMPLE])
    assert [len(tracker.calls) for tracker in shown] == [1, 1, 0, 0]
    ((table, columns, rows, step),) = shown[0].calls
    assert (table, tuple(columns), step) == ("eval/samples", COLUMNS, 7)
    assert rows == [["a:0", "a", "p", "c", "<hidden>", 2.0, 0.5, 1.5]]
    assert shown[1].calls == [({"eval/samples": (columns, rows)}, 7)]


def test_pictures_go_to_all_in_their_own_form(trackio: None) -> None:
    shown = [Shower(name) for name in ("wandb", "tensorboard", "mlflow", "trackio")]
    for tracker in shown:
        send_pictures(tracker, 3, {"eval/rewards": draw})
    wandb, board, mlflow, other = (tracker.calls for tracker in shown)
    shape = pixels(draw()).shape
    assert wandb[0][0]["eval/rewards"][0].shape == shape
    assert board[0][0]["eval/rewards"].shape == (1, *shape)
    assert mlflow[0][1] == "eval/rewards/00000003.png"
    assert (other[0][0]["eval/rewards"].shape, other[0][1]) == (shape, 3)


def test_tensorboard_has_the_picture(tmp_path: Path) -> None:
    trackers = Trackers({"tensorboard": partial(TensorBoardTracker, "p", logging_dir=str(tmp_path))}, {"run.seed": 1})
    log = RunLog(Accelerator(cpu=True), tmp_path, trackers)
    log.metrics(2, {"eval/loss": 0.5})
    log.pictures(2, {"eval/rewards": draw})
    log.samples(2, [SAMPLE])
    trackers.close()
    boards = [EventAccumulator(str(file), size_guidance={"images": 0}).Reload() for file in tmp_path.rglob("events.out.*")]
    (board,) = [each for each in boards if each.Tags()["images"]]
    (image,) = board.Images("eval/rewards")
    assert (image.step, image.width) == (2, 200)
    assert [point.value for point in board.Scalars("eval/loss")] == [0.5]


@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
def test_pixels_are_those_of_the_figure(size: tuple[float, float]) -> None:
    found = pixels(Figure(figsize=size, dpi=50, facecolor="white"))
    assert found.shape == (int(size[1] * 50), int(size[0] * 50), 3)
    assert found.dtype == np.uint8
    assert (found == 255).all()
