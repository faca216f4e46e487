"""Public benchmarks during the training: in metrics, samples, trackers, gates and report, as `rmtrain eval --benchmark` computes them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rmtrain.command_line.model_options import EvalOptions
from rmtrain.commands.evaluate import run_eval
from rmtrain.commands.train import train
from rmtrain.errors import DataError, RecipeError
from rmtrain.evaluation.scores_file import read_scores
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import Recipe
from tests.forks import ON_CPU, fork_server, rmtrain
from tests.runs import metrics_of, styled_rows, tiny_recipe, write_recipe, write_rows

QUIET = Console(quiet=True)


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    """Make a recipe of 6 steps that evaluates at 2, 4 and 6, and on a benchmark of 10 rows at 4 and 6."""
    write_rows(folder / "rm_bench.jsonl", styled_rows(10))
    benchmark = {"name": "rm_bench", "path": str(folder / "rm_bench.jsonl"), "every": 4}
    evaluation = {"every": 2, "benchmarks": [benchmark], "samples": 2, **changes.pop("evaluation", {})}
    return tiny_recipe(folder, evaluation=evaluation, **changes)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run with a benchmark, a tracker and gates that are reached."""
    folder = tmp_path_factory.mktemp("benchmarks")
    gates = {"accuracy": 0.01, "rm_bench": 0.01, "rm_bench.chat": 0.01}
    recipe = recipe_of(folder, evaluation={"gates": gates}, tracking={"log_every": 1, "to": ["tensorboard"]})
    document = train(recipe, QUIET).document
    (folder / "document.json").write_text(json.dumps(document))
    return folder


def test_benchmark_is_measured_when_due(folder: Path) -> None:
    """At its own steps and at the end, in the line of the evaluation, with its sections."""
    evaluations = {line["step"]: line for line in metrics_of(folder / "run") if "eval/accuracy" in line}
    assert [step for step, line in evaluations.items() if "eval/rm_bench" in line] == [4, 6]
    assert list(evaluations) == [2, 4, 6]
    names = {name for name in evaluations[6] if name.startswith("eval/rm_bench")}
    assert names == {"eval/rm_bench", *(f"eval/rm_bench.{section}" for section in ("chat", "math", "code", "safety"))}
    document = json.loads((folder / "document.json").read_text())
    assert document["benchmarks"]["rm_bench"]["score"] == evaluations[6]["eval/rm_bench"]
    assert document["gates"]["rm_bench.chat"]["value"] == evaluations[6]["eval/rm_bench.chat"]
    assert set(document["gates"]) == {"accuracy", "rm_bench", "rm_bench.chat"}
    assert evaluations[4]["eval/rm_bench"] != evaluations[6]["eval/rm_bench"], "guard: training changes it"


def test_eval_gives_the_scores_of_the_training(folder: Path) -> None:
    """`rmtrain eval RUN --benchmark` scores the export as the training scored the model: each row once, rewards within 1e-5."""
    scores = folder / "run/benchmarks/rm_bench/scores.jsonl"
    during = read_scores(scores)
    options = EvalOptions(
        target=str(folder / "run"), benchmark="rm_bench", data_dir=folder / "rm_bench.jsonl", output=folder / "again"
    )
    numbers = run_eval(options, QUIET).document["benchmarks"]["rm_bench"]
    after = read_scores(folder / "again/rm_bench/scores.jsonl")
    assert [(row.id, row.source, row.lengths, row.prompt) for row in after] == [
        (row.id, row.source, row.lengths, row.prompt) for row in during
    ]
    for one, two in zip(during, after, strict=True):
        assert one.rewards == pytest.approx(two.rewards, abs=1e-5)
    settings = [
        json.loads(path.with_name("scores.settings.json").read_text())
        for path in (scores, folder / "again/rm_bench/scores.jsonl")
    ]
    assert settings[0] == settings[1] | {"model": settings[0]["model"], "layout": settings[0]["layout"]}
    alone = run_eval(EvalOptions(scores=scores), QUIET).document["benchmarks"]["rm_bench"]
    last = metrics_of(folder / "run")[-1]
    assert alone["score"] == last["eval/rm_bench"] == pytest.approx(numbers["score"], abs=1e-9)
    assert len(during) == 10, "guard"


def test_samples_trackers_and_report_have_it(folder: Path) -> None:
    samples = [line for line in lines(folder, "samples.jsonl") if line["id"].startswith("rm_bench: ")]
    assert [line["step"] for line in samples] == [4, 4, 6, 6]
    assert samples[0]["id"] == samples[2]["id"]
    assert samples[0]["rewards"] != samples[2]["rewards"]
    files = [EventAccumulator(str(path)).Reload() for path in (folder / "run").rglob("events.out.tfevents.*")]
    tracked = [
        event.step for file in files if "eval/rm_bench" in file.Tags()["scalars"] for event in file.Scalars("eval/rm_bench")
    ]
    assert tracked == [4, 6]
    html = (folder / "run/report.html").read_text()
    assert re.search(r"<figcaption>RM-Bench</figcaption>", html)
    assert 'id="benchmarks"' in html
    assert "gate rm bench.chat" in html


def test_missed_benchmark_gate_exits_6(tmp_path: Path) -> None:
    """The exit code is 6, and `rmtrain eval RUN`, which evaluates pairs, does not apply that gate."""
    recipe = recipe_of(
        tmp_path, evaluation={"gates": {"rm_bench": 1.0, "accuracy": 0.01}, "every": None, "benchmarks": ["rm_bench"]}
    )
    path = write_recipe(tmp_path, recipe)
    override = f"evaluation.benchmarks=[{{name: rm_bench, path: {tmp_path / 'rm_bench.jsonl'}}}]"
    trained = rmtrain("train", path, override)
    assert trained.returncode == 6, trained.stderr
    assert re.search(r"error: gate rm_bench: required 1\.0, got 0\.\d+, missed by", trained.stderr)
    assert load_recipe(tmp_path / "run/recipe.yaml").evaluation.benchmarks[0].path == str(tmp_path / "rm_bench.jsonl")
    assert run_eval(EvalOptions(target=str(tmp_path / "run")), QUIET).document["gates"].keys() == {"accuracy"}


def test_early_stop_still_ends_with_every_benchmark(tmp_path: Path) -> None:
    """It stops after step 4, which is none of the benchmark's; the last line has its evaluation and the benchmark."""
    recipe = recipe_of(
        tmp_path,
        rows=96,
        evaluation={"early_stopping": {"metric": "loss", "patience": 1}},
        optimizer={"lr": 1e-9},
        model=tiny_recipe(tmp_path).model.model_dump() | {"dropout": 0.0},
    )
    benchmark = recipe.evaluation.benchmarks[0].model_copy(update={"every": 100})
    recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"benchmarks": (benchmark,)})})
    document = train(recipe, QUIET).document
    assert document["stopped_early"], "guard"
    last = metrics_of(tmp_path / "run")[-1]
    assert last["step"] == document["steps"] < 12
    assert last["eval/accuracy"] == document["evaluation"]["accuracy"]
    assert last["eval/rm_bench"] == document["benchmarks"]["rm_bench"]["score"]


def test_run_without_pairs_has_its_benchmark(tmp_path: Path) -> None:
    """Benchmarks alone are evaluated, gated and reported where there is no evaluation data."""
    recipe = recipe_of(
        tmp_path, data={**tiny_recipe(tmp_path).data.model_dump(), "eval": []}, evaluation={"gates": {"rm_bench": 0.01}}
    )
    document = train(recipe, QUIET).document
    assert document["evaluation"] is None
    assert document["gates"]["rm_bench"]["passed"]
    assert [line["step"] for line in metrics_of(tmp_path / "run") if "eval/rm_bench" in line] == [4, 6]
    html = (tmp_path / "run/report.html").read_text()
    assert "gate rm bench" in html
    assert "RM-Bench" in html


@pytest.mark.parametrize(
    ("evaluation", "error", "place"),
    [
        ({"gates": {"rm_bench.poetry": 0.5}}, RecipeError, r"^evaluation\.gates\.rm_bench\.poetry: .*rm_bench\.chat"),
        (
            {"benchmarks": [{"name": "rm_bench", "path": "none.jsonl"}]},
            DataError,
            r"^evaluation\.benchmarks: rm_bench: .*none\.jsonl",
        ),
        ({"benchmarks": ["llmbar"]}, DataError, r"^evaluation\.benchmarks: llmbar: .*path"),
    ],
)
def test_faults_end_before_the_first_step(evaluation: dict[str, Any], error: type[Exception], place: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=place):
        train(recipe_of(tmp_path, evaluation=evaluation), QUIET)
    assert not (tmp_path / "run").exists()


def test_two_ranks_count_each_row_once(folder: Path, tmp_path: Path) -> None:
    """On two ranks the scores of the benchmark are those of one process, within rounding."""
    path = write_recipe(tmp_path, recipe_of(tmp_path))
    ended = fork_server().run("train", str(path), processes=2, **ON_CPU)
    assert ended.code == 0, ended.stderr
    one, two = (read_scores(run / "run/benchmarks/rm_bench/scores.jsonl") for run in (folder, tmp_path))
    assert [row.id for row in one] == [row.id for row in two]
    for first, second in zip(one, two, strict=True):
        assert first.rewards == pytest.approx(second.rewards, abs=1e-4)
    assert json.loads((tmp_path / "run/environment.json").read_text())["processes"] == 2, "guard"
