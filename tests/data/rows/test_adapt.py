from pathlib import Path
from typing import Any

import pytest

from rmtrain.errors import DataError
from tests.data.rows.test_loading import load
from tests.helpers import pairs, write_jsonl


@pytest.mark.parametrize(
    ("rows", "keys", "parts"),
    [
        (pairs(3), {"chosen": "better"}, ['"better"', "prompt, chosen, rejected"]),
        (pairs(3), {"prompt": "question", "system": "sys"}, ['"question", "sys"', "prompt, chosen, rejected"]),
        (pairs(3), {"margin": "score", "margin_default": 0.0}, ['"score"', "prompt, chosen, rejected"]),
        ([{"chosen_ids": [1], "rejected_ids": [2]}], {}, ['"chosen", "rejected"', "format: tokenized"]),
        ([{"prompt": "q", "completion": "a", "label": True}] * 3, {}, ['"chosen", "rejected"', "unpaired (KTO)"]),
        (pairs(3), {"prompt": ["prompt", "input"]}, ['"input"', "prompt, chosen, rejected"]),
        (
            [{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}] * 3,
            {},
            ["3 rows", "(transcript): rows.jsonl:1: chosen", "messages.transcript: hh"],
        ),
        ([{"chosen": 1, "rejected": 2}], {}, ["(not_messages): rows.jsonl:1: chosen"]),
    ],
)  # fmt: skip
def test_sources_without_usable_rows_are_refused(tmp_path: Path, rows: list[Any], keys: dict[str, Any], parts: list[str]) -> None:
    """A missing column, or a first batch that is dropped as a whole for one reason, is an error at once."""
    with pytest.raises(DataError, match=r"^rows: ") as error:
        load(write_jsonl(tmp_path / "rows.jsonl", rows), **keys)
    assert all(part in str(error.value) for part in parts)


def test_trap_22_bad_margins_name_the_rows(tmp_path: Path) -> None:
    """Bad margins are one error that names the first five rows and counts the others."""
    rows: list[dict[str, Any]] = [row | {"margin": 0.1} for row in pairs(20)]
    for number in (2, 3, 5, 8, 13, 15, 19):
        rows[number]["margin"] = ["high", -1, None][number % 3]
    with pytest.raises(DataError) as error:
        load(write_jsonl(tmp_path / "rows.jsonl", rows), margin="margin")
    message = str(error.value)
    places = ["rows:2", "rows:3", "'high'", "rows:5", "rows:8", "rows:13", "-1 and 2 more"]
    assert [message.index(place) for place in places] == sorted(message.index(place) for place in places), (
        "in order, five of them"
    )
    assert "rows:15" not in message
    assert "\n" not in message


def test_trap_22_nan_margin_in_csv(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,chosen,rejected,margin\nq,a,b,0.5\nq,a,b,nan\nq,a,b,inf\n")
    with pytest.raises(DataError, match=r"rows:1: rows\.csv:3: margin: .* 'nan'; rows:2: rows\.csv:4: .* 'inf'"):
        load(file, margin="margin")
