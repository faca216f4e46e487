"""Dropped rows, listed by the artifact and read again from their sources."""

import gzip
import json
from pathlib import Path

import pytest

from rmtrain.data import prepare as module
from rmtrain.data.comparison import Dropped
from rmtrain.data.prepare import dropped_rows, read_again, sources_of
from rmtrain.recipe.schema import Data, PairSource

LINES = [
    '{"prompt": "p0", "chosen": "a", "rejected": "b"}',
    '{"prompt": oops}',
    '{"prompt": "p2", "chosen": "x\\u001b[31m", "rejected": "y"}',
    '{"prompt": "p3", "chosen": "\xff"}',
    '{"prompt": "p4", "chosen": "c", "rejected": "d"}',
]


def lost(number: int, source: str = "rows") -> Dropped:
    return Dropped(f"{source}:{number}", source, "why", "what")


@pytest.fixture
def data(tmp_path: Path) -> Data:
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as file:
        file.write("\n".join(LINES).encode("latin-1"))
    (tmp_path / "other.jsonl").write_text("\n".join(LINES[:1] + LINES[4:]))
    (tmp_path / "test.jsonl").write_text(LINES[4])
    return Data(
        train=[
            PairSource(path=str(tmp_path / "rows.jsonl.gz")),
            PairSource(path=str(tmp_path / "other.jsonl"), tag="o:1", holdout=0.5),
        ],
        eval=[PairSource(path=str(tmp_path / "test.jsonl"))],
    )


def test_rows_come_as_their_sources_have_them_and_broken_lines_as_text(data: Data) -> None:
    rows = {row.id: content for row, content in read_again(data, "train", [lost(3), lost(1), lost(2), lost(1, "o:1")])}
    assert rows == {
        "rows:1": LINES[1],
        "rows:2": {"prompt": "p2", "chosen": "x\x1b[31m", "rejected": "y"},
        "rows:3": '{"prompt": "p3", "chosen": "\\xff"}',
        "o:1:1": {"prompt": "p4", "chosen": "c", "rejected": "d"},
    }
    assert list(rows) == ["rows:1", "rows:2", "rows:3", "o:1:1"], "in the order of sources and rows"


def test_rows_that_are_held_out_come_from_the_source_that_was_to_train_on(data: Data) -> None:
    assert [source.title for source in sources_of(data, "train")] == ["rows", "o:1"]
    assert [source.title for source in sources_of(data, "eval")] == ["test", "o:1"]
    found = dict(read_again(data, "eval", [lost(0, "o:1"), lost(0, "test")]))
    assert [content["prompt"] for content in found.values() if isinstance(content, dict)] == ["p4", "p0"]


def test_a_source_is_read_no_further_than_needed(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counting(source: PairSource):  # type: ignore[no-untyped-def]
        for number, row in read_rows(source):
            read.append(number)
            yield number, row

    read_rows = module.read_rows
    monkeypatch.setattr(module, "read_rows", counting)
    assert len(list(read_again(data, "train", [lost(1)]))) == 1
    assert read == [0, 1]
    assert list(read_again(data, "train", [])) == []
    assert read == [0, 1], "guard: nothing is read for nothing"


def test_the_list_of_an_artifact_is_read_by_split(tmp_path: Path) -> None:
    records = [
        {"split": split, "source": "a", "id": f"a:{number}", "reason": "identical", "detail": "the same"}
        for number, split in enumerate(["train", "eval", "train"])
    ]
    (tmp_path / "dropped.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [row.id for row in dropped_rows(tmp_path, "train")] == ["a:0", "a:2"]
    assert list(dropped_rows(tmp_path, "eval")) == [Dropped("a:1", "a", "identical", "the same")]
