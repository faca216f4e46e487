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
    """Return the benchmarks of a comma-separated list, each once, in its order; raises RecipeError for an unknown name."""
    wanted = list(dict.fromkeys(name.strip().lower().replace("-", "_") for name in names.split(",") if name.strip()))
    unknown = [name for name in wanted if name not in BENCHMARKS]
    if unknown or not wanted:
        raise RecipeError(f"--benchmark {', '.join(unknown) or names}: expected one or more of {','.join(BENCHMARKS)}")
    return [BENCHMARKS[name] for name in wanted]


def only(names: str, option: str) -> Benchmark:
    """Return the one benchmark of a list; raises RecipeError for several or for an unknown name."""
    chosen = named(names)
    if len(chosen) > 1:
        raise RecipeError(f"{option}: expected scores of one benchmark, got {len(chosen)}; name one in --benchmark")
    return chosen[0]
