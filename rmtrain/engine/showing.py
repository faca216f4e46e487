"""Tables and pictures for those trackers that can show them. Called in the trackers' own thread, where a failure harms nothing."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rmtrain.recipe.redact import redact

SAMPLES = "eval/samples"
COLUMNS = ("id", "source", "prompt", "chosen", "rejected", "reward_chosen", "reward_rejected", "margin")
Draw = Callable[[], Figure]


def send_samples(tracker: Any, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
    """Sample comparisons with their rewards, as a table of wandb or trackio."""
    table = {"columns": list(COLUMNS), "data": [_row(sample) for sample in samples]}
    if tracker.name == "wandb":
        tracker.log_table(SAMPLES, **table, step=step)
    elif tracker.name == "trackio":
        tracker.log({SAMPLES: import_module("trackio").Table(**table)}, step=step)


def _row(sample: Mapping[str, Any]) -> list[Any]:
    chosen, rejected = sample["rewards"]
    texts = [redact(sample[name]) for name in ("id", "source", "prompt", "chosen", "rejected")]
    return [*texts, chosen, rejected, chosen - rejected]


def send_pictures(tracker: Any, step: int, pictures: Mapping[str, Draw]) -> None:
    """Pictures by name; they are drawn only where the tracker shows them."""
    if tracker.name == "wandb":
        tracker.log_images({name: [pixels(draw())] for name, draw in pictures.items()}, step=step)
    elif tracker.name == "tensorboard":
        images = {name: pixels(draw())[None] for name, draw in pictures.items()}
        tracker.log_images(images, step=step, dataformats="NHWC")
    elif tracker.name == "mlflow":
        for name, draw in pictures.items():
            tracker.log_figure(draw(), f"{name}/{step:08d}.png")
    elif tracker.name == "trackio":
        image = import_module("trackio").Image
        tracker.log({name: image(pixels(draw())) for name, draw in pictures.items()}, step=step)


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """A figure as [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return picture
