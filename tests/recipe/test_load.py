"""A recipe loads completely or fails with all its problems; overrides and dumps follow the same rules."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.errors import RecipeError
from rmtrain.recipe.explain import key_paths
from rmtrain.recipe.key_aliases import ALIASES
from rmtrain.recipe.load import dump_recipe, load_recipe, parse_recipe
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.yaml import write_yaml
from tests.recipe.recipes import GOOD, KINDS, SCRATCH, assert_problems, complete, every_path, load, problems, with_source

# Overrides of GOOD, and the problems: `override a.b=v|key|words of the message`; without |, nothing but the place is checked.
BROKEN_OVERRIDES: list[tuple[list[str], list[str]]] = [
    (["optimizer.learing_rate=1"], ["override optimizer.learing_rate=1|optimizer.learing_rate|mean lr?"]),
    (["optimizer.lr=abc"], ['override optimizer.lr=abc|optimizer.lr|number|got "abc"']),
    (["optimizer.lr="], ["override optimizer.lr=|optimizer.lr|number|got null"]),
    (["optimizer={}"], ["override optimizer={}|optimizer.lr|missing"]),
    (["optimizer.lr.x=1"], ["override optimizer.lr.x=1|optimizer.lr.x|optimizer.lr|key x"]),
    (["run.output_dir=$HOME/x"], ['override run.output_dir=$HOME/x|run.output_dir|got "$HOME/x"|write ${HOME}']),
    (["data.cache_dir=$SCRATCH/x"], ["override data.cache_dir=$SCRATCH/x|data.cache_dir|write ${SCRATCH}"]),
    (["data.cache_dir=${NOPE}/x"], ["override data.cache_dir=${NOPE}/x|data.cache_dir|NOPE is not set"]),
    (["lora.rank=0"], ["override lora.rank=0|lora.rank|> 0|got 0"]),
    (["data.train.1.path=x"], ["override data.train.1.path=x|data.train.1.path|data.train|list of 1|got 1"]),
    (["data.train.x.path=x"], ["override data.train.x.path=x|data.train.x.path|data.train|list of 1|got x"]),
    (["data.eval.0.path=x"], ["override data.eval.0.path=x|data.eval.0.path|data.eval=[...]"]),
    (["data.train.0.tag=[a"], ["override data.train.0.tag=[a|data.train.0.tag|YAML"]),
    (["lora=[a"], ["override lora=[a|lora|YAML"]),
    (["lr"], ["override lr||optimizer.lr=1e-5"]),
    (["a..b=1"], ["override a..b=1||optimizer.lr=1e-5"]),
    (["lora={rank: 1, rank: 2}"], ["override lora={rank: 1, rank: 2}|lora.rank|duplicate"]),
    (["hub.token=hf_abcdefghijklmnop"], ["override hub.token=<hidden>|hub.token|unknown|HF_TOKEN"]),
    (
        ["training.batch_size=0", "x=1", "optimizer.lr=9"],
        [
            "override training.batch_size=0|training.batch_size|> 0|got 0",
            "override x=1|x|unknown|run, data, model",
            "override optimizer.lr=9|optimizer.lr|<= 1|got 9",
        ],
    ),
]
SECRETS = [
    "https://me:" + "hunter" * 20 + "@host",
    "hf_" + "aB3" * 12,
    "sk-" + "aB3" * 12,
    "https://me:hunter2@host/x",
    "hf_aB3aB3aB3aB3",
]
EXAMPLES = 250 if os.environ.get("HYPOTHESIS_PROFILE") == "new" else 30
"""`make faults` tries more."""


def outcome(text: str, overrides: list[str] | None = None) -> Recipe | RecipeError:
    """The recipe, or its error."""
    try:
        return load(text, overrides or [])
    except RecipeError as error:
        return error


def test_a_good_recipe_loads_with_defaults() -> None:
    recipe = load(GOOD)
    assert recipe.optimizer.lr == 1e-05
    assert isinstance(recipe.optimizer.lr, float)
    assert recipe.training.batch_size == 32
    assert recipe.lora is None
    assert recipe.data.train[0].title == "pairs"


@pytest.mark.parametrize(("overrides", "expected"), BROKEN_OVERRIDES)
def test_broken_override_gives_its_problems(overrides: list[str], expected: list[str]) -> None:
    assert_problems(problems(GOOD, overrides), expected)


def test_problems_come_together_in_reading_order() -> None:
    """Those of the YAML, of the schema and of overrides."""
    text = GOOD.replace("  lr: 1e-5", "  lr: 1e-5\n  lr: 2\n  clip: None\n  waemup: 0.1")
    assert [line.split("  ")[0] for line in problems(text, ["run.seed=-1", "run.name=''"])] == [
        "recipe.yaml:8:3",
        "recipe.yaml:9:9",
        "recipe.yaml:10:3",
        "override run.seed=-1",
        "override run.name=''",
    ]


def test_overrides_follow_the_rules_of_the_file() -> None:
    overrides = ["optimizer.lr=3e-6", "data.train.0.path=other.jsonl", "data.train.0.split=no", "lora.rank=8", "hub.push=true"]
    recipe = load(
        GOOD, [*overrides, "data.eval=[{path: held.jsonl}]", "data.eval.0.limit=5", "optimizer.clip=", "run.name=a=b=c"[:10]]
    )
    assert recipe.optimizer.lr == 3e-06
    assert recipe.optimizer.clip is None
    assert recipe.data.train[0].path == "other.jsonl"
    assert recipe.data.train[0].split == "no"
    assert recipe.data.eval[0].limit == 5
    assert recipe.lora is not None
    assert recipe.lora.rank == 8
    assert recipe.hub.push is True


def test_an_override_repairs_the_file() -> None:
    """Overrides are applied before the recipe is validated, and the last one wins."""
    assert load(GOOD.replace("1e-5", "high"), ["optimizer.lr=1e-4", "optimizer.lr=1e-3"]).optimizer.lr == 1e-3
    assert load(GOOD, [f"model={SCRATCH.removeprefix('model: ')}"]).model.dtype == "float32"


def test_a_very_deep_override_is_one_problem() -> None:
    (line,) = problems(GOOD, [".".join("a" * 3000) + "=1"])
    assert line.startswith("override a.a.a.")


def test_text_of_yaml_1_1_stays_text() -> None:
    source = load(with_source("path: pairs.jsonl, split: no, name: on, revision: 1e, tag: 12:30")).data.train[0]
    assert (source.split, source.name, source.revision, source.tag) == ("no", "on", "1e", "12:30")


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_is_repeated_or_loaded(secret: str) -> None:
    wandb = "0123456789abcdef" * 2 + "01234567"
    shapes = [
        (GOOD.replace("lr: 1e-5", f"lr: '{secret}'"), []),
        (GOOD.replace("lr: 1e-5", f"lr: 1e-5\n  token: {secret}\n  '{secret}': 1"), []),
        (GOOD, [f"optimizer.lr='{secret}'", f"wandb.api_key={wandb}", f"api_key={secret}", f"tracking.wandb={wandb}"]),
        (GOOD.replace("lr: 1e-5", f"lr: 1e-5: {secret}"), []),
        (GOOD.replace("lr: 1e-5", f"lr: !{secret} 1e-5"), []),
        (GOOD.replace("lr: 1e-5", f"lr: *{secret}"), []),
        (GOOD, [f"{secret}=1", secret]),
    ]
    for text, overrides in shapes:
        printed = "\n".join(problems(text, overrides))
        assert secret not in printed
        assert "hunter" not in printed
        assert wandb not in printed
    if len(secret) > 20:
        assert_problems(problems(GOOD.replace("some/model", secret)), ["recipe.yaml:5:15|model.path|password|HF_TOKEN"])


def test_a_commit_hash_is_not_a_secret() -> None:
    commit = "a" * 40
    assert load(GOOD.replace("some/model", f"some/model, revision: {commit}, trust_remote_code: true")).model.head == "auto"


def test_nothing_in_a_recipe_is_executed() -> None:
    lines = problems(GOOD.replace("demo,", "!!python/object/apply:os.system ['touch canary'],", 1))
    assert lines[0].startswith("recipe.yaml:1:13  ")
    assert "!!python/object/apply:os.system" in lines[0]
    assert not Path("canary").exists()


def test_text_is_a_recipe_as_well() -> None:
    """`parse_recipe` shows its name in errors, where `load_recipe` shows a path."""
    assert parse_recipe(GOOD, "mine", ["run.seed=7"]).run.seed == 7
    with pytest.raises(RecipeError) as raised:
        parse_recipe(GOOD.replace("lr:", "rate:"), "mine")
    assert all(line.startswith("mine  optimizer.") for line in raised.value.problems)
    with pytest.raises(RecipeError) as raised:
        parse_recipe("run: [", "mine")
    assert len(raised.value.problems) == 1


text_values = st.text(min_size=1, max_size=12)
junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["pair", "<pair>", "scratch", "tokenized", "path", "x" * 5000, "\ud800"]),
    st.lists(st.integers() | st.text(max_size=3), max_size=3),
    st.dictionaries(
        st.sampled_from(["path", "format", "scratch", "pair", "<pair>", "lr", "str", "0", "[key]"]) | st.text(max_size=4),
        st.integers(),
        max_size=3,
    ),
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(draw=st.data())
def test_a_mutated_recipe_loads_or_fails_cleanly(draw: st.DataObject) -> None:
    """Whatever is replaced, removed or added: an equal recipe after a dump, or a few printable problems; never a traceback."""
    data = complete(draw.draw(st.sampled_from(["pair", *KINDS])), draw.draw(st.sampled_from(["pretrained", "scratch"])))
    for _ in range(draw.draw(st.integers(1, 4))):
        path = draw.draw(st.sampled_from(every_path(data)))
        section: Any = data
        for part in path[:-1]:
            section = section[part]
        match draw.draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                section[path[-1]] = draw.draw(junk)
            case "remove":
                del section[path[-1]]
            case "add" if isinstance(section, dict):
                section[draw.draw(st.sampled_from([*key_paths(), *ALIASES]) | st.text(max_size=6))] = draw.draw(junk)
        if not data:
            break
    came = outcome(write_yaml(data))
    if isinstance(came, Recipe):
        assert load(dump_recipe(came)) == came
    else:
        assert all(line.isprintable() and line.startswith("recipe.yaml") for line in came.problems)
        assert len(came.problems) < 40


@settings(max_examples=max(EXAMPLES, 150), deadline=None)
@given(draw=st.data())
def test_mutated_text_loads_or_fails_cleanly(draw: st.DataObject) -> None:
    text = GOOD
    for _ in range(draw.draw(st.integers(1, 3))):
        start = draw.draw(st.integers(0, len(text)))
        text = (
            text[:start]
            + draw.draw(st.text(max_size=3) | st.sampled_from(list(":{}[]#&*!'\"\n\t- ")))
            + text[start + draw.draw(st.integers(0, 4)) :]
        )
    overrides = draw.draw(
        st.lists(
            st.builds("{}={}".format, st.sampled_from(["run.name", "data.train.0", "lora", "x.0.y"]), st.text(max_size=8)),
            max_size=2,
        )
    )
    came = outcome(text, overrides)
    assert isinstance(came, Recipe) or all(line.isprintable() for line in came.problems)


@settings(max_examples=max(EXAMPLES, 100), deadline=None)
@given(
    path=text_values,
    template=st.text(min_size=1),
    lr=st.floats(0, 1, exclude_min=True),
    gates=st.dictionaries(st.sampled_from(["accuracy", "loss"]), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_a_dumped_recipe_is_read_back_equal(path: str, template: str, lr: float, gates: dict[str, float]) -> None:
    data = complete("pair", "pretrained")
    data["data"]["train"][0] |= {"path": path, "tag": "a", "split": "no", "margin": ["x", "1e-5"]}
    data["data"]["chat_template"], data["optimizer"]["lr"], data["evaluation"]["gates"] = template, lr, gates
    recipe = Recipe.model_validate(data)
    assert load(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize("source", KINDS)
def test_every_kind_of_source_survives_a_dump(source: str) -> None:
    recipe = Recipe.model_validate(complete(source, "scratch"))
    Path("dump.yaml").write_text(dump_recipe(recipe))
    assert load_recipe("dump.yaml") == recipe
