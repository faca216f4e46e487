"""Folders of ../shared/cases, copied for each test."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


@pytest.fixture
def case(tmp_path: Path) -> Callable[[str], Path]:
    """Return a copy of a folder of the cases, by its name."""

    def copy(name: str) -> Path:
        if not (CASES / name).is_dir():
            pytest.skip("needs the cases: put their folders into ../shared/cases, next to the checkout")
        return Path(shutil.copytree(CASES / name, tmp_path / name))

    return copy
