"""`rmtrain eval --benchmark`: the quality of a model on public benchmarks, by their own rules."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from rmtrain.commands.options import EvalOptions, checked_precision, parse_gates
from rmtrain.commands.result import CommandResult
from rmtrain.data.comparison import Comparison
from rmtrain.engine.distributed import model_device, run_on_main, start_evaluation, stopping
from rmtrain.evaluation.benchmarks.base import Benchmark, Item, Scores
from rmtrain.evaluation.benchmarks.measure import measure, measure_subsets, named, only
from rmtrain.evaluation.benchmarks.published import read_items, read_output
from rmtrain.evaluation.metrics import check_gates
from rmtrain.evaluation.scorer import RewardScorer
from rmtrain.evaluation.scores_file import TIES, ScoredComparison, digest_of, versions, write_scores, write_settings
from rmtrain.evaluation.scoring import score
from rmtrain.report.console import compact
from rmtrain.report.evaluation_view import benchmark_report
from rmtrain.report.progress import ScoringProgress


def evaluate_benchmarks(options: EvalOptions, names: str, model: str, folder: Path, console: Console) -> CommandResult:
    """Score benchmarks with a model. A row that is too long loses its beginning, as in RewardBench's script; none is left out.

    Args:
        options: data_dir, fail_under, max_length, precision and allow_template_change are used.
        names: benchmarks, separated by commas.
        model: directory or Hub id.
        folder: `NAME/scores.jsonl` and `NAME/scores.settings.json` of each benchmark are written here.
        console: shows progress on the main process.

    Raises:
        RecipeError: an unknown benchmark or gate.
        DataError: rows that are missing, or not of the benchmark.
        CheckpointError: no model, or no score head.
        Stopped: a signal came to one of several processes.
    """
    benchmarks = named(names)
    gates = parse_gates(options.fail_under, gate_names(benchmarks))
    items_of = {benchmark.name: read_items(benchmark, options.data_dir) for benchmark in benchmarks}
    accelerator = start_evaluation()
    console = console if accelerator.is_main_process else Console(quiet=True)
    scorer = RewardScorer(
        model,
        device=model_device(accelerator),
        precision=checked_precision(options.precision),
        max_length=options.max_length,
        overlong="cut",
        allow_template_change=options.allow_template_change,
    )
    numbers: dict[str, dict[str, Any]] = {}
    for benchmark in benchmarks:
        scored, settings = _score(benchmark, items_of[benchmark.name], scorer, accelerator, console)
        path = folder / benchmark.name / "scores.jsonl"
        run_on_main(accelerator, partial(_write, path, scored, settings))
        measured = measure(benchmark, scored)
        cut, rows, length = settings["rows_cut"], settings["rows"], settings["max_length"]
        if cut:
            measured["warnings"].append(f"{cut:,} of {rows:,} rows are over {length:,} tokens and lost their beginning")
        numbers[benchmark.name] = {**measured, "settings": settings, "scores": str(path)}
    return _result(numbers, benchmarks, gates)


def _score(
    benchmark: Benchmark, items: Sequence[Item], scorer: RewardScorer, accelerator: Accelerator, console: Console
) -> tuple[list[ScoredComparison], dict[str, Any]]:
    """Score the items of a benchmark on all ranks; returns the rows and everything their rewards depend on."""
    requests = [
        Comparison(
            f"{benchmark.name}: {item.source}/{item.id}",
            item.source,
            item.prompt,
            tuple(({"role": "assistant", "content": response},) for response in item.responses),
            item.preferences,
        )
        for item in items
    ]
    comparisons, were_cut = scorer.encode(requests)
    plan = scorer.plan(comparisons)
    tokens = compact(int(plan.costs.tokens.sum()))
    console.print(f"scoring {benchmark.title}: {len(items):,} rows, {tokens} tokens as {plan.layout}", highlight=False)
    with stopping(accelerator) as stop, ScoringProgress(console, "micro-batches", len(plan.micro_batches)) as progress:

        def check() -> None:
            stop.check()
            progress.step(accelerator.num_processes)

        scored = score(scorer.model, plan, accelerator, check)
    settings = {
        "benchmark": benchmark.name,
        "model": scorer.path,
        **scorer.settings,
        "ties": TIES,
        "layout": plan.layout,
        "rows": len(items),
        "rows_cut": sum(were_cut),
        "rows_dropped": 0,
        "rows_sha256": digest_of([[item.source, item.id, item.prompt, item.responses] for item in items]),
        "versions": versions(),
    }
    return [replace(row, id=item.id, shown=item.shown) for row, item in zip(scored, items, strict=True)], settings


def _write(path: Path, scored: Sequence[ScoredComparison], settings: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_scores(path, scored)
    write_settings(path, settings)


def measure_scores(options: EvalOptions, name: str, scores: Path, settings: Mapping[str, Any] | None) -> CommandResult:
    """Compute the numbers of a benchmark from scores alone: a file of rmtrain, or of the benchmark's own script.

    Args:
        options: fail_under is used.
        name: the benchmark.
        scores: the file, or a folder of files.
        settings: of the scores; None: they have none.

    Raises:
        RecipeError: more than one benchmark, or an unknown gate.
        DataError: the scores are not of the benchmark.
    """
    benchmark = only(name, "--scores")
    gates = parse_gates(options.fail_under, gate_names([benchmark]))
    output = read_output(benchmark, scores)
    numbers = measure_subsets(benchmark, output) if isinstance(output, Scores) else measure(benchmark, output)
    return _result({benchmark.name: {**numbers, "settings": settings, "scores": str(scores)}}, [benchmark], gates)


def gate_names(benchmarks: Sequence[Benchmark]) -> dict[str, tuple[str, str | None]]:
    """Return the benchmark and section (None: the whole) of each gate by its name, such as `rm_bench` or `rewardbench.chat_hard`."""
    names: dict[str, tuple[str, str | None]] = {benchmark.name: (benchmark.name, None) for benchmark in benchmarks}
    for benchmark in benchmarks:
        for section in benchmark.sections:
            names[f"{benchmark.name}.{section.lower().replace(' ', '_')}"] = (benchmark.name, section)
    return names


def _result(
    numbers: Mapping[str, Mapping[str, Any]], benchmarks: Sequence[Benchmark], gates: Mapping[str, float]
) -> CommandResult:
    values = {}
    for gate, (name, section) in gate_names(benchmarks).items():
        values[gate] = (numbers[name] if section is None else numbers[name]["sections"].get(section, {})).get("score")
    results = check_gates(values, gates)
    return CommandResult(benchmark_report(numbers, results), {"benchmarks": dict(numbers), "gates": results})
