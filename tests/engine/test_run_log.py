"""Trackers fail, hang and fall behind without harm to training; tables and pictures reach the trackers that show them."""

import sys
import threading
import time
from collections.abc import Callable, Mapping
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

from rmtrain.engine import run_log
from rmtrain.engine.run_dir import RunDirectory
from rmtrain.engine.run_log import COLUMNS, RunLog, Trackers, pixels, send_pictures, send_samples
from tests.runs import tiny_recipe


class Recorder:
    """A tracker with accelerate's interface that records its calls, after calling `at_start` or `at_send`."""

    def __init__(self, at_start: Callable[[], Any] = bool, at_send: Callable[[], Any] = bool) -> None:
        self.at_start, self.at_send = at_start, at_send
        self.sent: list[tuple[Mapping[str, float], int]] = []
        self.settings: Mapping[str, Any] = {}
        self.ended = False

    def start(self) -> None:
        self.at_start()

    def store_init_configuration(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.at_send()
        self.sent.append((metrics, step))

    def finish(self) -> None:
        self.ended = True


def running(seconds: float = 5.0, **recorders: Recorder) -> Trackers:
    """Start trackers that are these recorders, by name."""
    return Trackers({name: lambda recorder=recorder: recorder for name, recorder in recorders.items()}, {"run.seed": 1}, seconds)


def fail() -> None:
    raise RuntimeError("no route to https://name:secret@host\nhf_abcdefghijklmnopqrstuvwxyz0123456789")


def test_every_line_arrives_in_order() -> None:
    recorder = Recorder()
    started = running(wandb=recorder)
    for step in range(50):
        started.log({"loss": float(step)}, step)
    started.close()
    assert recorder.sent == [({"loss": float(step)}, step) for step in range(50)]
    assert recorder.settings == {"run.seed": 1}
    assert recorder.ended


@pytest.mark.parametrize("where", ["at_start", "at_send"])
def test_trap_44_failures_are_reported_once_without_secrets(where: str, caplog: pytest.LogCaptureFixture) -> None:
    started = running(wandb=Recorder(**{where: fail}))
    for step in range(20):
        started.log({"loss": 1.0}, step)
    started.close()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("trackers: wandb: RuntimeError: no route to https://<hidden>@host <hidden>. ")
    assert "\n" not in warning


@pytest.mark.parametrize("where", ["at_start", "at_send"])
def test_trap_44_failures_do_not_affect_other_trackers(where: str, caplog: pytest.LogCaptureFixture) -> None:
    def cannot_be_made() -> Recorder:
        raise ValueError("no settings")

    bad, good = Recorder(**{where: fail}), Recorder()
    started = Trackers({"trackio": cannot_be_made, "wandb": lambda: bad, "mlflow": lambda: good}, {})
    for step in range(20):
        started.log({"loss": 1.0}, step)
    started.close()
    assert len(good.sent) == 20
    assert good.ended
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["trackio", "wandb"]
    assert bad.sent == [], "guard: it raised"
    assert bad.ended == (where == "at_send"), "a started tracker is finished"


@pytest.mark.parametrize("where", ["at_start", "at_send"])
def test_trap_44_a_hanging_tracker_is_given_up(
    where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "WAITING_CALLS", 3)
    release = threading.Event()
    started = running(seconds=0.3, wandb=Recorder(**{where: lambda: release.wait(60)}))
    before = time.monotonic()
    for step in range(20):
        started.log({"loss": 1.0}, step)
    logging = time.monotonic() - before
    started.close()
    assert logging < 10, "training waited for a tracker"
    assert time.monotonic() - before < 30, "the end of the run waited for a tracker"
    assert len(caplog.records) == 1
    assert started.thread.is_alive(), "guard: it hung"
    release.set()
    started.thread.join(30)
    assert not started.thread.is_alive(), "it sends no more lines after it was given up"


def test_a_full_queue_drops_lines_with_one_warning(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "WAITING_CALLS", 3)
    release = threading.Event()
    recorder = Recorder(at_send=lambda: release.wait(60))
    started = running(wandb=recorder)
    for step in range(20):
        started.log({"loss": 1.0}, step)
    release.set()
    started.close()
    assert 3 <= len(recorder.sent) < 20
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("trackers: ")


SAMPLE = {"id": "a:0", "source": "a", "prompt": "p", "chosen": "c", "rejected": "hf_" + "x" * 34, "rewards": [2.0, 0.5]}


def draw() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], color="black")
    return figure


class MediaRecorder:
    """A tracker with the methods that accelerate's trackers of these names have; it records their arguments."""

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
    """A fake of the library trackio whose tables and images are their arguments."""
    module = SimpleNamespace(Table=lambda columns, data: (columns, data), Image=lambda array: array)
    monkeypatch.setitem(sys.modules, "trackio", module)


def test_samples_are_sent_as_tables(trackio: None) -> None:
    shown = [MediaRecorder(name) for name in ("wandb", "trackio", "tensorboard", "mlflow")]
    for tracker in shown:
        send_samples(7, [SAMPLE], tracker)
    assert [len(tracker.calls) for tracker in shown] == [1, 1, 0, 0]
    ((table, columns, rows, step),) = shown[0].calls
    assert (table, tuple(columns), step) == ("eval/samples", COLUMNS, 7)
    assert rows == [["a:0", "a", "p", "c", "<hidden>", 2.0, 0.5, 1.5]]
    assert shown[1].calls == [({"eval/samples": (columns, rows)}, 7)]


def test_pictures_are_sent_in_each_trackers_form(trackio: None) -> None:
    shown = [MediaRecorder(name) for name in ("wandb", "tensorboard", "mlflow", "trackio", "swanlab")]
    for tracker in shown:
        send_pictures(3, {"eval/rewards": draw}, tracker)
    wandb, board, mlflow, other, swanlab = (tracker.calls for tracker in shown)
    shape = pixels(draw()).shape
    assert wandb[0][0]["eval/rewards"][0].shape == shape
    assert swanlab[0][0]["eval/rewards"][0].shape == shape
    assert board[0][0]["eval/rewards"].shape == (1, *shape)
    assert mlflow[0][1] == "eval/rewards/00000003.png"
    assert (other[0][0]["eval/rewards"].shape, other[0][1]) == (shape, 3)


def test_tensorboard_shows_pictures_and_scalars(tmp_path: Path) -> None:
    started = Trackers({"tensorboard": partial(TensorBoardTracker, "p", logging_dir=str(tmp_path))}, {"run.seed": 1})
    log = RunLog(Accelerator(cpu=True), tmp_path, started)
    log.metrics(2, {"eval/loss": 0.5})
    log.pictures(2, {"eval/rewards": draw})
    log.samples(2, [SAMPLE])
    started.close()
    boards = [EventAccumulator(str(file), size_guidance={"images": 0}).Reload() for file in tmp_path.rglob("events.out.*")]
    (board,) = [each for each in boards if each.Tags()["images"]]
    (image,) = board.Images("eval/rewards")
    assert (image.step, image.width) == (2, 200)
    assert [point.value for point in board.Scalars("eval/loss")] == [0.5]


@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
def test_pixels_match_the_figure(size: tuple[float, float]) -> None:
    found = pixels(Figure(figsize=size, dpi=50, facecolor="white"))
    assert found.shape == (int(size[1] * 50), int(size[0] * 50), 3)
    assert found.dtype == np.uint8
    assert (found == 255).all()


class Made:
    """A tracker that keeps what it was made with."""

    def __init__(self, project: str, **options: Any) -> None:
        self.project, self.options = project, options


VARIABLES = ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID", "WANDB_RESUME", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")
MORE_VARIABLES = (
    *("MLFLOW_RUN_NAME", "TRACKIO_PROJECT", "TENSORBOARD_LOGGING_DIR"),
    *("SWANLAB_PROJ_NAME", "SWANLAB_EXP_NAME", "SWANLAB_RUN_ID", "SWANLAB_RESUME"),
)


@pytest.mark.parametrize(
    ("name", "variables", "project", "expected"),
    [
        ("wandb", {}, None, {"project": "rmtrain", "name": "tiny", "id": "7", "resume": "allow"}),
        ("wandb", {"WANDB_PROJECT": "p"}, None, {"project": "p"}),
        ("wandb", {"WANDB_PROJECT": "p"}, "mine", {"project": "mine"}),
        ("wandb", {"WANDB_NAME": "n"}, None, {"name": "n"}),
        ("wandb", {"WANDB_RUN_ID": "sweep", "WANDB_RESUME": "must"}, None, {"id": None, "resume": "must"}),
        ("mlflow", {"MLFLOW_EXPERIMENT_NAME": "e", "MLFLOW_RUN_NAME": "n"}, None, {"experiment_name": "e", "run_name": "n"}),
        ("mlflow", {"MLFLOW_EXPERIMENT_NAME": "e"}, "mine", {"experiment_name": "mine", "run_name": "tiny"}),
        ("mlflow", {"MLFLOW_EXPERIMENT_ID": "3"}, None, {"experiment_name": "experiment 3"}),
        ("mlflow", {}, None, {"experiment_name": "rmtrain"}),
        ("trackio", {"TRACKIO_PROJECT": "p"}, None, {"project": "p", "name": "tiny"}),
        ("swanlab", {}, None, {"project": "rmtrain", "experiment_name": "tiny", "id": "7", "resume": "allow"}),
        (
            "swanlab",
            {"SWANLAB_PROJ_NAME": "p", "SWANLAB_RUN_ID": "8", "WANDB_RESUME": "must"},
            None,
            {"project": "p", "id": None},
        ),
        ("swanlab", {"SWANLAB_EXP_NAME": "n"}, "mine", {"project": "mine", "experiment_name": "n"}),
        ("tensorboard", {"TENSORBOARD_LOGGING_DIR": "/logs"}, None, {"logging_dir": "/logs"}),
        ("tensorboard", {"WANDB_PROJECT": "p"}, None, {"project": "rmtrain", "logging_dir": "runs/tiny"}),
    ],
)
def test_environment_names_project_and_run(
    name: str, variables: dict[str, str], project: str | None, expected: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    """Variables of a tracker mean what its users expect, and `tracking.project` comes before them."""
    for variable in (*VARIABLES, *MORE_VARIABLES):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    for tracker in ("WandBTracker", "TrackioTracker", "MLflowTracker", "TensorBoardTracker", "SwanLabTracker"):
        monkeypatch.setattr(run_log, tracker, Made)
    experiments = SimpleNamespace(get_experiment=lambda number: SimpleNamespace(name=f"experiment {number}"))
    monkeypatch.setitem(sys.modules, "mlflow", experiments)
    recipe = tiny_recipe(tmp_path, tracking={"to": [name], "project": project})
    made = run_log.build_tracker(name, recipe, RunDirectory(Path("runs/tiny"), "7", continues=False))
    came = {"experiment_name": getattr(made, "experiment_name", None), **made.options, "project": made.project}
    assert {key: came.get(key) for key in expected} == expected
