"""Training rows that have a prompt of a benchmark, in whatever shape the benchmark comes."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from rmtrain.data.artifact import TokenizedData
from rmtrain.data.checks.contamination import PROMPT_COLUMNS, benchmark_overlap
from rmtrain.data.text.tokenizer import prepared
from rmtrain.errors import DataError
from tests.edges import prepared_rows, row
from tests.helpers import byte_bpe, write_jsonl

QUESTION = "Which city is on the Seine?"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return prepared(byte_bpe(), "simple_chat")


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> TokenizedData:
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": QUESTION},
    ]
    rows = [
        row("What is bread?", "a", "b"),
        row(QUESTION, "Paris", "Rome"),
        row("Sort these: 3 1 2", "1 2 3", "3 2 1"),
        {"prompt": turns, "chosen": "Paris", "rejected": "Rome"},
    ]
    return prepared_rows(tmp_path_factory.mktemp("train"), tokenizer, rows)[0].train


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        write_jsonl(path, rows)
    return str(path)


@pytest.mark.parametrize("name", ["bench.jsonl", "bench.json", "bench.csv", "bench.parquet"])
def test_trap_12_benchmark_prompt_in_any_file_format(name: str, tmp_path: Path, train: TokenizedData) -> None:
    """A prompt of a benchmark is found in every file format, in any case and spacing."""
    file = write(tmp_path / name, [{"id": 1, "prompt": "Other?"}, {"id": 2, "prompt": f"  {QUESTION.upper()}\n"}])
    assert benchmark_overlap(train, [file]) == {1: f"{name}:1"}


@pytest.mark.parametrize("column", PROMPT_COLUMNS)
def test_prompt_column_has_usual_names(column: str, tmp_path: Path, train: TokenizedData) -> None:
    file = write(tmp_path / "bench.jsonl", [{"id": "x", column: QUESTION, "chosen": "Paris"}])
    assert benchmark_overlap(train, [file]) == {1: "bench.jsonl:0"}


@pytest.mark.parametrize(
    ("cells", "rows"),
    [
        ({"prompt": [{"role": "user", "content": QUESTION}]}, [1]),
        ({"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Lyon"}]}, [1]),
        ({"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": QUESTION}]}, [1]),
        ({"conversation_input": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]}, []),
        ({"prompt": f"\n\nHuman: Hello.\n\nAssistant: Hi.\n\nHuman: {QUESTION}\n\nAssistant:"}, [3]),
        ({"instruction": "Sort these:", "input": "3 1 2"}, [2]),
        ({"instruction": QUESTION, "input": ""}, [1]),
        ({"input": QUESTION, "output_1": "Paris"}, [1]),
        ({"prompt": "Which city is on the Seine"}, []),
    ],
)
def test_prompts_of_every_shape_are_compared(
    cells: dict[str, Any], rows: list[int], tmp_path: Path, train: TokenizedData
) -> None:
    file = write(tmp_path / "bench.jsonl", [cells])
    assert list(benchmark_overlap(train, [file])) == rows


def test_several_benchmark_files_or_none(tmp_path: Path, train: TokenizedData) -> None:
    files = [write(tmp_path / "a.jsonl", [{"prompt": "What is bread?"}]), write(tmp_path / "b.json", [{"question": QUESTION}])]
    assert benchmark_overlap(train, files) == {0: "a.jsonl:0", 1: "b.json:0"}
    assert benchmark_overlap(train, []) == {}


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("none.jsonl", None, r"none\.jsonl does not exist"),
        ("notes.txt", "text", r"notes\.txt "),
        ("empty.jsonl", "", r"empty\.jsonl "),
        ("broken.jsonl", '{"prompt": "a"}\n{oops\n', r"broken\.jsonl:1 .* broken\.jsonl:2:"),
        ("broken.json", '[{"prompt" 1}]', r"broken\.json:1:12: "),
        ("other.jsonl", '{"id": 1, "answer": "a"}', r"other\.jsonl:0 .* id, answer$"),
        ("odd.jsonl", '{"prompt": 7}', r"odd\.jsonl:0: prompt "),
    ],
)
def test_unreadable_benchmark_file_is_an_error(
    name: str, content: str | None, place: str, tmp_path: Path, train: TokenizedData
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=r"^data\.benchmarks: .*" + place) as error:
        benchmark_overlap(train, [str(tmp_path / name)])
    assert len(error.value.problems) == 1


def test_real_benchmarks_are_read(shared_data: Path, train: TokenizedData) -> None:
    for name in ("llmbar_natural.json", "rmbench_chat.json", "pandalm_test.json"):
        assert benchmark_overlap(train, [str(shared_data / name)]) == {}
