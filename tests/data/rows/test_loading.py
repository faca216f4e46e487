import json
from pathlib import Path
from typing import Any

import pytest

from rmtrain.data.comparison import Comparison, Dropped
from rmtrain.data.rows import loading
from rmtrain.data.rows.loading import load_comparisons, read_batches
from rmtrain.data.rows.select import RawBatch
from rmtrain.errors import DataError
from rmtrain.recipe.schema import PairSource, TokenizedSource
from tests.helpers import pairs, write_jsonl


def load(path: Path, **keys: Any) -> list[Any]:
    return [row for batch in load_comparisons(PairSource(path=str(path), **keys)) for row in batch]


def test_rows_come_in_ordered_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BATCH_ROWS", 4)
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(10))
    batches = list(load_comparisons(PairSource(path=str(file))))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [row.id for batch in batches for row in batch] == [f"rows:{number}" for number in range(10)]


def test_trap_18_each_row_is_kept_or_dropped(tmp_path: Path) -> None:
    """Each row is checked by itself; an unusable one is dropped with a reason, and none is lost."""
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


def test_csv_margins_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,chosen,rejected,c,r\n1,2,3,0.5,0.25\nq,a,b,,\n")
    loaded = load(file, margin=["c", "r"], margin_default=0.0)
    assert [row.preferences[0].margin for row in loaded] == [0.25, 0.0]
    assert loaded[0].prompt[0]["content"] == "1", "guard: other cells stay text"


def test_tokenized_source_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps([{"chosen_ids": [1, 2, 9], "rejected_ids": [1, 3, 9]}]))
    ((row,),) = load_comparisons(TokenizedSource(path=str(file), format="tokenized"))
    assert row.id == "tokens:0"


def test_empty_source_has_no_batches(tmp_path: Path) -> None:
    assert load(write_jsonl(tmp_path / "rows.jsonl", [])) == []


def test_gathered_rows_come_as_comparisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw batches are left to other processes; with `group_by_prompt` batches are comparisons."""
    monkeypatch.setattr(loading, "BATCH_ROWS", 4)
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(18, prompts=6))
    raw = list(read_batches(PairSource(path=str(file))))
    assert [(len(batch.rows), batch.is_first) for batch in raw if isinstance(batch, RawBatch)] == [
        (4, True), (4, False), (4, False), (4, False), (2, False),
    ]  # fmt: skip
    gathered = list(read_batches(PairSource(path=str(file), group_by_prompt=True)))
    assert [len(batch) for batch in gathered if isinstance(batch, list)] == [4, 2]
    assert [row.id for batch in gathered for row in batch] == [f"rows:{number}" for number in range(6)]  # type: ignore[union-attr]


def test_gathered_source_refuses_missing_column(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(3))
    with pytest.raises(DataError, match=r'^rows: no column "better"'):
        list(read_batches(PairSource(path=str(file), group_by_prompt=True, chosen="better")))
