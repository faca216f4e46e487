from pathlib import Path
from typing import Any

import pytest

from rmtrain.errors import DataError
from tests.data.rows.test_loading import load
from tests.helpers import pairs, write_jsonl


@pytest.mark.parametrize(
    ("rows", "keys", "words"),
    [
        (pairs(3), {"chosen": "better"}, r'^rows: no column "better"; it has: prompt, chosen, rejected$'),
        (pairs(3), {"prompt": "question", "system": "sys"}, r'^rows: no column "question", "sys"; it has: prompt, chosen, rejected$'),
        (pairs(3), {"margin": "score", "margin_default": 0.0}, r'^rows: no column "score"; it has: prompt, chosen, rejected$'),
        ([{"chosen_ids": [1], "rejected_ids": [2]}], {}, r'no column "chosen", "rejected"; .*; rows of tokens need format: tokenized$'),
        ([{"prompt": "q", "completion": "a", "label": True}] * 3, {}, r"; rows of one completion and a label are unpaired"),
        (pairs(3), {"prompt": ["prompt", "input"]}, r'^rows: no column "input"; it has: prompt, chosen, rejected$'),
        (
            [{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}] * 3,
            {},
            r"^rows: the first 3 rows are all refused \(transcript\): rows:0: chosen looks like an HH .*; set messages.transcript: hh$",
        ),
        ([{"chosen": 1, "rejected": 2}], {}, r"^rows: its only row is refused \(not_messages\): rows:0: chosen is a number"),
    ],
)  # fmt: skip
def test_sources_without_usable_rows_are_refused(tmp_path: Path, rows: list[Any], keys: dict[str, Any], words: str) -> None:
    """A missing column, or a first batch that is dropped as a whole for one reason, is an error at once."""
    with pytest.raises(DataError, match=words):
        load(write_jsonl(tmp_path / "rows.jsonl", rows), **keys)


def test_trap_22_bad_margins_name_the_rows(tmp_path: Path) -> None:
    """Bad margins are one error that names the first five rows and counts the others."""
    rows: list[dict[str, Any]] = [row | {"margin": 0.1} for row in pairs(20)]
    for number in (2, 3, 5, 8, 13, 15, 19):
        rows[number]["margin"] = ["high", -1, None][number % 3]
    with pytest.raises(DataError) as error:
        load(write_jsonl(tmp_path / "rows.jsonl", rows), margin="margin")
    message = str(error.value)
    assert message.startswith("margins must be finite numbers of at least 0: rows:2: no number in margin")
    assert "rows:3: margin: expected a finite number, got 'high'" in message
    assert "rows:13: expected at least 0, got -1 and 2 more" in message
    assert "\n" not in message


def test_trap_22_nan_margin_in_csv(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,chosen,rejected,margin\nq,a,b,0.5\nq,a,b,nan\nq,a,b,inf\n")
    with pytest.raises(DataError, match=r"rows:1: margin: expected a finite number, got 'nan'; rows:2: .* got 'inf'"):
        load(file, margin="margin")
