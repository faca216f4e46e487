"""Files as they are published: which are read, that no row is left out, and scores that were made elsewhere."""

import gzip
import json
import os
from pathlib import Path

import pytest

from rmtrain.errors import DataError, RecipeError
from rmtrain.evaluation.benchmarks import published
from rmtrain.evaluation.benchmarks.judgebench import JUDGEBENCH
from rmtrain.evaluation.benchmarks.llmbar import LLMBAR
from rmtrain.evaluation.benchmarks.measure import BENCHMARKS, measure, named
from rmtrain.evaluation.benchmarks.published import find_files, read_items, read_output
from rmtrain.evaluation.benchmarks.rewardbench import REWARDBENCH
from rmtrain.evaluation.scores_file import write_scores
from tests.evaluation.benchmarks.rows import many, with_lengths
from tests.helpers import write_jsonl

ROW = {"id": 4, "prompt": "p", "chosen": "a", "rejected": "b", "subset": "hep-go"}


def test_repeated_ids_are_numbered(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"chosen": "c"}, ROW | {"subset": "hep-cpp"}, ROW | {"chosen": "d"}]
    write_jsonl(tmp_path / "filtered.jsonl", rows)
    items = read_items(REWARDBENCH, tmp_path)
    assert [(item.source, item.id) for item in items] == [("hep-go", "4"), ("hep-go", "4#2"), ("hep-cpp", "4"), ("hep-go", "4#3")]


def test_bad_rows_are_located(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"chosen": None}, {"id": 1}, ROW | {"subset": "shp"}]
    path = write_jsonl(tmp_path / "filtered.jsonl", rows)
    with pytest.raises(DataError) as refused:
        read_items(REWARDBENCH, path)
    assert [problem.partition(": ")[2].split(": ")[0] for problem in refused.value.problems] == [
        "filtered.jsonl:1",
        "filtered.jsonl:2",
        "filtered.jsonl:3",
    ]
    assert "chosen: " in refused.value.problems[0]


def test_split_and_own_folder_are_preferred(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "raw.jsonl", [ROW])
    write_jsonl(tmp_path / "filtered.jsonl", [ROW])
    assert [file.name for file in find_files(REWARDBENCH, tmp_path)] == ["filtered.jsonl"]
    (tmp_path / "rewardbench").mkdir()
    write_jsonl(tmp_path / "rewardbench/anything.jsonl", [ROW])
    assert [file.name for file in find_files(REWARDBENCH, tmp_path)] == ["anything.jsonl"]


def test_folder_layout_of_the_repositories(tmp_path: Path) -> None:
    row = {"input": "i", "output_1": "a", "output_2": "b", "label": 1}
    for folder in ("Natural", "Adversarial/Neighbor", "Adversarial/Manual"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "dataset.json").write_text(json.dumps([row, row]))
    assert [(item.source, item.id) for item in read_items(LLMBAR, tmp_path)] == [
        (subset, str(number)) for subset in ("Manual", "Neighbor", "Natural") for number in (0, 1)
    ]


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^judgebench: .*github"):
        read_items(JUDGEBENCH, tmp_path)
    with pytest.raises(DataError, match=r"^judgebench: .*absent"):
        read_items(JUDGEBENCH, tmp_path / "absent")
    with pytest.raises(DataError, match=r"^llmbar: .*--data-dir"):
        read_items(LLMBAR, None)


def test_benchmark_names() -> None:
    assert [benchmark.name for benchmark in named("rm-bench, RewardBench,rm_bench")] == ["rm_bench", "rewardbench"]
    with pytest.raises(RecipeError, match=r"^--benchmark rmbench: ") as refused:
        named("rmbench")
    assert refused.value.problems[0].endswith(f" {','.join(BENCHMARKS)}"), "the list that --help promises"
    assert len(BENCHMARKS) >= 6, "guard"


def test_own_file_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [with_lengths(row, (5, 7)) for row in [*many("Natural", 3, 2, 1), *many("Manual", 1, 1)]]
    write_scores(tmp_path / "scores.jsonl", rows)
    assert read_output(LLMBAR, tmp_path / "scores.jsonl") == rows
    assert measure(LLMBAR, rows)["n"] == 8


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("", ":1:1: "),
        ("[1, 2]", ": "),
        ('{"a": 1}', " a"),
        ('{"a": [1]', ":1:10: "),
        ('[{"a": 1}]', "LLMBar"),
        ("[" * 100_000, ":1: "),
        ('\n{"a": ' + "9" * 5000 + "}", ":2: "),
        ('{"a": ["\\ud800"]}', ": lone surrogate"),
    ],
)
def test_unreadable_score_files_are_refused(tmp_path: Path, content: str, shown: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError) as refused:
        read_output(LLMBAR, tmp_path / "x.json")
    assert refused.value.problems[0].startswith(str(tmp_path / "x.json"))
    assert shown in refused.value.problems[0]


@pytest.mark.parametrize("value", [10**400, -(10**400), 1e308, True, "1", [[1]], {}, None])
def test_rewards_of_other_scripts_are_checked(tmp_path: Path, value: object) -> None:
    """Numbers that float32 does not have are refused with file and row."""
    path = tmp_path / "x.json"
    columns = {"scores_chosen": [1, value], "scores_rejected": [0, 0], "subset": ["hep-go"] * 2}
    path.write_text(json.dumps(columns))
    with pytest.raises(DataError) as refused:
        read_output(REWARDBENCH, path)
    (problem,) = refused.value.problems
    assert problem.startswith(f"{path}: row 1: ")
    assert len(problem) < 400


def test_size_of_score_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one that is small while it is compressed; what is not a file in a folder is passed over."""
    rows = [*many("Natural", 3, 2, 1)]
    write_scores(tmp_path / "scores/scores.jsonl", rows)
    os.mkfifo(tmp_path / "scores/pipe.json")
    (tmp_path / "scores/zero.jsonl").symlink_to("/dev/zero")
    assert read_output(LLMBAR, tmp_path / "scores") == rows
    monkeypatch.setattr(published, "MAX_BYTES", 1000)
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(b"[" + b" " * 10**6))
    with pytest.raises(DataError, match=r"x\.json\.gz: .* 1,000 bytes"):
        read_output(LLMBAR, tmp_path / "x.json.gz")
