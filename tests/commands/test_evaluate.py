"""`rmtrain eval`: benchmarks, scores alone, comparisons of scores, and which model and data the arguments name."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rmtrain.command_line.model_options import EvalOptions, parse_gates
from rmtrain.commands.evaluate import EvalTarget, evaluate, find_model, output_folder, run_eval
from rmtrain.commands.evaluate_scores import gate_names
from rmtrain.commands.train import train
from rmtrain.errors import CheckpointError, DataError, RecipeError
from rmtrain.evaluation.benchmarks.measure import named
from rmtrain.evaluation.scorer import RewardScorer
from rmtrain.evaluation.scores_file import read_scores, write_scores
from tests.exports import tiny_export
from tests.forks import rmtrain
from tests.helpers import SENTENCES, pairs, write_jsonl
from tests.report.render import render
from tests.runs import metrics_of, planted_rows, tiny_recipe, write_recipe, write_rows

QUIET = Console(quiet=True)


def rm_bench_rows(count: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "id": f"row {number}",
            "domain": ["chat", "math", "code", "safety-refuse", "safety-response"][number % 5],
            "prompt": SENTENCES[number % 6],
            "chosen": [f"yes {number} {'fine ' * style}" for style in range(3)],
            "rejected": [f"no {number} {'bad ' * style}" for style in range(3)],
        }
        for number in range(count)
    ]


def reward_bench_rows() -> list[dict[str, Any]]:
    long = "far too long for the model, word by word, " * 10
    rows = [
        {"id": n, "prompt": SENTENCES[n], "chosen": f"good {n}", "rejected": f"bad {n}", "subset": subset}
        for n, subset in enumerate(["alpacaeval-easy", "mt-bench-hard", "donotanswer", "math-prm", "hep-go"])
    ]
    return [*rows, {"id": 9, "prompt": "p", "chosen": f"{long} x", "rejected": "same", "subset": "hep-go"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmarks")
    tiny_export(path / "model")
    tiny_export(path / "other", seed=2)
    (path / "data/rm_bench").mkdir(parents=True)
    (path / "data/rm_bench/total_dataset.json").write_text(json.dumps(rm_bench_rows()))
    (path / "data/rewardbench").mkdir()
    write_jsonl(path / "data/rewardbench/filtered.jsonl", reward_bench_rows())
    return path


def evaluated(**options: Any) -> dict[str, Any]:
    return run_eval(EvalOptions(**options), QUIET).document


def benchmarked(folder: Path, model: str = "model", output: str = "out", **options: Any) -> dict[str, Any]:
    given = {"benchmark": "rewardbench,rm_bench", "data_dir": folder / "data", "output": folder / output} | options
    return evaluated(target=str(folder / model), **given)


def test_trap_35_benchmark_settings_and_rows_are_complete(folder: Path) -> None:
    """The settings are stored next to the scores, and no row of a benchmark is left out."""
    benchmarks = benchmarked(folder)["benchmarks"]
    assert list(benchmarks) == ["rewardbench", "rm_bench"]
    for name, rows, cut in (("rewardbench", 6, 1), ("rm_bench", 6, 0)):
        path = folder / f"out/{name}/scores.jsonl"
        assert benchmarks[name]["scores"] == str(path)
        settings = json.loads((path.parent / "scores.settings.json").read_text())
        assert settings == benchmarks[name]["settings"]
        assert (settings["rows"], settings["rows_cut"], settings["rows_dropped"]) == (rows, cut, 0)
        assert (settings["dtype"], settings["max_length"], len(settings["template_sha256"])) == ("float32", 256, 64)
        assert len(read_scores(path)) == benchmarks[name]["rows"] == rows
    assert any("1 of 6" in line for line in benchmarks["rewardbench"]["warnings"]), "the row that was cut"


def test_lengths_and_prompts_are_those_of_the_rows(folder: Path) -> None:
    """A limit changes neither `lengths` nor the baselines of length; what it cut is recorded separately, and rows name their prompts."""
    whole, short = (
        benchmarked(folder, output=f"limit {limit}", max_length=limit, benchmark="rewardbench")["benchmarks"]["rewardbench"]
        for limit in (2048, 16)
    )
    one, other = (read_scores(Path(numbers["scores"])) for numbers in (whole, short))
    assert [row.lengths for row in one] == [row.lengths for row in other]
    assert not any(row.cut for row in one)
    left = [length - removed for row in other for length, removed in zip(row.lengths, row.cut or (0, 0), strict=True)]
    assert max(left) == 16
    assert sum(bool(row.cut) for row in other) == short["settings"]["rows_cut"] > 3, "guard: rows were cut"
    assert (whole["longer_wins"], whole["shorter_wins"]) == (short["longer_wins"], short["shorter_wins"])
    prompts = [row["prompt"] for row in reward_bench_rows()]
    assert [row.prompt for row in one] == [row.prompt for row in other]
    assert len({row.prompt for row in one}) == len(set(prompts))
    assert all(len(row.prompt) == 16 for row in one)


def test_pairs_name_prompts_and_what_was_cut(folder: Path, tmp_path: Path) -> None:
    """Rows of one prompt widen the interval, also from the file alone; a file that does not name prompts says so."""
    rows = [row | {"prompt": f"{'A long question, ' * 9}{n // 5}?"} for n, row in enumerate(pairs(60))]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    settings = (f"data.cache_dir={tmp_path / 'cache'}", "data.max_length=120", "data.overlong=truncate_prompt_left")
    document = evaluated(target=str(folder / "model"), data=str(data), output=tmp_path, overrides=settings)
    scored = read_scores(Path(document["scores"]))
    assert len(scored) > 50, "guard"
    assert len({row.prompt for row in scored}) == 12
    assert all(row.cut and row.cut[0] == row.cut[1] > 0 and max(row.lengths) - row.cut[0] <= 120 for row in scored)
    keys = ("accuracy", "accuracy_low", "accuracy_high", "longer_wins", "warnings")
    again = evaluated(scores=Path(document["scores"]))
    assert {key: again[key] for key in keys} == {key: document[key] for key in keys}
    bare = tmp_path / "bare.jsonl"
    write_scores(bare, [replace(row, prompt="") for row in scored])
    alone = evaluated(scores=bare)
    assert len(alone["warnings"]) == len(document["warnings"]) + 1
    assert alone["accuracy_high"] != document["accuracy_high"]


def test_shared_prompt_scores_like_single_responses(folder: Path) -> None:
    """Six responses that share a prompt get the rewards that each gets alone."""
    numbers = benchmarked(folder, output="shared", benchmark="rm_bench")["benchmarks"]["rm_bench"]
    assert numbers["settings"]["layout"] == "shared_prefix"
    scorer, largest = RewardScorer(str(folder / "model")), 0.0
    for scored, row in zip(read_scores(Path(numbers["scores"])), rm_bench_rows(), strict=True):
        assert scored.id == row["id"]
        for reward, response in zip(scored.rewards, [*row["chosen"], *row["rejected"]], strict=True):
            messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": response}]
            largest = max(largest, abs(reward - scorer.score([messages])[0]))
        assert np.ptp(scored.rewards) > 1e-3, "guard: responses differ"
    assert largest < 1e-5


def test_benchmark_numbers_from_scores_alone(folder: Path) -> None:
    """A file of scores gives the same numbers again, by its settings or by --benchmark."""
    benchmarks = benchmarked(folder, output="again")["benchmarks"]
    keys = ("score", "sections", "subsets", "ties", "longer_wins")
    for name, numbers in benchmarks.items():
        again = evaluated(scores=Path(numbers["scores"]))["benchmarks"][name]
        assert {key: again[key] for key in keys} == {key: numbers[key] for key in keys}
    bare = folder / "bare.jsonl"
    shutil.copy(benchmarks["rm_bench"]["scores"], bare)
    assert "benchmarks" not in evaluated(scores=bare), "without settings they are pairs"
    assert evaluated(scores=bare, benchmark="rm_bench")["benchmarks"]["rm_bench"]["score"] == benchmarks["rm_bench"]["score"]
    with pytest.raises(RecipeError, match="--scores"):
        evaluated(scores=bare, benchmark="rm_bench,llmbar")
    with pytest.raises(DataError, match="rewardbench"):
        evaluated(scores=bare, benchmark="rewardbench")
    with pytest.raises(RecipeError, match="--report"):
        evaluated(scores=bare, benchmark="rm_bench", report=folder / "report.html")


def test_gates_of_benchmarks_and_sections(folder: Path) -> None:
    document = benchmarked(folder, fail_under=("rm_bench=1.1", "rewardbench.chat_hard=0.0", "rm_bench.math=2"))
    gates = document["gates"]
    assert {name: gate["passed"] for name, gate in gates.items()} == {
        "rm_bench": False,
        "rewardbench.chat_hard": True,
        "rm_bench.math": False,
    }
    assert gates["rm_bench"]["value"] == document["benchmarks"]["rm_bench"]["score"]
    names = gate_names(named("rm_bench"))
    assert names["rm_bench.chat"] == ("rm_bench", "chat")
    for gate in ("rmbench=1", "rm_bench.poetry=1", "rm_bench=x"):
        with pytest.raises(RecipeError) as refused:
            parse_gates([gate], names)
        assert refused.value.problems[0].startswith(f"--fail-under {gate}: ")
        assert "rm_bench" in refused.value.problems[0]


def test_benchmark_report_has_numbers_and_settings(folder: Path) -> None:
    options = EvalOptions(
        target=str(folder / "model"),
        benchmark="rewardbench",
        data_dir=folder / "data",
        output=folder / "report",
        fail_under=["rewardbench=0.1"],
    )
    result = run_eval(options, QUIET)
    text = render(result.report, width=110)
    for shown in ("RewardBench", "Chat Hard", "95 % interval", "float32", "256", "1 rows cut", "0 dropped", "gate"):
        assert shown in text
    assert json.dumps(result.document), "it is JSON"


def test_cli_gates_and_compares_benchmarks(folder: Path) -> None:
    """A missed gate is exit code 6; the difference of two models is that of their scores; unequal settings are exit code 3."""
    base = ["eval", folder / "model", "--benchmark", "rm_bench", "--data-dir", folder / "data", "--output", folder / "cli"]
    missed = rmtrain(*base, "--fail-under", "rm_bench=1.0", "--json")
    assert missed.returncode == 6, missed.stderr
    assert "error: gate rm_bench: " in missed.stderr
    document = json.loads(missed.stdout)
    assert document["benchmarks"]["rm_bench"]["n"] == 6
    benchmarked(folder, model="other", output="second", benchmark="rm_bench")
    scores = [folder / f"{name}/rm_bench/scores.jsonl" for name in ("cli", "second")]
    compared = evaluated(compare=(scores[0], scores[1]))
    assert compared["difference"] == compared["other"]["value"] - compared["one"]["value"]
    benchmarked(folder, output="short", benchmark="rm_bench", max_length=32)
    refused = rmtrain("eval", "--compare", scores[0], folder / "short/rm_bench/scores.jsonl")
    assert refused.returncode == 3
    assert "max_length: 256 against 32" in refused.stderr


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"benchmark": "rm_bench", "data": "x.jsonl"}, "--data: "),
        ({"benchmark": "rm_bench", "overrides": ("a.b=1",)}, "an override: "),
        ({"scores": Path("s"), "target": "m"}, "a model or recipe: "),
        ({"compare": (Path("a"), Path("b")), "scores": Path("s")}, "--scores: "),
        ({"target": "m", "max_length": 512}, "--max-length: "),
        ({"target": "m", "precision": "bfloat16"}, "--precision: "),
        ({"benchmark": "rm_bench", "precision": "half"}, "--precision"),
        ({"target": "m", "fail_under": ("speed=1",)}, "--fail-under speed=1: "),
    ],
)
def test_conflicting_options_are_refused(options: dict[str, Any], place: str) -> None:
    with pytest.raises(RecipeError) as refused:
        EvalOptions(**options).check()
    assert refused.value.problems[0].startswith(place)


def test_model_named_by_recipe_run_or_path(tmp_path: Path) -> None:
    """A recipe stands for the model of its run; a run directory or its model for the run; anything else is a model."""
    recipe = write_recipe(tmp_path, tiny_recipe(tmp_path))
    with pytest.raises(CheckpointError) as absent:
        find_model(EvalOptions(target=str(recipe)))
    assert f"{tmp_path}/run/model: " in absent.value.problems[0]
    assert f"rmtrain train {recipe}" in absent.value.problems[0]
    (tmp_path / "run/model").mkdir(parents=True)
    shutil.copy(recipe, tmp_path / "run/recipe.yaml")
    (tmp_path / "run/run.json").write_text("{}")
    model, run = str(tmp_path / "run/model"), tmp_path / "run"
    for options in (EvalOptions(target=str(recipe)), EvalOptions(recipe=recipe)):
        target = find_model(options)
        assert (target.model, target.run, target.by_recipe) == (model, run, True)
    for named_by in (str(run), model):
        target = find_model(EvalOptions(target=named_by))
        assert (target.model, target.run, target.recipe) == (model, run, None)
    target = find_model(EvalOptions(target="owner/model", recipe=recipe))
    assert (target.model, target.run, target.by_recipe) == ("owner/model", None, False)
    assert target.recipe is not None


@pytest.mark.usefixtures("no_reload")
def test_data_is_evaluated_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`eval RUN --data FILE`: no held-out row and no gate of the recipe, also for a file with the name of the training file.

    Its scores go into the run, next to nothing that training wrote, and never into the current directory.
    """
    sources = [{"path": str(tmp_path / "train.jsonl"), "holdout": 0.3, "chosen": "chosen"}]
    recipe = tiny_recipe(tmp_path, data={"train": sources}, evaluation={"gates": {"loss": 0.0}})
    assert train(recipe, QUIET).document["evaluation"]["n"] > 16, "guard: rows are held out"
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    other = write_rows(tmp_path / "else/train.jsonl", planted_rows(9, seed=3))
    before = (tmp_path / "run/scores.jsonl").read_bytes()
    for target in ({"target": str(tmp_path / "run")}, {"recipe": write_recipe(tmp_path, recipe)}):
        document = evaluated(**target, data=str(other), report=tmp_path / "report.html")
        assert (document["n"], list(document["sources"]), document["gates"]) == (9, ["train"], {})
        assert Path(document["scores"]) == tmp_path / "run/evaluations/train/scores.jsonl"
        assert len(read_scores(Path(document["scores"]))) == 9
    assert (tmp_path / "run/scores.jsonl").read_bytes() == before
    changed = evaluated(target=str(tmp_path / "run"), overrides=("data.max_length=90",))
    assert Path(changed["scores"]) == tmp_path / "run/evaluations/tiny/scores.jsonl"
    assert evaluate(tmp_path / "run", data=other).summary["n"] == 9
    assert evaluate(tmp_path / "run").summary["n"] == evaluate(tmp_path / "run", recipe).summary["n"] > 16
    with pytest.raises(RecipeError, match=r"^data: "):
        evaluate(tmp_path / "run", recipe, data=other)
    assert [file.name for file in Path.cwd().iterdir()] == ["train.jsonl"]


def test_scores_of_a_model_lie_in_its_directory(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model without a run keeps its scores itself, and refuses early where nothing can be written."""
    shutil.copytree(folder / "model", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    data = write_jsonl(tmp_path / "rows & more.jsonl", pairs(9))
    document = evaluated(target="model", data=data.name, overrides=(f"data.cache_dir={tmp_path / 'cache'}",))
    assert document["scores"] == "model/evaluations/rows-more/scores.jsonl"
    numbers = evaluated(target="model", benchmark="rm_bench", data_dir=folder / "data")["benchmarks"]["rm_bench"]
    assert numbers["scores"] == "model/benchmarks/rm_bench/scores.jsonl"
    assert RewardScorer("model").path == "model", "guard: it is still a model"
    on_hub = output_folder(EvalOptions(), EvalTarget("owner/model", None, None, False), "benchmarks")
    assert on_hub.parts[-3:] == ("evaluations", "owner--model", "benchmarks")
    assert on_hub.is_absolute()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RecipeError, match=r"^--output: "):
        evaluated(target="model", data=data.name)


@pytest.mark.usefixtures("no_reload")
def test_runs_compare_by_their_directories(tmp_path: Path) -> None:
    """Training writes the settings next to the scores, so that two runs compare without a warning."""
    runs = [tmp_path / name for name in ("one", "two")]
    for number, run in enumerate(runs, start=1):
        train(tiny_recipe(tmp_path, run={"output_dir": str(run), "seed": number}, training={"max_steps": 2}), QUIET)
    compared = evaluated(compare=(runs[0], runs[1]))
    assert compared["warnings"] == compared["differing"] == []
    assert compared["one"]["path"] == str(runs[0] / "scores.jsonl")
    assert evaluated(scores=runs[0])["n"] == compared["units"] == 16
    with pytest.raises(RecipeError, match=rf"^--compare: {tmp_path}/three"):
        evaluated(compare=(runs[0], tmp_path / "three"))


def test_missing_models_and_files_are_refused(folder: Path) -> None:
    with pytest.raises(RecipeError):
        evaluated(benchmark="rm_bench", data_dir=folder / "data")
    with pytest.raises(RecipeError, match="--data"):
        evaluated(target=str(folder / "model"))
    with pytest.raises(CheckpointError, match="absent"):
        benchmarked(folder, model="absent")
    with pytest.raises(RecipeError, match=r"^--scores: absent\.jsonl"):
        evaluated(scores=Path("absent.jsonl"))
    with pytest.raises(RecipeError) as missing:
        evaluated(compare=(Path("absent.jsonl"), Path("gone.jsonl")))
    assert [problem.split()[1] for problem in missing.value.problems] == ["absent.jsonl", "gone.jsonl"]


def test_overrides_apply_without_a_recipe(folder: Path, tmp_path: Path) -> None:
    """`eval MODEL --data FILE a.b=v` reads the sections it needs, from overrides alone."""
    data = write_jsonl(tmp_path / "it's, {pairs}.jsonl", pairs(9))
    base = {"target": str(folder / "model"), "data": str(data), "output": tmp_path}
    settings = (f"data.cache_dir={tmp_path / 'cache'}", "data.max_length=96", "objective.label_smoothing=0.1")
    document = evaluated(**base, overrides=settings)
    written = json.loads((tmp_path / "scores.settings.json").read_text())
    assert (document["n"], written["max_length"], written["objective"]["label_smoothing"]) == (9, 96, 0.1)
    with pytest.raises(RecipeError, match=r"training\.precision"):
        evaluated(**base, overrides=("training.precision=float8",))
    with pytest.raises(RecipeError, match="optimizer"):
        evaluated(**base, overrides=("optimizer.lr=1.0e-5",))


def ranked_rows(count: int) -> list[dict[str, Any]]:
    """Prompts with three to five responses of different lengths, best first."""
    rows = []
    for number in range(count):
        places = range(3 + number % 3)
        prompt = f"{number}: {SENTENCES[number % 6]}"
        rows.append({"prompt": prompt, "answers": [f"{'word ' * k}{number}" for k in places], "scores": [-k for k in places]})
    return rows


@pytest.mark.parametrize(
    "objective",
    [
        {"type": "plackett_luce", "center_rewards": 0.02},
        {"type": "bradley_terry", "center_rewards": 0.02, "label_smoothing": 0.1},
    ],
)
def test_eval_loss_is_the_training_loss(tmp_path: Path, objective: dict[str, Any], no_reload: None) -> None:
    """In a run of one step over all rows at a learning rate of almost 0, `train/loss` is `eval/loss` of the same rows.

    `eval RUN` and `eval --scores` give the same loss again, by the objective in the settings.
    """
    rows = write_rows(tmp_path / "ranked.jsonl", ranked_rows(12))
    source = {"path": str(rows), "format": "ranked", "responses": "answers", "score": "scores"}
    recipe = tiny_recipe(
        tmp_path,
        data={"train": [source], "eval": [{**source, "tag": "again"}], "allow_overlap": True, "max_drop_fraction": 1.0},
        objective=objective,
        optimizer={"lr": 1e-30, "schedule": "constant"},
        training={"batch_size": 12, "max_steps": 1},
    )
    document = train(recipe, QUIET).document["evaluation"]
    logged = {name: value for line in metrics_of(tmp_path / "run") for name, value in line.items()}
    assert document["n"] == 12, "guard: one step has all rows"
    assert logged["eval/loss"] == document["loss"] == pytest.approx(logged["train/loss"], rel=1e-6)

    scores = tmp_path / "run/scores.jsonl"
    plain = tmp_path / "plain.jsonl"
    shutil.copy(scores, plain)
    assert evaluated(scores=scores)["loss"] == document["loss"]
    assert evaluated(scores=plain)["loss"] != document["loss"], "guard: without settings it is plain Bradley-Terry"
    settings = json.loads((tmp_path / "run/scores.settings.json").read_text())
    assert evaluated(target=str(tmp_path / "run"))["loss"] == document["loss"]
    assert json.loads((tmp_path / "run/scores.settings.json").read_text()) == settings, "training writes them too"
    assert settings["objective"]["type"] == objective["type"]
