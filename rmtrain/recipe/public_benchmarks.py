"""Public benchmarks in a recipe: those to evaluate on during the training, and those whose prompts must not be trained on."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, PositiveInt

from rmtrain.recipe.section import Conflict, Section

BenchmarkName = Literal[
    "rewardbench",
    "rewardbench2",
    "rm_bench",
    "judgebench",
    "llmbar",
    "rmb",
    "ppe_preference",
    "ppe_correctness",
    "m_rewardbench",
]
BENCHMARK_NAMES: tuple[str, ...] = get_args(BenchmarkName)
BENCHMARK_GATE = rf"^({'|'.join(BENCHMARK_NAMES)})(\.[a-z0-9_-]+)?$"
"""Pattern of a gate on a benchmark: its name, and a section of it after a dot."""


def _by_name(value: Any) -> Any:
    return {"name": value.lower().replace("-", "_")} if isinstance(value, str) else value


def _by_name_or_path(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    name = value.lower().replace("-", "_")
    return {"name": name} if name in BENCHMARK_NAMES else {"path": value}


class EvaluatedBenchmark(Section):
    """A benchmark to evaluate on during the training. A name alone, such as `rm_bench`, stands for `{name: rm_bench}`."""

    name: BenchmarkName
    """Benchmark, by its name for `rmtrain eval --benchmark`."""
    path: Annotated[str, Field(min_length=1)] | None = None
    """File or folder with its official files; `null`: from the Hub."""
    every: PositiveInt | None = None
    """Evaluate on it after this many steps, a multiple of `evaluation.every`, and at the end; `null`: at every evaluation."""


class UntrainedPrompts(Section):
    """A benchmark that must not be trained on. A name or a path alone stands for `{name: ...}` or `{path: ...}`."""

    name: BenchmarkName | None = None
    """Benchmark, by its name for `rmtrain eval --benchmark`; `null`: `path` is any file of prompts."""
    path: Annotated[str, Field(min_length=1)] | None = None
    """File or folder with the official files of the benchmark, or a file of prompts (json, jsonl, csv, parquet); `null`: from the Hub."""

    def conflicts(self) -> Iterator[Conflict]:
        """There is something to read."""
        if self.name is None and self.path is None:
            yield Conflict(("path",), "expected the name of a benchmark or the path of a file, got neither")


class EditedPrompts(Section):
    """When a training prompt counts as an edited one of a benchmark, or as one that contains it."""

    words: Annotated[int, Field(ge=2, le=50)] = 4
    """Number of consecutive words that have to be the same at least once. Prompts of fewer than eight words are only found whole."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the words of the benchmark's prompt that one training prompt has in the same order, close together."""


NamedBenchmark = Annotated[
    EvaluatedBenchmark, BeforeValidator(_by_name, json_schema_input_type=BenchmarkName | EvaluatedBenchmark)
]
NamedPrompts = Annotated[UntrainedPrompts, BeforeValidator(_by_name_or_path, json_schema_input_type=str | UntrainedPrompts)]
