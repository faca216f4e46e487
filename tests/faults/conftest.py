"""Fixtures of fault tests: a starter of processes, and an undisturbed run."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import full_recipe, in_directory, left
from tests.forks import ForkServer, fork_server


@pytest.fixture(scope="session")
def server() -> ForkServer:
    """Starts `rmtrain` processes."""
    return fork_server()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the runs of a module."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def recipe(place: Path) -> Path:
    """The recipe of `full_recipe`."""
    return full_recipe(place)


@pytest.fixture(scope="module")
def undisturbed(place: Path, recipe: Path, server: ForkServer) -> dict[str, Any]:
    """The results of the run without any fault."""
    ended = server.run(*in_directory(recipe, place / "undisturbed"))
    assert ended.code == 0, ended.stderr
    return left(place / "undisturbed")
