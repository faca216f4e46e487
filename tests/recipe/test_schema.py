"""What is generated from the schema is fresh, what we ship loads, and every key is described."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rmtrain.commands.schema import schema
from rmtrain.recipe.explain import entries, follow, in_words
from rmtrain.recipe.load import dump_recipe, load_recipe
from rmtrain.recipe.schema import PairSource, Recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_the_json_schema_is_fresh() -> None:
    assert (ROOT / "schema/recipe.schema.json").read_text(encoding="utf-8") == schema(), "run `make docs`"


def test_the_reference_is_fresh(tmp_path: Path) -> None:
    script = tmp_path / "generate.py"
    script.write_text((ROOT / "docs/generate.py").read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([sys.executable, script], check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    fresh = script.with_name("recipe.md").read_text(encoding="utf-8")
    assert fresh == (ROOT / "docs/recipe.md").read_text(encoding="utf-8"), "run `make docs`"
    for entry in list(entries())[1:]:
        assert all(f"| `{name}` |" in fresh for name in entry.section.model_fields), entry


def test_the_json_schema_closes_every_section_and_describes_every_key() -> None:
    document = json.loads(schema())
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
def test_every_recipe_we_ship_loads_and_survives_a_dump(file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(file)
    copy = tmp_path / "recipe.yaml"
    copy.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(copy) == recipe
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=../schema/recipe.schema.json"


def test_the_sentiment_recipe_says_what_the_seed_command_says() -> None:
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


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("trl-internal-testing/sentiment-trl-style", "sentiment-trl-style"),
        ("data/hh_harmless.jsonl.gz", "hh_harmless"),
        ("a/b/pairs.json", "pairs"),
        ("pairs.v2.parquet", "pairs.v2"),
        ("org/model-v0.2", "model-v0.2"),
        ("some/folder/", "folder"),
        (".", "."),
        ("/", "/"),
    ],
)
def test_the_title_of_a_source_is_its_tag_or_the_end_of_its_path(path: str, title: str) -> None:
    assert PairSource(path=path).title == title
    assert PairSource(path=path, tag="mine").title == "mine"


def test_checks_between_sections_hold_in_python_too() -> None:
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
]


@pytest.mark.parametrize("sections", ALLOWED)
def test_checks_between_sections_allow_what_is_right(sections: dict[str, Any]) -> None:
    base = {
        "run": {"name": "a", "output_dir": "b"},
        "data": {"train": [{"path": "x"}]},
        "model": {"path": "m"},
        "optimizer": {"lr": 1e-5},
    }
    assert Recipe.model_validate(base | sections)


@pytest.mark.parametrize(
    ("location", "path", "words"),
    [
        (("data", "train", 0, "pair", "data_files", "tuple[str, ...]", 0), "data.train.0.data_files.0", "text"),
        (("data", "train", 0, "pair", "margin", "str"), "data.train.0.margin", "a list of 2, each text, or text, or null"),
        (("data", "train", 0, "tokenized", "margin"), "data.train.0.margin", "text, or null"),
        (("data", "train", 0, "ab", "label", "value", "values", "1"), "data.train.0.label.values.1", "a, b or tie"),
        (
            ("data", "train", 0, "ab", "label", "value", "column", "tuple[str, ...]", 0),
            "data.train.0.label.column.0",
            "non-empty text",
        ),
        (
            ("data", "train", 0, "ab", "label", "index", "first"),
            "data.train.0.label.first",
            "a whole number at least 0 and at most 1",
        ),
        (
            ("data", "train", 0, "ranked", "score", "dict[str,float]"),
            "data.train.0.score",
            "a mapping to a number, or non-empty text",
        ),
        (("model", "scratch", "scratch", "layers"), "model.scratch.layers", "a whole number above 0 and at most 1024"),
        (("model", "scratch", "dtype"), "model.dtype", "float32 or bfloat16"),
        (("model", "pretrained"), "model", "a section"),
        (("lora",), "lora", "a section, or null"),
        (("lora", "targets", "tuple[str, ...]", 0), "lora.targets.0", "text"),
        (("optimizer", "betas", 1), "optimizer.betas.1", "a number at least 0 and below 1"),
        (("evaluation", "gates", "loss"), "evaluation.gates.loss", "a number"),
        (
            ("data", "train", 0, "pair", "messages", "roles", "bot"),
            "data.train.0.messages.roles.bot",
            "system, user, assistant or tool",
        ),
    ],
)
def test_the_tags_and_labels_of_unions_are_no_keys(location: tuple[str | int, ...], path: str, words: str) -> None:
    spot = follow(location)
    assert ".".join(map(str, spot.path)) == path
    assert in_words(spot.annotation) == words
