"""Seconds until `rmtrain --help` is there, and until a recipe with mistakes is refused. Each run is a process of its own."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import figure, finish, machine, parser, show

BROKEN = """\
run:       {name: broken, output_dir: runs/broken}
data:      {train: [{path: rows.jsonl}], max_lenght: 512}
model:     {path: EleutherAI/pythia-1b-deduped}
optimizer: {lr: 3}
"""


def seconds_of(command: list[str], expected: int, runs: int) -> list[float]:
    """Wall-clock seconds of a command, run some times after one that fills the file cache."""
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        finished = subprocess.run(command, capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert finished.returncode == expected, f"{command[-1]} ended with {finished.returncode}: {finished.stderr}"
    return seconds[1:]


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
    lines = [[name, median(seconds), min(seconds), max(seconds)] for name, seconds in found.items()]
    show("start-up", ["command", "median s", "fastest", "slowest"], lines)
    promised = ("< 0.5 s", "< 1 s")
    figures = [figure(line[0], f"{line[1]:.2f} s", promise) for line, promise in zip(lines, promised, strict=True)]
    finish(arguments, {"machine": about, "seconds": found}, figures)


if __name__ == "__main__":
    main()
