"""Cells of nested rows under the paths that recipes use."""

from decimal import Decimal
from typing import Any

import pytest

from rmtrain.data.comparison import BadRow
from rmtrain.data.rows.messages import MISSING, cells, find_cell, is_blank, require_cell, to_number

ROW: dict[str, Any] = {
    "prompt": "a",
    "answers": [{"text": "b", "score": 0}, {"text": "", "tags": []}],
    "a.b": None,
    "meta": {},
    "flag": False,
}


def test_cells_yields_each_leaf_once() -> None:
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
def test_path_leads_back_to_its_cell(path: str) -> None:
    assert find_cell(ROW, path, "nothing") == dict(cells(ROW))[path]


def test_dotted_paths_find_nested_cells() -> None:
    """A dotted path finds nested cells, list items and names with dots; anything else is missing."""
    row = {"a": {"b": [{"c d": 1}]}, "x.y": 2, "p": {"q.r": {"s": 3}}, "n": None}
    values = [find_cell(row, path, "nothing") for path in ("a.b.0.c d", "x.y", "p.q.r.s", "n", "a.b")]
    assert values == [1, 2, 3, None, [{"c d": 1}]]
    for path in ("a.b.1.c d", "a.b.-1", "a.z", "x", "n.a", "a.b.c", "a.b." + "9" * 5000, "", "."):
        assert find_cell(row, path, "nothing") == "nothing"
    assert find_cell(row, "n", MISSING) is None
    with pytest.raises(BadRow, match=r'^missing_column: .*"z".* a, x\.y, p, n$'):
        require_cell(row, "z")


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        (3, 3.0), (-2.5, -2.5), ("3", 3.0), (" -2.5e1\n", -25.0), (".5", 0.5), ("1.", 1.0), (Decimal("1.5"), 1.5), (10**400, None),
        ("1e999", None), ("N/A", None), ("", None), (None, None), (True, None), ("1_000", None), ("nan", None), ("inf", None),
        (float("nan"), None), (float("inf"), None), ([1], None), ({"a": 1}, None), ("٣", None), (Decimal("sNaN"), None),
    ],
)  # fmt: skip
def test_number_may_be_text_and_finite(cell: Any, number: float | None) -> None:
    assert to_number(cell) == number


def test_null_spaces_and_nan_are_blank() -> None:
    assert [is_blank(cell) for cell in (None, "", " \n", float("nan"))] == [True] * 4
    assert [is_blank(cell) for cell in (0, False, "0", [], {}, "x")] == [False] * 6
