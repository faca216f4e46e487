"""What all benchmarks share: arguments, the machine, rounds that take turns, medians, memory, tables and JSON."""

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
PACKAGES = ("torch", "transformers", "trl", "accelerate", "tokenizers", "datasets", "numpy")
console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Trace:
    """Some steps of training: their seconds, and loss and gradient norm of each. `computed` tokens include padding, `real` do not.

    `cpu_seconds` are those of all threads of the process: fewer than threads x seconds means that other work was on the cores.
    """

    seconds: float
    cpu_seconds: float
    losses: list[float]
    grad_norms: list[float]
    computed: int
    real: int


def parser(description: str | None) -> ArgumentParser:
    """An argument parser with what every benchmark takes."""
    made = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="write settings, raw timings and figures to FILE")
    made.add_argument("--quick", action="store_true", help="sizes that only show that it runs; the figures mean nothing")
    return made


def machine() -> dict[str, Any]:
    """What a figure depends on, without the name or a path of the machine. `load` is the load average before the benchmark.

    The version of a package that is not installed is None.
    """
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: installed(name) for name in PACKAGES},
    }


def installed(package: str) -> str | None:
    """The version of a package; None: it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def take_turns(runs: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call each of the runs once a round, so that whatever else the machine does falls on all of them: A B C, C B A, A B C, ..."""
    results: dict[str, list[T]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in runs if number % 2 == 0 else reversed(runs):
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            results[name].append(runs[name]())
            gc.collect()  # models and trainers are full of cycles, and the next run wants their memory
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return results


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median over rounds of the ratio within a round: drift of the machine between rounds cancels."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def now() -> float:
    """Seconds of a clock, once everything that was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Stopwatch:
    """Wall-clock and processor seconds of laps: `lap` ends one and begins the next."""

    def __init__(self) -> None:
        self.marks = [(now(), time.process_time())]

    def lap(self) -> None:
        """End a lap."""
        self.marks.append((now(), time.process_time()))

    def between(self, first: int, last: int) -> tuple[float, float]:
        """Seconds and processor seconds between two marks; the watch was started at mark 0."""
        (start, start_cpu), (end, end_cpu) = self.marks[first], self.marks[last]
        return end - start, end_cpu - start_cpu


def in_fresh_processes(command: Sequence[str], repeats: int, **environment: str) -> list[Any]:
    """The JSON that a command prints last, from as many processes, one after the other."""
    printed = (
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}).stdout
        for _ in range(repeats)
    )
    return [json.loads(text.splitlines()[-1]) for text in printed]


def rss_bytes() -> int:
    """Memory that this process holds now. Linux only."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most memory that this process held since `reset_peak`. Linux only."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Start to measure the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kilobytes) * 1024


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table: the first column on the left, numbers on the right, floats with three significant digits."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def figure(what: str, value: str, promise: str) -> dict[str, str]:
    """One line of docs/PERFORMANCE.md: what was measured, what came out, what was promised."""
    return {"what": what, "value": value, "promise": promise}


def finish(arguments: Namespace, document: dict[str, Any], figures: Sequence[dict[str, str]]) -> None:
    """Print the figures, and write everything to the JSON file that was asked for."""
    show("figures", ["what", "measured", "promised"], [list(line.values()) for line in figures])
    write(arguments, document, figures)


def write(arguments: Namespace, document: dict[str, Any], figures: Sequence[dict[str, str]]) -> None:
    """Write everything to the JSON file that was asked for, if one was."""
    if arguments.json is not None:
        settings = {name: value.name if isinstance(value, Path) else value for name, value in vars(arguments).items()}
        whole = {**document, "figures": list(figures), "settings": settings}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
