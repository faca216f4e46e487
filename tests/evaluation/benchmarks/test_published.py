"""Official files of a folder: which are read, and that no row is left out."""

import json
from pathlib import Path

import pytest

from rmtrain.errors import DataError, RecipeError
from rmtrain.evaluation.benchmarks.judgebench import JUDGEBENCH
from rmtrain.evaluation.benchmarks.llmbar import LLMBAR
from rmtrain.evaluation.benchmarks.published import find_files, read_items
from rmtrain.evaluation.benchmarks.registry import BENCHMARKS, named
from rmtrain.evaluation.benchmarks.rewardbench import REWARDBENCH
from tests.helpers import write_jsonl

ROW = {"id": 4, "prompt": "p", "chosen": "a", "rejected": "b", "subset": "hep-go"}


def test_rows_with_the_same_id_are_told_apart(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"chosen": "c"}, ROW | {"subset": "hep-cpp"}, ROW | {"chosen": "d"}]
    write_jsonl(tmp_path / "filtered.jsonl", rows)
    items = read_items(REWARDBENCH, tmp_path)
    assert [(item.source, item.id) for item in items] == [("hep-go", "4"), ("hep-go", "4#2"), ("hep-cpp", "4"), ("hep-go", "4#3")]


def test_a_bad_row_ends_the_reading_with_its_place(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"chosen": None}, {"id": 1}, ROW | {"subset": "shp"}]
    path = write_jsonl(tmp_path / "filtered.jsonl", rows)
    with pytest.raises(DataError) as refused:
        read_items(REWARDBENCH, path)
    assert [problem.partition(": ")[2].split(": ")[0] for problem in refused.value.problems] == [
        "filtered.jsonl:1",
        "filtered.jsonl:2",
        "filtered.jsonl:3",
    ]
    assert "chosen: expected text, got None" in refused.value.problems[0]


def test_the_split_and_the_own_folder_are_preferred(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "raw.jsonl", [ROW])
    write_jsonl(tmp_path / "filtered.jsonl", [ROW])
    assert [file.name for file in find_files(REWARDBENCH, tmp_path)] == ["filtered.jsonl"]
    (tmp_path / "rewardbench").mkdir()
    write_jsonl(tmp_path / "rewardbench/anything.jsonl", [ROW])
    assert [file.name for file in find_files(REWARDBENCH, tmp_path)] == ["anything.jsonl"]


def test_the_layout_of_the_repositories(tmp_path: Path) -> None:
    row = {"input": "i", "output_1": "a", "output_2": "b", "label": 1}
    for folder in ("Natural", "Adversarial/Neighbor", "Adversarial/Manual"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "dataset.json").write_text(json.dumps([row, row]))
    assert [(item.source, item.id) for item in read_items(LLMBAR, tmp_path)] == [
        (subset, str(number)) for subset in ("Manual", "Neighbor", "Natural") for number in (0, 1)
    ]


def test_nothing_there_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"judgebench: no file of it in .*; expected data/ of github"):
        read_items(JUDGEBENCH, tmp_path)
    with pytest.raises(DataError, match="is not there"):
        read_items(JUDGEBENCH, tmp_path / "absent")
    with pytest.raises(DataError, match="llmbar: it is not on the Hub in a form that can be read; give --data-dir"):
        read_items(LLMBAR, None)


def test_names() -> None:
    assert [benchmark.name for benchmark in named("rm-bench, RewardBench,rm_bench")] == ["rm_bench", "rewardbench"]
    with pytest.raises(RecipeError, match="--benchmark rmbench: expected some of rewardbench,"):
        named("rmbench")
    assert list(BENCHMARKS) == ["rewardbench", "rewardbench2", "rm_bench", "judgebench", "llmbar", "rmb"]
