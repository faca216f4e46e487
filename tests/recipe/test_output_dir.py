"""`run.output_dir` may name keys of the recipe; the resolved recipe has the plain path."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.recipe.load import dump_recipe, load_recipe
from rmtrain.recipe.output_dir import escape_braces, fill_keys
from tests.recipe.recipes import GOOD, assert_problems, load, problems

NUMBERS = {
    "3e-06": "3e-6",
    "0.0001": "1e-4",
    "0.00015": "1.5e-4",
    "0.001": "1e-3",
    "0.05": "0.05",
    "0.015": "0.015",
    "0.1": "0.1",
    "1.0": "1",
    "9e-6": "9e-6",
}
# A pattern, and the problem: `key or brace|words of the message`.
BROKEN = [
    ("runs/{lr}", "{lr}|mean {optimizer.lr}?"),
    ("runs/{learning_rate}", "mean {optimizer.lr}?"),
    ("runs/{optimizer.learing_rate}", "mean {optimizer.lr}?"),
    ("runs/{optimzer.lr}", "mean {optimizer.lr}?"),
    ("runs/{seed}", "mean {run.seed}?"),
    ("runs/{qqq}", "{qqq}|{{"),
    ("runs/{}", "{}|{{"),
    ("runs/{optimizer}", "{optimizer}|a section"),
    ("runs/{data.train}", "{data.train}|a list"),
    ("runs/{data.train.1.path}", "{data.train.1.path}"),
    ("runs/{lora}", "{lora}|null"),
    ("runs/{lora.rank}", "{lora.rank}|lora is null"),
    ("runs/{run.output_dir}", "{run.output_dir}|itself"),
    ("runs/{run.name", "not closed|{{"),
    ("runs/{data.chat_template}", "{data.chat_template}|120 characters"),
    ("runs/{model.revision}", "letters or digits"),
]


def directory(pattern: str, *overrides: str) -> str:
    """The `run.output_dir` of a recipe with this pattern."""
    return load(GOOD.replace("runs/demo", f'"{pattern}"'), overrides).run.output_dir


def test_keys_are_replaced_by_final_values() -> None:
    """Values of the file, of overrides, and defaults."""
    assert directory("runs/{run.name}-lr{optimizer.lr}-s{run.seed}") == "runs/demo-lr1e-5-s1"
    assert directory("runs/{run.name}-lr{optimizer.lr}-s{run.seed}", "optimizer.lr=3e-06", "run.seed=7") == "runs/demo-lr3e-6-s7"
    assert directory("{run.name}/{training.batch_size}/{hub.push}/{data.train.0.path}") == "demo/32/false/pairs.jsonl"
    assert load(GOOD, ["run.output_dir=x/{run.name}"]).run.output_dir == "x/demo"


@pytest.mark.parametrize(("written", "shown"), NUMBERS.items())
def test_numbers_are_written_the_shorter_way(written: str, shown: str) -> None:
    assert directory("{optimizer.lr}", f"optimizer.lr={written}") == shown
    assert float(shown) == float(written)


def test_a_value_names_one_directory() -> None:
    """Whatever a text holds, it leads neither up nor down."""
    for path, name in {"Qwen/Qwen3-0.6B": "Qwen-Qwen3-0.6B", "../up": "up", "/a/b c": "a-b-c", "é\u202e{x}": "é-x"}.items():
        assert directory("runs/{model.path}", f'model.path="{path}"') == f"runs/{name}"


@pytest.mark.parametrize(("pattern", "expected"), BROKEN)
def test_a_wrong_key_is_a_problem_there(pattern: str, expected: str) -> None:
    text = GOOD.replace("runs/demo", f'"{pattern}"').replace("some/model", 'some/model, revision: "//"')
    assert_problems(problems(text, [f"data.chat_template={'x' * 120}"]), [f"recipe.yaml:1:31|run.output_dir|{expected}"])


def test_all_wrong_keys_come_at_once() -> None:
    assert len(problems(GOOD.replace("runs/demo", '"{a}/{b}"'))) == 2
    (line,) = problems(GOOD.replace("runs/demo", "runs/{run.name}"))
    assert line.startswith("recipe.yaml:1:36  "), "guard: the path ends at the brace"
    assert line.endswith("put text with braces in quotes")


def test_the_resolved_recipe_has_the_plain_path(tmp_path: Path) -> None:
    """It loads equal, also where the path has braces of its own."""
    recipe = load(GOOD.replace("runs/demo", '"{{{run.name}}}-{{x}}"'))
    assert recipe.run.output_dir == "{demo}-{x}"
    (tmp_path / "copy.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "copy.yaml") == recipe
    plain = load(GOOD.replace("runs/demo", '"runs/{run.name}"'))
    assert "output_dir: runs/demo\n" in dump_recipe(plain)


@settings(max_examples=100, deadline=None)
@given(path=st.text(alphabet="{}ab/.$", max_size=12))
def test_escaped_braces_are_a_path_again(path: str) -> None:
    assert fill_keys(escape_braces(path), {}) == (path, [])
