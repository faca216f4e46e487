"""Which options of `inspect` go together."""

from itertools import combinations
from typing import Any

import pytest

from rmtrain.commands.options import COMPANIONS, NEEDS, InspectOptions
from rmtrain.errors import RecipeError

VALUES: dict[str, Any] = {
    "row": "3",
    "find": "text",
    "dropped": "identical",
    "longest": True,
    "random": True,
    "step": 0,
    "source": "hh",
    "split": "eval",
    "limit": 2,
    "seed": 0,
    "world_size": 2,
    "ids": True,
    "side_by_side": False,
}


def problems(**options: Any) -> tuple[str, ...]:
    try:
        InspectOptions(**options).check()
    except RecipeError as error:
        return error.problems
    return ()


def test_every_pair_of_options_goes_together_or_is_refused_in_one_line_that_names_both() -> None:
    assert RecipeError.exit_code == 2
    assert set(VALUES) == set(InspectOptions.__slots__), "guard: every option is tried"
    refused = 0
    for one, other in combinations(VALUES, 2):
        needed = {each for each in (NEEDS.get(one), NEEDS.get(other)) if each is not None}
        options = {name: VALUES[name] for name in {one, other} | needed}
        apart = any(a in COMPANIONS and b not in COMPANIONS[a] for a in options for b in options if a != b)
        lines = problems(**options)
        assert bool(lines) == apart, f"{one} with {other}: {lines}"
        refused += apart
        if apart and not needed:
            (line,) = lines
            assert "--" + one.replace("_", "-") in line
            assert "--" + other.replace("_", "-") in line
            assert " does not go with " in line
    assert 20 < refused < len(list(combinations(VALUES, 2))) - 20, "guard"


def test_companions_agree_with_one_another() -> None:
    for one, other in combinations(COMPANIONS, 2):
        assert (one in COMPANIONS[other]) == (other in COMPANIONS[one]), f"{one}, {other}"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"row": "0", "find": "x"}, "--row does not go with --find; it goes with --ids, --side-by-side, --source, --split"),
        ({"step": 0, "split": "eval"}, "--step does not go with --split; it goes with --limit, --world-size"),
        ({"seed": 4}, "--seed 4: it goes with --random only"),
        ({"world_size": 2}, "--world-size 2: it goes with --step only"),
        ({"split": "dev"}, "--split dev: expected train or eval"),
        ({"find": ""}, "--find: expected a text to find, got nothing"),
        ({"step": -1}, "--step -1: expected at least 0"),
        ({"limit": 0}, "--limit 0: expected at least 1"),
        ({"random": True, "seed": -1}, "--seed -1: expected at least 0"),
        ({"step": 0, "world_size": 0}, "--world-size 0: expected at least 1"),
    ],
)
def test_each_mistake_has_its_line(options: dict[str, Any], line: str) -> None:
    assert problems(**options) == (line,)


def test_all_mistakes_are_said_at_once() -> None:
    assert len(problems(row="0", longest=True, limit=0, split="dev")) == 4


def test_without_a_choice_one_row_is_meant() -> None:
    assert InspectOptions().names_one
    assert InspectOptions(source="hh", split="eval", ids=True).names_one
    assert not any(InspectOptions(**{name: VALUES[name]}).names_one for name in ("find", "longest", "random", "limit"))
