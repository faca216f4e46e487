import json
from pathlib import Path
from typing import Any

import pytest

from rmtrain.data import loading
from rmtrain.data.comparison import Comparison, Dropped
from rmtrain.data.loading import load_comparisons
from rmtrain.errors import DataError
from rmtrain.recipe.schema import PairSource, TokenizedSource
from tests.helpers import pairs, write_jsonl


def load(path: Path, **keys: Any) -> list[Any]:
    return [row for batch in load_comparisons(PairSource(path=str(path), **keys)) for row in batch]


def test_rows_come_in_order_and_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BATCH_ROWS", 4)
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(10))
    batches = list(load_comparisons(PairSource(path=str(file))))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [row.id for batch in batches for row in batch] == [f"rows:{number}" for number in range(10)]


def test_trap_18_every_row_is_checked_and_none_is_lost_uncounted(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows: list[dict[str, Any]] = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"chosen": chat, "rejected": [chat[0], {"role": "assistant", "content": "b"}]},
        {"prompt": "q", "chosen": None, "rejected": "b"},
        {"prompt": "q", "chosen": "", "rejected": "b"},
        {"prompt": "q", "chosen": "a"},
        {"prompt": "q", "chosen": [1], "rejected": "b"},
    ]
    file = write_jsonl(tmp_path / "mixed.jsonl", rows)
    with file.open("a") as stream:
        stream.write('{"prompt": "q", "chosen": "a", "chosen": "c", "rejected": "b"}\n')
    loaded = load(file)
    assert [row.reason if isinstance(row, Dropped) else "kept" for row in loaded] == [
        "kept", "kept", "empty_cell", "empty_response", "missing_column", "not_messages", "malformed_row",
    ]  # fmt: skip
    assert isinstance(loaded[1], Comparison)


@pytest.mark.parametrize(
    ("rows", "keys", "words"),
    [
        (pairs(3), {"chosen": "better"}, r'^rows: no column "better"; it has: prompt, chosen, rejected$'),
        (pairs(3), {"prompt": "question", "system": "sys"}, r'^rows: no column "question", "sys"; it has: prompt, chosen, rejected$'),
        (pairs(3), {"margin": "score", "margin_default": 0.0}, r'^rows: no column "score"; it has: prompt, chosen, rejected$'),
        ([{"chosen_ids": [1], "rejected_ids": [2]}], {}, r'no column "chosen", "rejected"; .*; rows of tokens need format: tokenized$'),
        (
            [{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}] * 3,
            {},
            r"^rows: the first 3 rows are all refused \(transcript\): rows:0: chosen looks like an HH .*; set messages.transcript: hh$",
        ),
        ([{"chosen": 1, "rejected": 2}], {}, r"^rows: its only row is refused \(not_messages\): rows:0: chosen is a number"),
    ],
)  # fmt: skip
def test_what_would_drop_every_row_is_refused_at_once(tmp_path: Path, rows: list[Any], keys: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load(write_jsonl(tmp_path / "rows.jsonl", rows), **keys)


def test_trap_22_bad_margins_are_an_error_that_names_the_rows(tmp_path: Path) -> None:
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


def test_trap_22_a_nan_margin_in_a_table_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,chosen,rejected,margin\nq,a,b,0.5\nq,a,b,nan\nq,a,b,inf\n")
    with pytest.raises(DataError, match=r"rows:1: margin: expected a finite number, got 'nan'; rows:2: .* got 'inf'"):
        load(file, margin="margin")


def test_margins_of_a_csv_file_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,chosen,rejected,c,r\n1,2,3,0.5,0.25\nq,a,b,,\n")
    loaded = load(file, margin=["c", "r"], margin_default=0.0)
    assert [row.preferences[0].margin for row in loaded] == [0.25, 0.0]
    assert loaded[0].prompt[0]["content"] == "1", "guard: other cells stay text"


def test_tokens_come_from_a_source_of_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps([{"chosen_ids": [1, 2, 9], "rejected_ids": [1, 3, 9]}]))
    ((row,),) = load_comparisons(TokenizedSource(path=str(file), format="tokenized"))
    assert row.id == "tokens:0"


def test_an_empty_source_has_no_batches(tmp_path: Path) -> None:
    assert load(write_jsonl(tmp_path / "rows.jsonl", [])) == []
