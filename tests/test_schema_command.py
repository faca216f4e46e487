"""`rmtrain schema KEY` explains every key and section of a recipe, and says what was meant by an unknown one."""

import pytest
from typer.main import get_command

from rmtrain.cli import app
from rmtrain.command_line.key_help import explain_key
from rmtrain.command_line.verbs import PANELS
from rmtrain.errors import RecipeError
from rmtrain.recipe.explain import entries
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.reference import look_up
from rmtrain.recipe.yaml import dotted
from tests.report.render import render
from tests.runs import ROOT


def test_every_key_is_explained() -> None:
    """With a meaning, a default and the values that it takes, at each place it has."""
    names = [dotted((*entry.path, name)) for entry in entries() for name in entry.section.model_fields]
    for name in dict.fromkeys(names):
        found = look_up(name)
        assert found.meaning, name
        assert all(key.value and key.default for key in found.keys), name
        assert name in render(explain_key(name), width=200)
    assert len(set(names)) > 150, "guard"


def test_examples_are_valid_overrides() -> None:
    """The examples of keys of the quickstart can be given to it."""
    names = (
        "optimizer.lr",
        "optimizer.schedule",
        "training.epochs",
        "evaluation.every",
        "run.seed",
        "tracking.log_every",
        "data.max_length",
    )
    examples = [look_up(name).example for name in names]
    recipe = load_recipe(ROOT / "recipes/quickstart.yaml", [example for example in examples if example is not None])
    assert recipe == load_recipe(ROOT / "recipes/quickstart.yaml"), "since they are its own values, or defaults"
    assert None not in examples, "guard"


@pytest.mark.parametrize("name", ["objective.type", "data.train.format", "data.train.label.by"])
def test_choice_of_kind_lists_all_kinds(name: str) -> None:
    """In one key, whose example is one of its values."""
    found = look_up(name)
    (key,) = found.keys
    kinds = {entry.kind for entry in entries() if dotted(entry.path) == found.path.rpartition(".")[0]}
    assert set(key.value.replace(" or ", ", ").split(", ")) == kinds
    assert found.example is not None
    assert found.example.partition("=")[2] in kinds
    assert len(kinds) > 4, "guard"


def test_every_meaning_of_a_key_is_shown() -> None:
    """A key that differs by the kind of its section has a line for each kind, and an example."""
    keys = look_up("data.train.responses").keys
    text = " ".join(render(explain_key("data.train.responses"), width=400).split())
    assert all(key.meaning.replace("`", "") in text and key.kinds[0] in text for key in keys)
    assert "rmtrain train RECIPE data.train.0.responses=" in text
    assert len(keys) > 1, "guard"


@pytest.mark.parametrize("name", ["data.train.0.path", "data.train.N.path", "data.train.path"])
def test_indices_can_be_left_out(name: str) -> None:
    assert look_up(name).path == "data.train.0.path"


@pytest.mark.parametrize(
    ("name", "meant"), [("optimizer.learing_rate", "lr"), ("trainig", "training"), ("optimizer.batch_size", "training")]
)
def test_unknown_keys_are_explained(name: str, meant: str) -> None:
    with pytest.raises(RecipeError) as caught:
        look_up(name)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name}: ")
    assert meant in problem


def test_every_option_has_a_help_text() -> None:
    """Each option and argument of each verb is described, and each panel names options that exist."""
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    options = [parameter for verb in verbs.values() for parameter in verb.params]
    undescribed = [parameter.opts for parameter in options if not getattr(parameter, "help", None)]
    assert not undescribed
    known = {name for parameter in options for name in parameter.opts} | {"--help", "--version"}
    assert {name for names in PANELS.values() for name in names} <= known
    assert len(options) > 60, "guard"
