"""The benchmarks by name."""

from rmtrain.errors import RecipeError
from rmtrain.evaluation.benchmarks.base import Benchmark
from rmtrain.evaluation.benchmarks.judgebench import JUDGEBENCH
from rmtrain.evaluation.benchmarks.llmbar import LLMBAR
from rmtrain.evaluation.benchmarks.rewardbench import REWARDBENCH
from rmtrain.evaluation.benchmarks.rewardbench2 import REWARDBENCH2
from rmtrain.evaluation.benchmarks.rm_bench import RM_BENCH
from rmtrain.evaluation.benchmarks.rmb import RMB

BENCHMARKS = {benchmark.name: benchmark for benchmark in (REWARDBENCH, REWARDBENCH2, RM_BENCH, JUDGEBENCH, LLMBAR, RMB)}


def named(names: str) -> list[Benchmark]:
    """The benchmarks of a list with commas, each once, in its order; raises RecipeError for a name that is none."""
    wanted = list(dict.fromkeys(name.strip().lower().replace("-", "_") for name in names.split(",") if name.strip()))
    unknown = [name for name in wanted if name not in BENCHMARKS]
    if unknown or not wanted:
        raise RecipeError(f"--benchmark {', '.join(unknown) or names}: expected some of {','.join(BENCHMARKS)}")
    return [BENCHMARKS[name] for name in wanted]
