"""Generated files are fresh, shipped recipes load, every key is described, and values of different sections fit together."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rmtrain.recipe.explain import entries
from rmtrain.recipe.load import dump_recipe, load_recipe
from rmtrain.recipe.schema import Data, PairSource, Recipe, json_schema
from tests.recipe.recipes import GOOD, SCRATCH, assert_problems, load, problems

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("**/*.yaml"))


def test_the_json_schema_is_fresh() -> None:
    assert (ROOT / "schema/recipe.schema.json").read_text(encoding="utf-8") == json_schema(), "run `make docs`"


def test_the_reference_is_fresh(tmp_path: Path) -> None:
    docs, package = tmp_path / "docs", tmp_path / "rmtrain/recipe"
    for folder in (docs, package):
        folder.mkdir(parents=True)
    for name in ("generate.py", "DATASETS.md"):
        shutil.copy(ROOT / "docs" / name, docs)
    script = docs / "generate.py"
    subprocess.run([sys.executable, script], check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    fresh = script.with_name("recipe.md").read_text(encoding="utf-8")
    assert fresh == (ROOT / "docs/recipe.md").read_text(encoding="utf-8"), "run `make docs`"
    entries_file = "rmtrain/recipe/datasets.yaml"
    assert (tmp_path / entries_file).read_bytes() == (ROOT / entries_file).read_bytes(), "run `make docs`"
    for entry in list(entries())[1:]:
        assert all(f"| `{name}` |" in fresh for name in entry.section.model_fields), entry


def test_the_json_schema_is_closed_and_described() -> None:
    document = json.loads(json_schema())
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert document["title"] == "rmtrain recipe"
    sections = [document, *(section for section in document["$defs"].values() if "properties" in section)]
    described = 0
    for section in sections:
        assert section["additionalProperties"] is False
        assert section["description"]
        for key, value in section["properties"].items():
            assert value.get("description"), f"{section['title']}.{key} needs a docstring"
            described += 1
    assert described > 80, "guard: the keys were read"


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_shipped_recipes_load_and_survive_dumps(file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(file)
    copy = tmp_path / "recipe.yaml"
    copy.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(copy) == recipe
    first, up = file.read_text(encoding="utf-8").splitlines()[0], "../" * len(file.relative_to(ROOT / "recipes").parts)
    assert first == f"# yaml-language-server: $schema={up}schema/recipe.schema.json"


def test_the_sentiment_recipe_equals_the_seed_command() -> None:
    recipe = load_recipe(ROOT / "recipes/sentiment_pythia1b.yaml")
    (train,), (evaluated,) = recipe.data.train, recipe.data.eval
    assert (train.path, train.split) == ("trl-internal-testing/sentiment-trl-style", "train")
    assert (evaluated.path, evaluated.split) == ("trl-internal-testing/sentiment-trl-style", "test")
    assert recipe.model.model_dump()["path"] == "EleutherAI/pythia-1b-deduped"
    assert (recipe.data.chat_template, recipe.data.max_length, recipe.data.max_prompt_length) == ("simple_concat", 1024, 1024)
    assert (recipe.optimizer.lr, recipe.training.batch_size, recipe.training.epochs) == (3e-6, 32, 1)
    assert (recipe.tracking.log_every, recipe.evaluation.every) == (1, 100)
    assert (recipe.run.output_dir, recipe.hub.push) == ("models/minimal/rm_sentiment_1b", True)
    optimizer = recipe.optimizer
    assert (optimizer.schedule, optimizer.warmup, optimizer.weight_decay, optimizer.clip) == ("linear", 0.0, 0.0, 1.0), (
        "TRL's defaults"
    )


# What to replace in GOOD, by what, and the problems: `line:column|key|words of the message`.
CONFLICTS: list[tuple[str, str, list[str]]] = [
    (
        "some/model}",
        "some/model, quantization: nf4, dtype: bfloat16, trust_remote_code: true}",
        [
            "5:41|model.quantization|nf4|lora|null",
            "5:53|model.dtype|float32|lora|training.allow_bfloat16_weights",
            "5:82|model.revision|trust_remote_code|40|nothing",
        ],
    ),
    ("some/model}", "some/model, trust_remote_code: true, revision: main}", ['5:62|model.revision|40|"main"']),
    (
        "model: {path: some/model}",
        SCRATCH.replace("heads: 4", "heads: 6, key_value_heads: 4, max_positions: 512"),
        [
            "5:75|model.scratch.heads|hidden_size (64)|got 6",
            "5:95|model.scratch.key_value_heads|heads (6)|got 4",
            "5:113|data.max_length|model.scratch.max_positions (512)|got 1024",
        ],
    ),
    (
        "    - path: pairs.jsonl",
        "    - {path: a/pairs.jsonl.gz, holdout: 0.1}\n    - {path: b/pairs.csv}\n"
        "  eval: [{path: c/pairs, holdout: 0.5}]\n  max_length: 10000\nbatching: {max_tokens: 9000}",
        [
            '5:14|data.train.1.tag|"pairs"|data.train.0',
            '6:17|data.eval.0.tag|"pairs"|data.train.0',
            "6:35|data.eval.0.holdout|data.train",
            "8:24|batching.max_tokens|data.max_length (10000)|got 9000",
        ],
    ),
    (
        "    - path: pairs.jsonl",
        "    - path: pairs.jsonl\n  eval: [{path: c/test, balance: longer, repeat: 2, augment: {other_prompts: 0.5}}]",
        [
            "5:34|data.eval.0.balance|training data only|remove it",
            "5:50|data.eval.0.repeat|training data only|remove it",
            "5:62|data.eval.0.augment|training data only|remove it",
        ],
    ),
    (
        "optimizer:",
        "evaluation: {every: 100, gates: {accuracy: 0.7}}\ncheckpoints: {best: loss}\noptimizer:",
        [
            "6:21|evaluation.every|data.eval|holdout",
            "6:33|evaluation.gates|data.eval|holdout",
            "7:21|checkpoints.best|data.eval|holdout",
        ],
    ),
    (
        "optimizer:",
        "evaluation: {on_start: true, early_stopping: {metric: loss, patience: 2}}\noptimizer:",
        ["6:24|evaluation.on_start|data.eval|holdout", "6:46|evaluation.early_stopping|data.eval|holdout"],
    ),
    (
        "    - path: pairs.jsonl",
        "    - {path: pairs.jsonl, holdout: 0.1}\nevaluation: {early_stopping: {metric: loss, patience: 2}}",
        ["5:30|evaluation.early_stopping|evaluation.every"],
    ),
    ("  lr: 1e-5", "  lr: 1e-5\n  min_lr: 1e-5", ["8:11|optimizer.min_lr|lr (1e-05)"]),
    (
        "  lr: 1e-5",
        "  lr: 1e-5\n  schedule: constant\n  min_lr: 0\n  decay: 5\n  cycles: 2",
        [
            "9:11|optimizer.min_lr|constant|cosine|remove",
            "10:10|optimizer.decay|constant|warmup_stable_decay|remove",
            "11:11|optimizer.cycles|constant|cosine_with_restarts|remove",
        ],
    ),
    ("  lr: 1e-5", "  lr: 1e-5\n  schedule: wsd", ["8:13|optimizer.decay|warmup_stable_decay needs|0.2"]),
    ("  lr: 1e-5", "  lr: 1e-5\n  schedule: cosine_with_restarts", ["8:13|optimizer.cycles|cosine_with_restarts needs|3"]),
    ("  lr: 1e-5", "  lr: 1e-5\n  schedule: cosine_with_min_lr", ["8:13|optimizer.schedule|needs min_lr"]),
    ("  lr: 1e-5", "  lr: 1e-5\n  schedule: wsd\n  warmup: 0.5\n  decay: 0.6", ["10:10|optimizer.decay|(0.5)|(0.6)"]),
    ("optimizer:", "checkpoints: {load_best_at_end: true}\noptimizer:", ["6:33|checkpoints.load_best_at_end|checkpoints.best"]),
]


@pytest.mark.parametrize(("old", "new", "expected"), CONFLICTS)
def test_conflicts_between_keys_come_together(old: str, new: str, expected: list[str]) -> None:
    """Each is at the key to change, or, where that key has its default, at the key that it depends on."""
    assert GOOD.count(old) == 1, "guard: the recipe is changed in one place"
    assert_problems(problems(GOOD.replace(old, new)), [f"recipe.yaml:{line}" for line in expected])


def test_conflicts_are_refused_in_python_as_well() -> None:
    values: dict[str, Any] = {
        "run": {"name": "a", "output_dir": "b"},
        "data": {"train": [{"path": "x"}], "max_length": 9000},
        "model": {"path": "m", "dtype": "bfloat16"},
        "optimizer": {"lr": 1e-5},
        "batching": {"max_tokens": 8999},
    }
    with pytest.raises(ValidationError) as raised:
        Recipe.model_validate(values)
    assert [error["loc"] for error in raised.value.errors()] == [("model", "dtype"), ("batching", "max_tokens")]
    values |= {"lora": {}, "batching": {"max_tokens": 18000}}
    assert Recipe.model_validate(values).lora is not None


ALLOWED = [
    {"model": {"path": "m", "dtype": "bfloat16"}, "training": {"allow_bfloat16_weights": True}},
    {"model": {"path": "m", "quantization": "nf4", "dtype": "bfloat16"}, "lora": {}},
    {"model": {"path": "m", "trust_remote_code": True, "revision": "0123456789abcdef0123456789abcdef01234567"}},
    {"data": {"train": [{"path": "x", "split": "train"}], "eval": [{"path": "x", "split": "test"}]}, "evaluation": {"every": 5}},
    {"data": {"train": [{"path": "x", "holdout": 0.1}]}, "evaluation": {"gates": {"accuracy": 0.7}}},
    {"data": {"train": [{"path": "x"}, {"path": "x", "tag": "y"}]}},
    {"optimizer": {"lr": 1e-5, "name": "adamw_8bit"}, "hub": {"id": "me/my.model-1"}},
    {"data": {"train": [{"path": "x"}], "max_length": 8192}},
    {"optimizer": {"lr": 1e-5, "schedule": "wsd", "decay": 0.2, "warmup": 50, "min_lr": 1e-6, "head_lr": 1e-4}},
    {"optimizer": {"lr": 1e-5, "schedule": "cosine_with_restarts", "cycles": 3, "warmup": 0.1}},
    {
        "data": {"train": [{"path": "x", "holdout": 0.1}]},
        "evaluation": {"every": 5, "on_start": True, "early_stopping": {"metric": "accuracy", "patience": 1}},
    },
]


@pytest.mark.parametrize("sections", ALLOWED)
def test_right_combinations_are_allowed(sections: dict[str, Any]) -> None:
    base = {
        "run": {"name": "a", "output_dir": "b"},
        "data": {"train": [{"path": "x"}]},
        "model": {"path": "m"},
        "optimizer": {"lr": 1e-5},
    }
    assert Recipe.model_validate(base | sections)


def test_whole_numbers_stay_whole() -> None:
    """A number of steps is not a share, and the epochs of older recipes are dumped as before."""
    found = [
        (load(GOOD, [f"optimizer.warmup={text}", f"training.epochs={epochs}"])) for text, epochs in (("1", "2"), ("0.5", "1.5"))
    ]
    values = [(recipe.optimizer.warmup, recipe.training.epochs) for recipe in found]
    assert values == [(1, 2), (0.5, 1.5)]
    assert [type(value) for pair in values for value in pair] == [int, int, float, float]
    assert "epochs: 2\n" in dump_recipe(found[0]), "guard: read back, it is whole as well"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "~/.cache/rmtrain"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/rmtrain"),
        ({"XDG_CACHE_HOME": "/x", "HF_HOME": "/hf/"}, "/hf/rmtrain"),
        ({"XDG_CACHE_HOME": "/x", "HF_HOME": "/hf", "RMTRAIN_CACHE": "/own"}, "/own"),
        ({"XDG_CACHE_HOME": "", "HF_HOME": "", "RMTRAIN_CACHE": ""}, "~/.cache/rmtrain"),
    ],
)
def test_environment_decides_the_default_cache(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("RMTRAIN_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Data(train=[PairSource(path="x")]).cache_dir == expected
    assert Data(train=[PairSource(path="x")], cache_dir="mine").cache_dir == "mine"
