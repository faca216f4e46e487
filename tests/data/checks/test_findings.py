"""Findings on disk: whole or not at all, and made again when they are not what was written."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from rmtrain.data.checks import audit as module
from rmtrain.data.checks.audit import KINDS, LIST, SUMMARY, Finding, read_findings, summarize_findings, write_findings

FINDINGS = [
    Finding("duplicate", "train", ("a:1", "a:5"), "the same preference, 2 times"),
    Finding("contradictory", "train", ("a:2", "a:5", "a:9"), "2 one way, 1 the other way"),
    *(Finding("duplicate", "eval", tuple(f"b:{k}" for k in range(n)), "ë") for n in range(2, 9)),
]


def test_a_summary_counts_faults_and_rows_and_shows_the_first() -> None:
    summary = summarize_findings(FINDINGS, {"train": 10, "eval": 20})
    assert list(summary["train"]) == ["contradictory", "duplicate"], "the worst first"
    assert summary["train"]["duplicate"] == {
        "found": 1,
        "rows": 2,
        "share": 0.2,
        "examples": [{"ids": ["a:1", "a:5"], "detail": "the same preference, 2 times"}],
    }
    numbers = summary["eval"]["duplicate"]
    assert (numbers["found"], numbers["rows"], numbers["share"]) == (7, 8, 0.4)
    assert [len(example["ids"]) for example in numbers["examples"]] == [2, 3, 4, 5, 5]
    assert summarize_findings([], {"train": 3}) == {"train": {}}


def test_what_is_written_is_read_under_its_key_only(tmp_path: Path) -> None:
    assert read_findings(tmp_path, "key") is None
    assert write_findings(tmp_path, "key", FINDINGS, {"train": {"n": 1}})
    assert read_findings(tmp_path, "key") == {"train": {"n": 1}}
    assert read_findings(tmp_path, "other") is None
    lines = [json.loads(line) for line in (tmp_path / LIST).read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {"kind": "duplicate", "split": "train", "ids": ["a:1", "a:5"], "detail": "the same preference, 2 times"}
    assert len(lines) == len(FINDINGS)
    assert {line["kind"] for line in lines} <= set(KINDS)
    assert sorted(file.name for file in tmp_path.iterdir()) == [SUMMARY, LIST], "nothing temporary is left"


@pytest.mark.parametrize("name", [SUMMARY, LIST])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "empty", "list"])
def test_damaged_files_are_not_read(name: str, damage: str, tmp_path: Path) -> None:
    write_findings(tmp_path, "key", FINDINGS, {"train": {"n": 1}})
    file = tmp_path / name
    text = file.read_text()
    if damage == "gone":
        file.unlink()
    else:
        file.write_text({"cut": text[:-9], "changed": text.replace("1", "2", 1), "empty": "", "list": "[]"}[damage])
    assert read_findings(tmp_path, "key") is None
    assert write_findings(tmp_path, "key", FINDINGS, {"train": {"n": 1}}), "guard: made again"
    assert read_findings(tmp_path, "key") is not None


@pytest.mark.parametrize(("number", "raises"), [(errno.EROFS, False), (errno.EACCES, False), (errno.ENOSPC, True)])
def test_a_read_only_disk_is_told_and_a_full_one_raised(
    number: int, raises: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Path, text: str) -> Any:
        raise OSError(number, "no")

    monkeypatch.setattr(module, "_write", refuse)
    if raises:
        with pytest.raises(OSError, match="no"):
            write_findings(tmp_path, "key", [], {})
    else:
        assert not write_findings(tmp_path, "key", [], {})
