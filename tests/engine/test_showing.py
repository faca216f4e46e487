"""Tables and pictures reach the trackers that show them, through the thread that harms no run."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rmtrain.engine.metrics import RunLog
from rmtrain.engine.showing import COLUMNS, pixels, send_pictures, send_samples
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


class Shown:
    """An accelerator that has only these trackers."""

    is_main_process = True

    def __init__(self, *names: str) -> None:
        self.trackers = [Shower(name) for name in names]


def test_samples_are_a_table_of_wandb_and_of_nobody_else() -> None:
    shown: Any = Shown("wandb", "tensorboard", "trackio")
    send_samples(shown, 7, [SAMPLE])
    assert [len(tracker.calls) for tracker in shown.trackers] == [1, 0, 0]
    ((table, columns, (row,), step),) = shown.trackers[0].calls
    assert (table, tuple(columns), step) == ("eval/samples", COLUMNS, 7)
    assert row == ["a:0", "a", "p", "c", "<hidden>", 2.0, 0.5, 1.5]


def test_pictures_go_to_all_that_show_them_in_their_own_form() -> None:
    shown: Any = Shown("wandb", "tensorboard", "mlflow", "trackio")
    send_pictures(shown, 3, {"eval/rewards": draw})
    wandb, board, mlflow, other = (tracker.calls for tracker in shown.trackers)
    assert wandb[0][0]["eval/rewards"][0].shape == pixels(draw()).shape
    assert board[0][0]["eval/rewards"].shape == (1, *pixels(draw()).shape)
    assert mlflow[0][1] == "eval/rewards/00000003.png"
    assert other == []


def test_a_picture_is_drawn_nowhere_when_nobody_shows_it() -> None:
    def fail() -> Figure:
        raise AssertionError("drawn")

    send_pictures(Shown("trackio"), 1, {"x": fail})  # type: ignore[arg-type]


def test_tensorboard_has_the_picture(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
    start = partial(accelerator.init_trackers, "p", {})
    trackers = Trackers(start, lambda metrics, step: accelerator.log(dict(metrics), step=step), accelerator.end_training)
    log = RunLog(accelerator, tmp_path, trackers)
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
