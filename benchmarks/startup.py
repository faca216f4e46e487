"""Seconds until `rmtrain --help` is there, until a recipe with mistakes is refused, until numbers of scores are there, and until the first
step of a small model, against importing the libraries alone. Each run is a process of its own.

The first step and the imports take turns, and their ratio is the median over rounds. The data is cached by an unmeasured run.
"""

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, figure, finish, machine, median_ratio, parser, show, take_turns

BROKEN = """\
run:       {name: broken, output_dir: runs/broken}
data:      {train: [{path: rows.jsonl}], max_lenght: 512}
model:     {path: EleutherAI/pythia-1b-deduped}
optimizer: {lr: 3}
"""


IMPORTS = [sys.executable, "-c", "import torch, transformers, datasets, accelerate, peft"]
FIRST_STEP = "step 1/"
"""The beginning of the line that a run prints after its first step."""


def seconds_of(command: list[str], expected: int, runs: int) -> list[float]:
    """Wall-clock seconds of a command, run some times after one that fills the file cache."""
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        finished = subprocess.run(command, capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert finished.returncode == expected, f"{command[-1]} ended with {finished.returncode}: {finished.stderr}"
    return seconds[1:]


def seconds_to_first_step(command: list[str]) -> float:
    """Wall-clock seconds until a run has printed the line of its first step; it then runs on to its end."""
    start, seconds, printed = time.perf_counter(), None, []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            printed.append(line)
            if seconds is None and line.startswith(FIRST_STEP):
                seconds = time.perf_counter() - start
    assert seconds is not None, f"no first step: {''.join(printed)}"
    return seconds


def main() -> None:
    """Measure, print, write."""
    made = parser(__doc__)
    made.add_argument("--runs", type=int, default=9, help="processes of each kind")
    arguments = made.parse_args()
    runs = 2 if arguments.quick else arguments.runs
    about, program = machine(), str(Path(sys.executable).with_name("rmtrain"))
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "broken.yaml"
        recipe.write_text(BROKEN, encoding="utf-8")
        found = {
            "rmtrain --help": seconds_of([program, "--help"], 0, runs),
            "a recipe with mistakes": seconds_of([program, "train", str(recipe)], 2, runs),
        }
        overrides = [f"run.output_dir={folder}/run", f"data.cache_dir={folder}/cache", "training.max_steps=1"]
        train = [program, "train", "recipes/quickstart.yaml", *overrides, "--fresh"]
        seconds_to_first_step(train)
        found["numbers of scores"] = seconds_of([program, "eval", "--scores", f"{folder}/run"], 0, runs)
        found |= take_turns(
            {
                "first step of the quickstart": partial(seconds_to_first_step, train),
                "importing the libraries": lambda: seconds_of(IMPORTS, 0, 1)[0],
            },
            runs,
        )
    ratio = median_ratio(found["first step of the quickstart"], found["importing the libraries"])
    lines = [[name, median(seconds), min(seconds), max(seconds)] for name, seconds in found.items()]
    show("start-up", ["command", "median s", "fastest", "slowest"], lines)
    promised = ("< 0.5 s", "< 1 s", "-")
    figures = [figure(line[0], f"{line[1]:.2f} s", promise) for line, promise in zip(lines, promised, strict=False)]
    figures.append(figure("first step of a small model, against importing the libraries", f"{ratio:.2f} ×", "≤ 1.1 ×"))
    finish(arguments, {"machine": about, "seconds": found}, figures)


if __name__ == "__main__":
    main()
