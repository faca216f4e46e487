from decimal import Decimal
from typing import Any

import pytest

from rmtrain.data.rows.cells import find_cell, has_cell, is_blank, lookup, require_cell, to_number
from rmtrain.data.rows.messages import BadRow


def test_a_dotted_path_finds_nested_cells_list_items_and_names_with_dots() -> None:
    row = {"a": {"b": [{"c d": 1}]}, "x.y": 2, "p": {"q.r": {"s": 3}}, "n": None}
    found = [lookup(row, path) for path in ("a.b.0.c d", "x.y", "p.q.r.s", "n", "a.b")]
    assert found == [1, 2, 3, None, [{"c d": 1}]]
    for path in ("a.b.1.c d", "a.b.-1", "a.z", "x", "n.a", "a.b.c", "a.b." + "9" * 5000, "", "."):
        assert not has_cell(row, path)
        assert find_cell(row, path, "nothing") == "nothing"
        with pytest.raises(KeyError):
            lookup(row, path)
    assert has_cell(row, "n")
    with pytest.raises(BadRow, match=r'no column "z"; it has: a, x\.y, p, n'):
        require_cell(row, "z")


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        (3, 3.0), (-2.5, -2.5), ("3", 3.0), (" -2.5e1\n", -25.0), (".5", 0.5), ("1.", 1.0), (Decimal("1.5"), 1.5), (10**400, None),
        ("1e999", None), ("N/A", None), ("", None), (None, None), (True, None), ("1_000", None), ("nan", None), ("inf", None),
        (float("nan"), None), (float("inf"), None), ([1], None), ({"a": 1}, None), ("٣", None), (Decimal("sNaN"), None),
    ],
)  # fmt: skip
def test_a_number_may_be_text_and_is_finite(cell: Any, number: float | None) -> None:
    assert to_number(cell) == number


def test_what_says_nothing_is_blank() -> None:
    assert [is_blank(cell) for cell in (None, "", " \n", float("nan"))] == [True] * 4
    assert [is_blank(cell) for cell in (0, False, "0", [], {}, "x")] == [False] * 6
