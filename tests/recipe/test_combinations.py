"""The values of `--sweep`: how they are read, and which recipes, directories and names they give."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rmtrain.errors import RecipeError
from rmtrain.recipe.combinations import SweptRun, parse_sweep, swept_runs
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import Recipe
from tests.runs import tiny_recipe, write_recipe


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["optimizer.lr=3e-6,9e-6 run.seed=1,2,3"], {"optimizer.lr": [3e-6, 9e-6], "run.seed": [1, 2, 3]}),
        (["run.seed=1,2", "optimizer.lr=1"], {"run.seed": [1, 2], "optimizer.lr": [1]}),
        (["lora=null,{rank: 8, alpha: 16}, {rank: 4}"], {"lora": [None, {"rank": 8, "alpha": 16}, {"rank": 4}]}),
        (["optimizer.betas=[0.9, 0.95],[0.9, 0.99]"], {"optimizer.betas": [[0.9, 0.95], [0.9, 0.99]]}),
        (['model.path="a,b",c'], {"model.path": ["a,b", "c"]}),
        (["a.b=no,1e-5,true, x y"], {"a.b": ["no", 1e-5, True, "x y"]}),
    ],
)
def test_values_are_those_of_overrides(texts: Sequence[str], expected: dict[str, Any]) -> None:
    assert parse_sweep(texts) == expected
    assert list(parse_sweep(texts)) == list(expected)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(RecipeError) as raised:
        parse_sweep(["run.seed=1,1 optimizer.lr=", "lr", "a.b=1,,2", "c.d=1", "c.d=2", "x.y=train[:10%],z", "=4"])
    places = ("run.seed=1,1", "optimizer.lr=", "lr", "a.b=1,,2", "c.d=2", "x.y=", "=4")
    assert len(raised.value.problems) == len(places)
    for place, problem in zip(places, raised.value.problems, strict=True):
        assert problem.startswith(f"--sweep {place}"), problem
    with pytest.raises(RecipeError, match="at most 1,000"):
        parse_sweep([f"a.b={','.join(map(str, range(40)))} a.c={','.join(map(str, range(40)))}"])


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path, tiny_recipe(tmp_path, run={"name": "hh", "output_dir": "runs/hh"}))


def runs_of(recipe: Path, *texts: str, overrides: Sequence[str] = ()) -> list[SweptRun]:
    def load(more: Sequence[str]) -> Recipe:
        return load_recipe(recipe, [*overrides, *more])

    return swept_runs(load, parse_sweep(texts))


def test_each_run_has_its_own_directory_and_name(recipe: Path) -> None:
    runs = runs_of(recipe, "optimizer.lr=3e-6,9e-6 run.seed=1,2")
    labels = ["lr3e-6-seed1", "lr3e-6-seed2", "lr9e-6-seed1", "lr9e-6-seed2"]
    assert [run.recipe.run.output_dir for run in runs] == [f"runs/hh/{label}" for label in labels]
    assert [run.recipe.run.name for run in runs] == [f"hh-{label}" for label in labels]
    assert [(run.recipe.optimizer.lr, run.recipe.run.seed) for run in runs] == [(3e-6, 1), (3e-6, 2), (9e-6, 1), (9e-6, 2)]
    for run in runs:
        assert load_recipe(recipe, run.overrides) == run.recipe, "the command line of a run gives its recipe"
    assert runs[0].description == "optimizer.lr=3e-6 run.seed=1"


@pytest.mark.parametrize("values", ["a/x,b/x", "'a b','a;b'", '"../../x","/x"', "日本,ü"])
def test_values_become_safe_different_directories(values: str, recipe: Path) -> None:
    runs = runs_of(recipe, f"data.chat_template={values}")
    directories = [run.recipe.run.output_dir for run in runs]
    assert len(set(directories)) == 2
    assert all(Path(directory).parent == Path("runs/hh") for directory in directories)
    for run in runs:
        assert load_recipe(recipe, run.overrides) == run.recipe


def test_directories_that_differ_are_kept(recipe: Path) -> None:
    runs = runs_of(recipe, "run.output_dir=runs/a,runs/b")
    assert [run.recipe.run.output_dir for run in runs] == ["runs/a", "runs/b"]
    assert [run.recipe.run.name for run in runs] == ["hh-output_dir-runs_a", "hh-output_dir-runs_b"]


def test_mistakes_of_all_combinations_come_first(recipe: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        runs_of(recipe, "optimizer.lr=-1,1e-3,fast", "run.sed=1,2")
    assert len(raised.value.problems) == len(set(raised.value.problems)) >= 3
    assert [word for word in ("-1", "fast", "did you mean seed") if word in str(raised.value)] == [
        "-1",
        "fast",
        "did you mean seed",
    ]


def test_no_run_is_put_into_another(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="within the directory of another run"):
        runs_of(recipe, "run.output_dir=runs/a,runs/a/b")
    Path("runs/hh").mkdir(parents=True)
    Path("runs/hh/run.json").write_text("{}")
    with pytest.raises(RecipeError, match="is the directory of a run"):
        runs_of(recipe, "run.seed=1,2")


def test_uploads_do_not_replace_each_other(recipe: Path) -> None:
    own, shared = ["hub.push=true"], ["hub.push=true", "hub.id=me/model"]
    assert len(runs_of(recipe, "run.seed=1,2", overrides=own)) == 2
    with pytest.raises(RecipeError, match=r"hub\.id: "):
        runs_of(recipe, "run.seed=1,2", overrides=shared)


def test_patterns_give_the_directories(recipe: Path) -> None:
    """A pattern that tells the runs apart is used; one that does not has directories below it; braces of a name stay."""
    pattern = ['run.output_dir="runs/{run.name}-lr{optimizer.lr}-s{run.seed}"']
    runs = runs_of(recipe, "optimizer.lr=3e-6,9e-6 run.seed=1,2", overrides=pattern)
    assert [run.recipe.run.output_dir for run in runs] == [
        f"runs/hh-lr{lr}-s{seed}" for lr in ("3e-6", "9e-6") for seed in (1, 2)
    ]
    for half in ('run.output_dir="runs/s{run.seed}"', 'run.output_dir="runs/$${{x}}"'):
        runs = runs_of(recipe, "optimizer.lr=3e-6,9e-6 run.seed=1,2", overrides=[half])
        assert len({run.recipe.run.output_dir for run in runs}) == 4
        for run in runs:
            assert load_recipe(recipe, [half, *run.overrides]) == run.recipe
    assert runs[0].recipe.run.output_dir == "runs/${x}/lr3e-6-seed1", "guard"
