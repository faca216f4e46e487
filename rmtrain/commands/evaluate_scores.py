"""`rmtrain eval --scores` and `--compare`: numbers of files of scores, without a model and without what loads one."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from rmtrain.command_line.model_options import EvalOptions, parse_gates
from rmtrain.command_line.options import CommandResult
from rmtrain.engine.rank import rank_number
from rmtrain.errors import RecipeError, missing
from rmtrain.evaluation.benchmarks.base import Benchmark, Scores
from rmtrain.evaluation.benchmarks.measure import measure, only
from rmtrain.evaluation.benchmarks.published import read_output
from rmtrain.evaluation.compare import compare
from rmtrain.evaluation.diagnosis import diagnose
from rmtrain.evaluation.gates import check_gates
from rmtrain.evaluation.metrics import EvaluationResult, summarize
from rmtrain.evaluation.scores_file import objective_of, read_scores, read_settings, unknown_prompts
from rmtrain.files import expanded
from rmtrain.recipe.load import MARKER
from rmtrain.report.evaluation_view import benchmark_report, diagnosis_view, difference_report, evaluation_summary
from rmtrain.report.page import write_report


def run_scores(options: EvalOptions) -> CommandResult:
    """Do what the options of `rmtrain eval` ask for, if they name files of scores; see the functions below for the errors."""
    if options.report is not None:
        options = replace(options, report=expanded(options.report, "--report"))
    if options.compare is not None:
        return _compare(options, *options.compare)
    assert options.scores is not None, "--scores or --compare is given"
    return _evaluate(options, options.scores)


def _evaluate(options: EvalOptions, scores: Path) -> CommandResult:
    """Compute numbers from a file of scores alone: of the benchmark that the options or its settings name, else of pairs."""
    scores = _scores_in(scores)
    if not (os.path.isfile(scores) or os.path.isdir(scores)):
        raise RecipeError(f"--scores: {missing(scores)}")
    settings = read_settings(scores)
    name = options.benchmark or (settings or {}).get("benchmark")
    if name is not None:
        if options.report is not None:
            raise RecipeError(f"--report: only for pairs, and {scores} has scores of a benchmark; leave it out")
        benchmark = only(str(name), "--scores")
        gates = parse_gates(options.fail_under, gate_names([benchmark]))
        output = read_output(benchmark, scores)
        numbers = measure(benchmark, output)
        numbers["warnings"] += [] if isinstance(output, Scores) else unknown_prompts(output)
        return benchmarks_result({benchmark.name: {**numbers, "settings": settings, "scores": str(scores)}}, [benchmark], gates)

    gates = parse_gates(options.fail_under)
    rows = read_scores(scores)
    summary = summarize(rows, objective_of(settings, scores))
    summary["warnings"] += unknown_prompts(rows)
    result = EvaluationResult(rows, summary, seconds=0.0, micro_batches=0)
    passed = check_gates(result.summary, gates)
    if options.report is not None and not rank_number():
        write_report(options.report, scores.name, result, gates=passed)
    return pairs_result(result, passed, scores, options.report)


def _scores_in(path: Path) -> Path:
    """Return the file of scores of a run or another directory that `eval` wrote; any other path unchanged."""
    path = expanded(path)
    return path / "scores.jsonl" if any(os.path.isfile(path / name) for name in ("scores.jsonl", MARKER)) else path


def _compare(options: EvalOptions, one: Path, other: Path) -> CommandResult:
    one, other = _scores_in(one), _scores_in(other)
    absent = [path for path in (one, other) if not (os.path.isfile(path) or os.path.isdir(path))]
    if absent:
        raise RecipeError(*(f"--compare: {missing(path)}" for path in absent))
    benchmark = only(options.benchmark, "--compare") if options.benchmark else None
    compared = compare(one, other, benchmark, options.allow_different_settings)
    return CommandResult(difference_report(compared), {**compared, "gates": {}})


def gate_names(benchmarks: Sequence[Benchmark]) -> dict[str, tuple[str, str | None]]:
    """Return the benchmark and section (None: the whole) of each gate by its name, such as `rm_bench` or `rewardbench.chat_hard`."""
    parts = [(benchmark.name, section) for benchmark in benchmarks for section in benchmark.sections]
    sections = {f"{name}.{section.lower().replace(' ', '_')}": (name, section) for name, section in parts}
    return {**{benchmark.name: (benchmark.name, None) for benchmark in benchmarks}, **sections}


def gate_values(benchmarks: Sequence[Benchmark], numbers: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the score that each gate of `gate_names` is about, None where there is none, given the numbers of each benchmark."""
    return {
        gate: (numbers[name] if section is None else numbers[name]["sections"].get(section, {})).get("score")
        for gate, (name, section) in gate_names(benchmarks).items()
    }


def benchmarks_result(
    numbers: Mapping[str, Mapping[str, Any]], benchmarks: Sequence[Benchmark], gates: Mapping[str, float]
) -> CommandResult:
    """Return the numbers of benchmarks as a report and a document."""
    results = check_gates(gate_values(benchmarks, numbers), gates)
    return CommandResult(benchmark_report(numbers, results), {"benchmarks": dict(numbers), "gates": results})


def pairs_result(
    result: EvaluationResult, gates: Mapping[str, Mapping[str, Any]], scores: Path, page: Path | None
) -> CommandResult:
    """Return the numbers of pairs as a report and a document."""
    diagnosis = diagnose(result.scored)
    lines = [Text(f"gate          {name} {'passed' if gate['passed'] else 'missed'}") for name, gate in gates.items()]
    lines += [Text(f"scores        {scores}"), *([Text(f"report        {page}")] if page else [])]
    report = Group(evaluation_summary(result.summary), Text(), diagnosis_view(diagnosis), Text(), *lines)
    document = {
        **result.summary,
        "pad_token": result.pad_token,
        "diagnosis": diagnosis,
        "gates": dict(gates),
        "scores": str(scores),
        "report": None if page is None else str(page),
    }
    return CommandResult(report, document)
