"""Seconds and memory to plan an epoch of very many comparisons: lengths drawn at random, batches of 32, eight processes.

Each size is a process of its own. Seconds count every step of the epoch; memory is all that the process ever held, with its libraries
and the lengths. Needs Linux.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import figure, finish, machine, parser, peak_bytes, show
from rmtrain.batching.plan import Costs, Plan

BATCH, WORLD, MAX_TOKENS = 32, 8, 16384


@dataclass(frozen=True, slots=True)
class Lengths:
    """The lengths of pairs, as tokenized data have them."""

    response_counts: NDArray[np.int32]
    longest: NDArray[np.int32]
    total_tokens: NDArray[np.int64]
    unique_tokens: NDArray[np.int64]


def drawn(count: int, seed: int = 0) -> Lengths:
    """Prompts of about 120 tokens and responses of about 50, log-normal as HH's are, pairs of at most 1024 each."""
    rng = np.random.default_rng(seed)
    prompts = np.minimum(rng.lognormal(4.4, 0.9, count), 700).astype(np.int32)
    first, second = (np.clip(rng.lognormal(3.6, 0.8, count), 1, 324).astype(np.int32) for _ in range(2))
    unique = (prompts + first + second).astype(np.int64)
    return Lengths(np.full(count, 2, np.int32), prompts + np.maximum(first, second), unique + prompts, unique)


def measure_here(count: int) -> dict[str, Any]:
    """Plan one epoch in this process."""
    lengths = drawn(count)
    start = time.perf_counter()
    plan = Plan(Costs.of(lengths, "shared_prefix"), BATCH, MAX_TOKENS, epochs=1, seed=1, world=WORLD)
    planned = sum(len(plan.step(number).indices) for number in range(plan.total_steps))
    seconds = time.perf_counter() - start
    assert planned == count, f"{planned} of {count} comparisons were planned"
    return {"comparisons": count, "seconds": seconds, "peak_bytes": peak_bytes()}


def main() -> None:
    """Measure, print, write; or be the process that is measured."""
    made = parser(__doc__)
    made.add_argument("--comparisons", type=int, default=10_000_000, help="the larger size; the smaller is a tenth of it")
    made.add_argument("--child", type=int, help="for the processes that are measured")
    arguments = made.parse_args()
    if arguments.child:
        print(json.dumps(measure_here(arguments.child)))
        return
    if arguments.quick:
        arguments.comparisons = 20_000
    about, found = machine(), []
    for count in (arguments.comparisons // 10, arguments.comparisons):
        printed = subprocess.run([sys.executable, __file__, f"--child={count}"], check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(printed.stdout))
    small, large = found
    lines = [
        [one["comparisons"], one["seconds"], 1e6 * one["seconds"] / one["comparisons"], one["peak_bytes"] / 1e9] for one in found
    ]
    show(f"one epoch, batches of {BATCH}, {WORLD} processes", ["comparisons", "seconds", "µs each", "GB"], lines)
    figures = [
        figure(f"planning {large['comparisons']:,} comparisons", f"{large['seconds']:.0f} s", "< 60 s"),
        figure("peak memory of that", f"{large['peak_bytes'] / 1e9:.1f} GB", "< 4 GB"),
        figure("time for ten times as many", f"{large['seconds'] / small['seconds']:.1f} ×", "10 ×"),
    ]
    finish(arguments, {"machine": about, "sizes": found}, figures)


if __name__ == "__main__":
    main()
