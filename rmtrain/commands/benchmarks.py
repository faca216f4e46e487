"""`rmtrain eval --benchmark`: how good a model is on public benchmarks, by their own rules."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from rmtrain.batching.plan import Costs
from rmtrain.commands.evaluate import run_directory
from rmtrain.commands.result import CommandResult
from rmtrain.data.comparison import Comparison
from rmtrain.engine.distributed import model_device, run_on_main, start_evaluation, stopping
from rmtrain.errors import CheckpointError, RecipeError
from rmtrain.evaluation.benchmarks.base import Benchmark, Item, Scores
from rmtrain.evaluation.benchmarks.measure import measure, measure_subsets
from rmtrain.evaluation.benchmarks.published import read_items, read_output
from rmtrain.evaluation.benchmarks.registry import BENCHMARKS, named
from rmtrain.evaluation.score import score
from rmtrain.evaluation.scorer import Precision, RewardScorer
from rmtrain.evaluation.scores_file import TIES, ScoredComparison, digest_of, read_settings, write_scores, write_settings
from rmtrain.recipe.load import load_recipe
from rmtrain.report.console import compact
from rmtrain.report.progress import LinePace as Pace
from rmtrain.report.tables import benchmark_report

PACKAGES = ("rmtrain", "torch", "transformers")


def eval_benchmarks(
    console: Console,
    *,
    target: str | None,
    recipe_path: Path | None,
    benchmarks: str,
    data_dir: Path | None = None,
    output: Path | None = None,
    gates: Sequence[str] = (),
    max_length: int | None = None,
    precision: Precision = "auto",
    allow_template_change: bool = False,
) -> CommandResult:
    """Score benchmarks with a model; a row that is too long is cut as RewardBench does it, none is left out.

    Args:
        console: shows progress, of the main process.
        target, recipe_path: a recipe, a run directory, or a model.
        benchmarks: names, with commas.
        data_dir: folder of their official files; None: from the Hub.
        output: `NAME/scores.jsonl` and `NAME/scores.settings.json` of each go here; None: into `benchmarks` of the run, or of the
            current directory.
        gates: `NAME=0.8` or `NAME.section=0.7`.
        max_length: longest sequence in tokens; None: what the model holds.
        precision: of matrix products.
        allow_template_change: score with a chat template that is not the model's.

    Raises:
        RecipeError: an unknown benchmark, gate or model.
        DataError: rows that are not there, or not the benchmark's.
        CheckpointError: no model, or no score head.
    """
    chosen = named(benchmarks)
    wanted = parse_gates(gates, chosen)
    model, run = model_of(target, recipe_path)
    items = {benchmark.name: read_items(benchmark, data_dir) for benchmark in chosen}
    accelerator = start_evaluation()
    console = console if accelerator.is_main_process else Console(quiet=True)
    scorer = RewardScorer(
        model,
        device=model_device(accelerator),
        precision=precision,
        max_length=max_length,
        overlong="cut",
        allow_template_change=allow_template_change,
    )
    folder = output or (run or Path()) / "benchmarks"
    found = {}
    for benchmark in chosen:
        scored, settings = _score(benchmark, items[benchmark.name], scorer, accelerator, console)
        path = folder / benchmark.name / "scores.jsonl"
        run_on_main(accelerator, partial(_leave, path, scored, settings))
        numbers = measure(benchmark, scored)
        numbers["warnings"] += _cut_warning(settings)
        found[benchmark.name] = {**numbers, "settings": settings, "scores": str(path)}
    return _outcome(found, wanted)


def _leave(path: Path, scored: Sequence[ScoredComparison], settings: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_scores(path, scored)
    write_settings(path, settings)


def benchmark_scores(path: Path, benchmarks: str | None, gates: Sequence[str]) -> CommandResult | None:
    """The numbers of a benchmark from scores alone: a file of ours, or of the benchmark's own script; needs no model.

    Returns:
        None where neither a benchmark is named nor the settings beside the file name one.

    Raises:
        RecipeError: more than one benchmark, or an unknown gate.
        DataError: the scores are not the benchmark's.
    """
    if not path.exists():
        raise RecipeError(f"--scores: {path} is not there")
    settings = read_settings(path)
    names = benchmarks or (settings or {}).get("benchmark")
    if names is None:
        return None
    chosen = named(str(names))
    if len(chosen) != 1:
        raise RecipeError("--scores is of one benchmark; name one in --benchmark")
    (benchmark,) = chosen
    wanted = parse_gates(gates, chosen)
    read = read_output(benchmark, path)
    numbers = measure_subsets(benchmark, read) if isinstance(read, Scores) else measure(benchmark, read)
    return _outcome({benchmark.name: {**numbers, "settings": settings, "scores": str(path)}}, wanted)


def model_of(target: str | None, recipe_path: Path | None) -> tuple[str, Path | None]:
    """The model that a recipe, a run directory or a model names, and the run it is of, if any.

    Raises:
        RecipeError: nothing is named. CheckpointError: a recipe whose run has no model yet.
    """
    recipe = recipe_path or (Path(target) if target is not None and target.endswith((".yaml", ".yml")) else None)
    if recipe is not None:
        run = Path(load_recipe(recipe).run.output_dir).expanduser()
        if not (run / "model").is_dir():
            raise CheckpointError(f"{run}/model: there is no model; run `rmtrain train {recipe}` first")
        return str(run / "model"), run
    if target is None:
        raise RecipeError("expected a recipe, a run directory or a model; see `rmtrain eval --help`")
    found = run_directory(Path(target).expanduser())
    return (target, None) if found is None else (str(found / "model"), found)


def _score(
    benchmark: Benchmark, items: Sequence[Item], scorer: RewardScorer, accelerator: Accelerator, console: Console
) -> tuple[list[ScoredComparison], dict[str, Any]]:
    asked = [_asked(benchmark, item) for item in items]
    comparisons, were_cut = scorer.encode(asked)
    layout, data, micro_batches = scorer.micro_batches(comparisons)
    tokens = compact(int(Costs.of(data, layout).tokens.sum()))
    console.print(f"scoring {benchmark.title}: {len(data):,} rows, {tokens} tokens as {layout}", highlight=False)
    pace = Pace(console, "micro-batches", len(micro_batches))
    with stopping(accelerator) as stop:

        def check() -> None:
            stop.check(accelerator)
            pace.step(accelerator.num_processes)

        scored = score(scorer.model, data, micro_batches, layout, accelerator, scorer.pad_token_id, check)
    settings = {
        "benchmark": benchmark.name,
        "model": scorer.path,
        **scorer.settings,
        "ties": TIES,
        "layout": layout,
        "rows": len(items),
        "rows_cut": sum(were_cut),
        "rows_dropped": 0,
        "rows_sha256": digest_of([[item.source, item.id, item.prompt, item.responses] for item in items]),
        "versions": {name: version(name) for name in PACKAGES},
    }
    return [replace(row, id=item.id, shown=item.shown) for row, item in zip(scored, items, strict=True)], settings


def _cut_warning(settings: Mapping[str, Any]) -> list[str]:
    cut, rows, length = settings["rows_cut"], settings["rows"], settings["max_length"]
    return [f"{cut:,} of {rows:,} rows lost their beginning: they are over {length:,} tokens"] if cut else []


def _asked(benchmark: Benchmark, item: Item) -> Comparison:
    responses = tuple(({"role": "assistant", "content": response},) for response in item.responses)
    return Comparison(f"{benchmark.name}: {item.source}/{item.id}", item.source, item.prompt, responses, item.preferences)


def parse_gates(values: Sequence[str], benchmarks: Sequence[Benchmark]) -> dict[tuple[str, str | None], float]:
    """`rm_bench=0.7`, `rewardbench.chat_hard=0.6` to benchmark, section and number; raises RecipeError where it is none."""
    gates: dict[tuple[str, str | None], float] = {}
    for value in values:
        name, _, bound = value.partition("=")
        benchmark, _, section = name.partition(".")
        known = {_plain(title): title for title in BENCHMARKS[benchmark].sections} if benchmark in BENCHMARKS else {}
        if benchmark not in {chosen.name for chosen in benchmarks} or (section and section not in known):
            expected = ", ".join([*(chosen.name for chosen in benchmarks), *(f"{benchmark}.{section}" for section in known)])
            raise RecipeError(f"--fail-under {value}: expected one of {expected}, as {benchmarks[0].name}=0.7")
        try:
            gates[benchmark, known[section] if section else None] = float(bound)
        except ValueError:
            raise RecipeError(f"--fail-under {value}: expected a number after {name}=, as {name}=0.7") from None
    return gates


def _plain(section: str) -> str:
    return section.lower().replace(" ", "_")


def _outcome(found: Mapping[str, Mapping[str, Any]], gates: Mapping[tuple[str, str | None], float]) -> CommandResult:
    results: dict[str, dict[str, Any]] = {}
    for (name, section), required in gates.items():
        numbers = found[name] if section is None else found[name]["sections"].get(section, {})
        value = numbers.get("score")
        key = name if section is None else f"{name}.{_plain(section)}"
        results[key] = {"required": required, "value": value, "passed": value is not None and value >= required}
    return CommandResult(benchmark_report(found, results), {"benchmarks": dict(found), "gates": results})
