"""A template that raises on a row: the row is dropped and counted, with the words of the template."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forks import rmtrain

WORDS = "System role not supported"


@pytest.fixture
def folder(case: Callable[[str], Path]) -> Path:
    return case("template_refuses_system")


def test_refused_rows_are_dropped_and_counted(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "d.jsonl").read_text().splitlines()]
    refused = [number for number, row in enumerate(rows) if row["chosen"][0]["role"] == "system"]
    assert 0 < len(refused) < len(rows), "guard: some rows have a system turn"
    ended = rmtrain("preprocess", "r.yaml", "data.max_drop_fraction=1.0", "--json", cwd=folder)
    waterfall = json.loads(ended.stdout)["splits"]["train"]["waterfall"]["d"]
    assert (waterfall["read"], waterfall["kept"]) == (len(rows), len(rows) - len(refused))
    assert waterfall["dropped"] == {"template_refused": len(refused)}
    shown = rmtrain("inspect", "r.yaml", "--dropped", "template_refused", "--limit", "100", "--json", cwd=folder)
    dropped = json.loads(shown.stdout)["rows"]
    assert [row["id"] for row in dropped] == [f"d:{number}" for number in refused]
    assert all(WORDS in row["detail"] for row in dropped)


def test_refused_rows_count_as_lost(folder: Path) -> None:
    """They are faults: above `max_drop_fraction` the data is refused, naming the reason and the words."""
    ended = rmtrain("preprocess", "r.yaml", "data.max_drop_fraction=0.0", cwd=folder, COLUMNS="400")
    assert ended.returncode == 3
    (problem,) = ended.stderr.splitlines()
    assert "template_refused" in problem
    assert WORDS in problem
    assert rmtrain("preprocess", "c.yaml", "data.max_drop_fraction=0.0", cwd=folder).returncode == 0, "guard: no system turn"
