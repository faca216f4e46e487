"""`rmtrain eval --benchmark`, `--scores` and `--compare`, as a user runs them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rmtrain.commands.benchmarks import benchmark_scores, eval_benchmarks, model_of, parse_gates
from rmtrain.commands.eval_choice import run as choose
from rmtrain.commands.options import EvalOptions
from rmtrain.errors import CheckpointError, DataError, RecipeError
from rmtrain.evaluation.benchmarks.registry import named
from rmtrain.evaluation.scorer import RewardScorer
from rmtrain.evaluation.scores_file import read_scores
from tests.exports import tiny_export
from tests.helpers import SENTENCES, write_jsonl
from tests.report.render import render
from tests.runs import rmtrain, tiny_recipe, write_recipe

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


def run(folder: Path, model: str = "model", output: str = "out", **options: Any) -> dict[str, Any]:
    given = {"benchmarks": "rewardbench,rm_bench", "data_dir": folder / "data", "output": folder / output} | options
    return eval_benchmarks(QUIET, target=str(folder / model), recipe_path=None, **given).document


def test_trap_35_settings_stand_beside_the_numbers_and_no_row_is_left_out(folder: Path) -> None:
    found = run(folder)["benchmarks"]
    assert list(found) == ["rewardbench", "rm_bench"]
    for name, rows, cut in (("rewardbench", 6, 1), ("rm_bench", 6, 0)):
        path = folder / f"out/{name}/scores.jsonl"
        assert found[name]["scores"] == str(path)
        settings = json.loads((path.parent / "scores.settings.json").read_text())
        assert settings == found[name]["settings"]
        assert (settings["rows"], settings["rows_cut"], settings["rows_dropped"]) == (rows, cut, 0)
        assert (settings["dtype"], settings["max_length"], len(settings["template_sha256"])) == ("float32", 256, 64)
        assert len(read_scores(path)) == found[name]["rows"] == rows
    assert any("1 of 6 rows lost their beginning" in line for line in found["rewardbench"]["warnings"])


def test_six_responses_that_share_a_prompt_are_scored_as_one_by_one(folder: Path) -> None:
    found = run(folder, output="shared", benchmarks="rm_bench")["benchmarks"]["rm_bench"]
    assert found["settings"]["layout"] == "shared_prefix"
    scorer, largest = RewardScorer(str(folder / "model")), 0.0
    for scored, row in zip(read_scores(Path(found["scores"])), rm_bench_rows(), strict=True):
        assert scored.id == row["id"]
        for reward, response in zip(scored.rewards, [*row["chosen"], *row["rejected"]], strict=True):
            messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": response}]
            largest = max(largest, abs(reward - scorer.score([messages])[0]))
        assert np.ptp(scored.rewards) > 1e-3, "guard: responses differ"
    assert largest < 1e-5


def test_the_numbers_can_be_computed_again_from_scores_alone(folder: Path) -> None:
    found = run(folder, output="again")["benchmarks"]
    for name, numbers in found.items():
        alone = benchmark_scores(Path(numbers["scores"]), None, [])
        assert alone is not None
        again = alone.document["benchmarks"][name]
        assert {key: again[key] for key in ("score", "sections", "subsets", "ties", "longer_wins")} == {
            key: numbers[key] for key in ("score", "sections", "subsets", "ties", "longer_wins")
        }
    bare = folder / "bare.jsonl"
    shutil.copy(found["rm_bench"]["scores"], bare)
    assert benchmark_scores(bare, None, []) is None, "nothing says what it is of"
    with pytest.raises(RecipeError, match="--scores is of one benchmark"):
        benchmark_scores(bare, "rm_bench,llmbar", [])
    with pytest.raises(DataError, match="rewardbench: the rows are not its own"):
        benchmark_scores(bare, "rewardbench", [])


def test_gates_of_benchmarks_and_sections(folder: Path) -> None:
    document = run(folder, gates=["rm_bench=1.1", "rewardbench.chat_hard=0.0", "rm_bench.math=2"])
    gates = document["gates"]
    assert {name: gate["passed"] for name, gate in gates.items()} == {
        "rm_bench": False,
        "rewardbench.chat_hard": True,
        "rm_bench.math": False,
    }
    assert gates["rm_bench"]["value"] == document["benchmarks"]["rm_bench"]["score"]
    for gate, said in (
        ("rmbench=1", "expected one of rm_bench, as"),
        ("rm_bench.poetry=1", "rm_bench.chat"),
        ("rm_bench=x", "a number"),
    ):
        with pytest.raises(RecipeError, match=said):
            parse_gates([gate], named("rm_bench"))


def test_the_report_says_it_all(folder: Path) -> None:
    outcome = eval_benchmarks(
        QUIET,
        target=str(folder / "model"),
        recipe_path=None,
        benchmarks="rewardbench",
        data_dir=folder / "data",
        output=folder / "report",
        gates=["rewardbench=0.1"],
    )
    text = render(outcome.report, width=110)
    for said in ("RewardBench", "Chat Hard", "95 % interval", "float32, max_length 256, 1 rows cut, 0 dropped, template", "gate"):
        assert said in text
    assert json.dumps(outcome.document), "it is JSON"


def test_the_command_line_gates_and_compares(folder: Path) -> None:
    base = ["eval", folder / "model", "--benchmark", "rm_bench", "--data-dir", folder / "data", "--output", folder / "cli"]
    missed = rmtrain(*base, "--fail-under", "rm_bench=1.0", "--json")
    assert missed.returncode == 6, missed.stderr
    assert "error: gate rm_bench: required 1.0, got" in missed.stderr
    document = json.loads(missed.stdout)
    assert document["benchmarks"]["rm_bench"]["n"] == 6
    run(folder, model="other", output="second", benchmarks="rm_bench")
    scores = [folder / f"{name}/rm_bench/scores.jsonl" for name in ("cli", "second")]
    found = choose(EvalOptions(compare=(scores[0], scores[1])), QUIET).document
    assert found["difference"] == found["other"]["value"] - found["one"]["value"]
    run(folder, output="short", benchmarks="rm_bench", max_length=32)
    refused = rmtrain("eval", "--compare", scores[0], folder / "short/rm_bench/scores.jsonl")
    assert refused.returncode == 3
    assert "max_length: 256 against 32" in refused.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"benchmark": "rm_bench", "data": "x.jsonl"}, "--data:"),
        ({"benchmark": "rm_bench", "overrides": ("a.b=1",)}, "an override:"),
        ({"scores": Path("s"), "target": "m"}, "a model or recipe:"),
        ({"compare": (Path("a"), Path("b")), "scores": Path("s")}, "--scores:"),
        ({"target": "m", "max_length": 512}, "--max-length:"),
        ({"target": "m", "precision": "bfloat16"}, "--precision:"),
        ({"benchmark": "rm_bench", "precision": "half"}, "--precision:"),
        ({"target": "m", "fail_under": ("speed=1",)}, "--fail-under speed=1: expected one of accuracy"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        EvalOptions(**options).check()
    assert refused.value.problems[0].startswith(said)


def test_a_model_is_named_by_its_recipe_its_run_or_itself(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_recipe(tmp_path))
    with pytest.raises(CheckpointError, match="run/model: there is no model; run `rmtrain train"):
        model_of(str(recipe), None)
    (tmp_path / "run/model").mkdir(parents=True)
    shutil.copy(recipe, tmp_path / "run/recipe.yaml")
    model, run = str(tmp_path / "run/model"), tmp_path / "run"
    assert model_of(str(recipe), None) == model_of(None, recipe) == (model, run)
    assert model_of(str(run), None) == model_of(model, None) == (model, run)
    assert model_of("owner/model", None) == ("owner/model", None)


def test_what_is_not_there(folder: Path) -> None:
    with pytest.raises(RecipeError, match="expected a recipe, a run directory or a model"):
        eval_benchmarks(QUIET, target=None, recipe_path=None, benchmarks="rm_bench", data_dir=folder / "data")
    with pytest.raises(CheckpointError, match="there is no directory"):
        run(folder, model="absent")
    with pytest.raises(RecipeError, match=r"--scores: absent\.jsonl is not there"):
        benchmark_scores(Path("absent.jsonl"), None, [])
