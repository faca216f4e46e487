"""A CSV file in Latin-1 is refused with the line of the first byte that is not UTF-8."""

import shutil
from pathlib import Path

import pytest

from tests.forks import rmtrain
from tests.runs import ROOT

CASE = ROOT.parent / "shared/cases/csv_not_utf8"


@pytest.mark.skipif(not CASE.is_dir(), reason="needs ../shared/cases next to the checkout")
def test_csv_not_utf8(tmp_path: Path) -> None:
    """The decoder reads ahead, so that the last row it returned is many lines before the fault."""
    folder = shutil.copytree(CASE, tmp_path / "case")
    lines = (folder / "a.csv").read_bytes().split(b"\n")
    (number,) = [number for number, line in enumerate(lines, 1) if line.decode(errors="ignore").encode() != line]
    ended = rmtrain("preprocess", "a.yaml", cwd=folder, COLUMNS="300")
    assert ended.returncode == 3
    (problem,) = ended.stderr.splitlines()
    assert f"a.csv:{number}: " in problem
    assert problem.count("a.csv") == 1
    assert "save the file as UTF-8" in problem
    assert number > 250, "guard: it is not in the first block that is read"
