"""Cells of nested rows under the paths that recipes use."""

from typing import Any

import pytest

from rmtrain.data.rows.cells import cells, lookup

ROW: dict[str, Any] = {
    "prompt": "a",
    "answers": [{"text": "b", "score": 0}, {"text": "", "tags": []}],
    "a.b": None,
    "meta": {},
    "flag": False,
}


def test_every_cell_comes_once_with_its_path() -> None:
    assert list(cells(ROW)) == [
        ("prompt", "a"),
        ("answers.0.text", "b"),
        ("answers.0.score", 0),
        ("answers.1.text", ""),
        ("answers.1.tags", []),
        ("a.b", None),
        ("meta", {}),
        ("flag", False),
    ]


@pytest.mark.parametrize("path", [path for path, _ in cells(ROW)])
def test_a_path_leads_back_to_its_cell(path: str) -> None:
    assert lookup(ROW, path) == dict(cells(ROW))[path]
