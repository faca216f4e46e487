"""Valid files of each kind that `rmtrain` reads, and ways to damage them at random."""

import csv
import gzip
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict

from rmtrain.evaluation.scores_file import write_scores
from tests.evaluation.benchmarks.rows import best_of, many, with_lengths
from tests.exports import tiny_export
from tests.runs import planted_rows, write_rows

RECIPE = """
run: {name: fuzz, output_dir: run}
data: {train: [{path: rows.jsonl}], chat_template: simple_chat, max_length: 96, cache_dir: cache, max_drop_fraction: 1.0}
model: {scratch: {architecture: llama, hidden_size: 32, layers: 2, heads: 2, vocab_size: 512}, tokenizer: MODEL}
optimizer: {lr: 1e-3}
training: {batch_size: 4}
"""
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, -1e308, 5e-324, 0.5, float("nan"), float("-inf")),
    *("", "x", "\x00", "\x1b[31mred", "é", "\ud800", "x" * 5000, "../../etc/passwd", "/dev/zero", "~nosuchuser", "{{ 7 * 7 }}"),
    *([], [[]], [None], {}, {"": {}}, [0] * 300, {"a": {"b": {"c": []}}}, ["a", 1, None], {"role": "user", "content": None}),
]
FRAGMENTS: list[bytes] = [
    *(b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\n", b"\r", b'"', b"{", b"}", b"[", b",", b"\\", b"\\ud800", b"NaN"),
    *(
        b"-Infinity",
        b"1e999",
        b"9" * 5000,
        b"[" * 3000,
        b'{"a":' * 3000,
        b'"x',
        b"\x1b]0;x\x07",
        b"null",
        b"-0.0",
        b"{}\n",
        b"[]\n",
    ),
]
WHOLE: list[bytes] = [
    *(
        b"",
        b"\n",
        b"{}",
        b"[]",
        b"[{}]",
        b"null",
        b"0",
        b'""',
        b"\x00" * 4096,
        b"PAR1",
        b"PAR1PAR1",
        b"\x1f\x8b",
        gzip.compress(b""),
    ),
    *(
        "{}".encode("utf-16"),
        '{"a": 1}'.encode("utf-32"),
        "é".encode("latin-1") * 40,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1e999\n" * 9,
    ),
    *(gzip.compress(b"x" * 2**24), gzip.compress(b'{"a": 1}\n' * 2**17), b"a,b\n" * 9, b'"', random.Random(0).randbytes(3000)),
]


def make_originals(folder: Path) -> None:
    """Write valid files of all kinds into a folder."""
    rows = planted_rows(12, seed=1)
    tiny_export(folder / "exported")
    (folder / "fuzz.yaml").write_text(RECIPE.replace("MODEL", str(folder / "exported")))
    text = write_rows(folder / "rows.jsonl", rows).read_bytes()
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(text))
    (folder / "array.json").write_text(json.dumps(rows, indent=1))
    for name, delimiter in (("rows.csv", ","), ("rows.tsv", "\t")):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    (folder / "rows.csv.gz").write_bytes(gzip.compress((folder / "rows.csv").read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    DatasetDict(train=Dataset.from_list(rows)).save_to_disk(str(folder / "several"))
    _make_scoring(folder)
    _make_benchmarks(folder / "theirs")


def _make_scoring(folder: Path) -> None:
    inputs: list[dict[str, Any]] = [
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "responses": ["a", "b"], "tools": None},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "id": 3},
    ]
    text = write_rows(folder / "input.jsonl", inputs * 2).read_bytes()
    (folder / "input.jsonl.gz").write_bytes(gzip.compress(text))
    pairs = [with_lengths(row, (5, 7)) for row in many("s", 3, 2, 1)]
    for name in ("scores.jsonl", "other.jsonl"):
        write_scores(folder / name, pairs, {"objective": {"type": "bradley_terry"}, "dtype": "float32"})
    rewardbench = {"scores_chosen": [1.0, 0.5], "scores_rejected": [0.0, 2.0], "subset": ["hep-go", "donotanswer"], "id": [1, 2]}
    (folder / "columns.json").write_text(json.dumps(rewardbench))
    (folder / "accuracies.json").write_text(json.dumps({"hep-go": 0.5, "donotanswer": 1.0, "model": "m"}))
    ties = [
        best_of("Ties", 1.0, 2.0, 0.0, name="tied:1", right=2),
        best_of("Ties", 1.0, 0.0, name="ref:1"),
        best_of("Math", 1.0, 0.0, 2.0, 3.0),
    ]
    write_scores(folder / "ties.jsonl", ties, {"benchmark": "rewardbench2"})
    styles = {"id": "1", "domain": "chat", "score_chosen": [1.0, 2.0, 3.0], "score_rejected": [0.0, 1.5, 2.5]}
    (folder / "styles.json").write_text(json.dumps([styles, styles]))
    judged = {"label": "A>B", "source": "mmlu-pro-law", "judgments": [{"judgment": {"scores": [1.0, 0.5]}}], "question": "q"}
    write_rows(folder / "judged.jsonl", [judged, judged])


def _make_benchmarks(folder: Path) -> None:
    answer = {"llm_name": "m", "answer": "a"}
    turns = [{"role": "user", "content": "q"}]
    files: dict[str, list[dict[str, Any]]] = {
        "rewardbench/filtered.jsonl": [{"id": 4, "prompt": "p", "chosen": "a", "rejected": "b", "subset": "hep-go"}] * 2,
        "rewardbench2/test.jsonl": [
            {"id": "tied:1", "prompt": "p", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Ties"},
            {"id": "ref:1", "prompt": "p", "chosen": ["a"], "rejected": ["c"], "subset": "Ties"},
        ],
        "rm_bench/chat_filtered.jsonl": [{"id": 1, "prompt": "p", "chosen": ["a"] * 3, "rejected": ["b"] * 3}] * 2,
        "llmbar/Natural/dataset.jsonl": [{"input": "i", "output_1": "a", "output_2": "b", "label": 1}] * 2,
        "judgebench/gpt.jsonl": [
            {"label": "A>B", "source": "mmlu-pro-law", "question": "q", "response_A": "a", "response_B": "b", "pair_id": "1"}
        ],
        "rmb/BoN_set/Harmlessness/S1.jsonl": [
            {
                "bon_uid": 7,
                "conversation_input": turns,
                "bon_best": answer,
                "loser_list": [answer],
                "category_path": "BoN_set/Harmlessness/S1",
            }
        ],
        "rmb/Pairwise_set/Helpfulness/Code.jsonl": [
            {
                "pair_uid": 3,
                "conversation_input": turns,
                "chosen": answer,
                "reject": answer,
                "category_path": "Pairwise_set/Helpfulness/Code",
            }
        ],
    }
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_rows(folder / name, rows)


def damage(file: Path, others: Sequence[Path], rng: random.Random) -> str:
    """Damage a file, or replace it by another one or by something that is not a file; return what was done."""
    ways: list[Callable[[Path, random.Random], None]] = [damage_bytes, replace_whole, replace_file]
    if file.suffix in (".json", ".jsonl"):
        ways += [damage_json] * 6
    if file.suffix == ".gz":
        ways += [damage_compressed] * 2
    if file.suffix == ".parquet":
        ways += [damage_table] * 3
    if len(others) > 1:
        ways.append(partial(swap, others=others))
    way = rng.choice([damage_bytes, damage_bytes, *ways])
    way(file, rng)
    return f"{getattr(way, '__name__', 'swap')} {file.name}"


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Return bytes with one to four changes: flipped, cut, repeated, or with hostile text in between."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        begin = rng.randrange(len(data) + 1)
        end = min(len(data), begin + rng.choice([1, 1, 4, 16, 64, 1000]))
        change = rng.randrange(5)
        if change == 0 and begin < len(data):
            data[begin] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[begin:end] = b""
        elif change == 2:
            data[begin:begin] = data[begin:end] * rng.choice([1, 2, 50])
        elif change == 3:
            data[begin : rng.choice([begin, end])] = rng.choice(FRAGMENTS)
        else:
            data[rng.choice([begin, len(data) - len(data) // 8]) :] = b""
    return bytes(data)


def damage_bytes(file: Path, rng: random.Random) -> None:
    """Change some bytes."""
    file.write_bytes(damaged(file.read_bytes(), rng))


def damage_compressed(file: Path, rng: random.Random) -> None:
    """Change some bytes before compression."""
    file.write_bytes(gzip.compress(damaged(gzip.decompress(file.read_bytes()), rng)))


def replace_whole(file: Path, rng: random.Random) -> None:
    """Replace the content."""
    content = rng.choice(WHOLE)
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" and rng.random() < 0.5 else content)


def replace_file(file: Path, rng: random.Random) -> None:
    """Replace a file by something else, or by nothing."""
    file.unlink()
    kind = rng.randrange(7)
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        os.mkfifo(file)
    elif kind < 6:
        file.symlink_to(["/dev/zero", file.name, "nothing", "/dev/null"][kind - 2])


def swap(file: Path, rng: random.Random, others: Sequence[Path]) -> None:
    """Replace the content by that of another file."""
    shutil.copy(rng.choice(others), file)


def damage_json(file: Path, rng: random.Random) -> None:
    """Replace, remove, rename or repeat a value of a JSON document or of one of its lines."""
    text = file.read_text(encoding="utf-8")
    is_lines = file.suffix == ".jsonl"
    documents = [json.loads(line) for line in text.splitlines()] if is_lines else [json.loads(text)]
    for _ in range(rng.choice([1, 1, 2])):
        places = list(_places(documents)) or [([None], 0)]
        section, key = rng.choice(places)
        change = rng.randrange(8)
        if change == 0:
            del section[key]
        elif change == 1 and isinstance(section, dict):
            section[rng.choice(["", "x", "\x1b[31m", "é" * 300])] = section.pop(key)
        elif change == 2:
            section[key] = [deepcopy(section[key]) for _ in range(rng.choice([1, 2, 50]))]
        elif change == 3 and isinstance(section, list):
            section.append(deepcopy(section[key]))
        else:
            section[key] = deepcopy(rng.choice(VALUES))
    made = [json.dumps(document, ensure_ascii=rng.random() < 0.8) for document in documents]
    file.write_bytes("\n".join(made).encode("utf-8", "surrogatepass"))


def _places(value: Any) -> Any:
    """Yield each list or object in a value with each of its keys."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in list(entries):
        yield value, key
        yield from _places(entry)


def damage_table(file: Path, rng: random.Random) -> None:
    """Replace or add a column of a Parquet file, of a type or with values that Python does not have."""
    table = pq.read_table(file)
    count = len(table)
    column = rng.choice(
        [
            pa.array([2**62] * count, pa.timestamp("us")),
            pa.array([2**62] * count, pa.timestamp("ns", "Nowhere/Atlantis")),
            pa.array([-(2**31)] * count, pa.date32()),
            pa.array([2**62] * count, pa.duration("s")),
            pa.array([2**40] * count, pa.time64("us")),
            pa.array([b"\xff\xfe"] * count, pa.binary()),
            pa.Array.from_buffers(pa.string(), count, [None, *_texts(count)]),
            pa.array([[("a", 1), ("a", 2)]] * count, pa.map_(pa.string(), pa.int64())),
            pa.array([{"a": None}] * count, pa.struct([("a", pa.null())])),
            pa.array(["a"] * count).dictionary_encode(),
            pa.nulls(count),
        ]
    )
    name = rng.choice([*table.column_names, "more"])
    table = table.drop_columns([name]) if name in table.column_names else table
    metadata = rng.choice([None, {"huggingface": rng.choice(["{}", "[", '{"info": {"features": {"more": 1}}}', '{"info": 1}'])}])
    pq.write_table(table.append_column(name, column).replace_schema_metadata(metadata), file)


def _texts(count: int) -> list[pa.Buffer]:
    """Buffers of an array of texts that are not UTF-8."""
    text = b"\xff\xfe\xfd"
    offsets = pa.array([len(text) * number for number in range(count + 1)], pa.int32()).buffers()[1]
    return [offsets, pa.py_buffer(text * count)]
