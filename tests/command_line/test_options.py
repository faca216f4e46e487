"""The options of `inspect` that cannot be combined, and their invalid values."""

from itertools import combinations
from typing import Any

import pytest

from rmtrain.command_line.options import NEEDS, NOT_TOGETHER, InspectOptions
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
    "model": "runs/hh",
    "allow_template_change": True,
}
WITH_MODEL = {"model", "allow_template_change"}
TOGETHER = {
    "row": {"source", "split", "ids", "side_by_side", *WITH_MODEL},
    "step": {"world_size", "limit"},
    "dropped": {"find", "random", "seed", "source", "split", "limit"},
    "longest": {"source", "split", "ids", "side_by_side", "find", "limit", *WITH_MODEL},
    "random": {"source", "split", "ids", "side_by_side", "find", "dropped", "seed", "limit", *WITH_MODEL},
    "find": {"source", "split", "ids", "side_by_side", "dropped", "longest", "random", "seed", "limit", *WITH_MODEL},
    "model": {"row", "find", "longest", "random", "seed", "source", "split", "limit", "side_by_side", "allow_template_change"},
}
"""The options that each way to select rows can be combined with."""


def problems(**options: Any) -> tuple[str, ...]:
    try:
        InspectOptions(**options).check()
    except RecipeError as error:
        return error.problems
    return ()


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_every_pair_of_options() -> None:
    """Each pair can be combined, or is refused in one line that names both."""
    assert RecipeError.exit_code == 2
    assert set(VALUES) == set(InspectOptions.__slots__), "guard: every option is tried"
    refused = 0
    for one, other in combinations(VALUES, 2):
        needed = {each for each in (NEEDS.get(one), NEEDS.get(other)) if each is not None}
        options = {name: VALUES[name] for name in {one, other} | needed}
        apart = any(a in TOGETHER and b not in TOGETHER[a] for a in options for b in options if a != b)
        lines = problems(**options)
        assert bool(lines) == apart, f"{one} with {other}: {lines}"
        refused += apart
        if apart and not needed:
            (line,) = lines
            assert option(one) in line
            assert option(other) in line
    assert 20 < refused < len(list(combinations(VALUES, 2))) - 20, "guard"


def test_each_pair_is_listed_once() -> None:
    pairs = [frozenset({name, other}) for name, others in NOT_TOGETHER.items() for other in others]
    assert len(pairs) == len(set(pairs))
    assert all(len(pair) == 2 for pair in pairs)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"row": "0", "find": "x"}, ("--row:", "--find")),
        ({"step": 0, "split": "eval"}, ("--step:", "--split")),
        ({"seed": 4}, ("--seed:", "--random")),
        ({"world_size": 2}, ("--world-size:", "--step")),
        ({"split": "dev"}, ("--split:", "train", "eval", "dev")),
        ({"find": ""}, ("--find:",)),
        ({"step": -1}, ("--step:", "0", "-1")),
        ({"limit": 0}, ("--limit:", "1", "0")),
        ({"random": True, "seed": -1}, ("--seed:", "0", "-1")),
        ({"step": 0, "world_size": 0}, ("--world-size:", "1", "0")),
    ],
)
def test_each_mistake_has_a_line(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    (line,) = problems(**options)
    assert line.startswith(parts[0])
    assert all(part in line for part in parts)


def test_all_mistakes_are_reported_at_once() -> None:
    assert len(problems(row="0", longest=True, limit=0, split="dev")) == 4


def test_without_a_selection_one_row_is_shown() -> None:
    assert InspectOptions().names_one
    assert InspectOptions(source="hh", split="eval", ids=True).names_one
    assert not any(InspectOptions(**{name: VALUES[name]}).names_one for name in ("find", "longest", "random", "limit"))
