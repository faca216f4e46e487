"""Fixtures of fault tests: a starter of processes, and an undisturbed run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.nursery import Nursery
from tests.faults.runs import full_recipe, in_directory, left


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Starts `rmtrain` processes."""
    with Nursery() as started:
        yield started


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the runs of a module."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def recipe(place: Path) -> Path:
    """The recipe of `full_recipe`."""
    return full_recipe(place)


@pytest.fixture(scope="module")
def undisturbed(place: Path, recipe: Path, nursery: Nursery) -> dict[str, Any]:
    """The results of the run without any fault."""
    ended = nursery.run(*in_directory(recipe, place / "undisturbed"))
    assert ended.code == 0, ended.stderr
    return left(place / "undisturbed")
