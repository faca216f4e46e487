"""Sources from files and directories, cached Hub datasets, and the fingerprints of a cache key."""

import gzip
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, load_dataset_builder
from tokenizers import Tokenizer

from rmtrain.data.rows.dataset import read_rows
from rmtrain.data.rows.fingerprint import Snapshot, digest, fingerprint, source_identity, tokenizer_fingerprint
from rmtrain.data.rows.readers import Malformed, parse
from rmtrain.errors import DataError, RecipeError, TryAgain
from rmtrain.recipe.schema import AbSource, PairSource
from tests.helpers import byte_bpe, llama_like, pairs, write_jsonl

ROWS = pairs(5)


def read(path: Path | str, **keys: Any) -> list[Any]:
    numbered = list(read_rows(PairSource(path=str(path), **keys)))
    assert [number for number, _ in numbered] == list(range(len(numbered)))
    return [parse(row) for _, row in numbered]


def write(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        path.write_text("prompt,chosen,rejected\n" + "".join(f'{r["prompt"]},{r["chosen"]},"{r["rejected"]}"\n' for r in rows))
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else lines)
    return path


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet"])
def test_every_file_format_gives_same_rows(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path / name)) == ROWS
    assert read(tmp_path / name, limit=2) == ROWS[:2]
    assert read(tmp_path / name, split="train") == ROWS


def test_paths_are_relative_to_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in" / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    assert read("in/rows.jsonl") == ROWS


def test_malformed_row_keeps_its_number(tmp_path: Path) -> None:
    """A malformed row keeps its number, and the rows after it are read."""
    file = tmp_path / "hh.jsonl"
    file.write_text('{"chosen": "a"}\n{broken\n{"chosen": "b"}\n')
    first, bad, last = read(file)
    assert (first, last) == ({"chosen": "a"}, {"chosen": "b"})
    assert isinstance(bad, Malformed)
    assert bad.detail.startswith("hh.jsonl:2:2: Expecting property name")


@pytest.mark.parametrize(
    "names",
    [
        ["train.jsonl", "test.jsonl"],
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"],
        ["data/train_0.jsonl.gz", "data/train_1.jsonl.gz", "data/test_0.jsonl"],
        ["train/part-0.csv", "train/part-1.csv", "test/part-0.csv"],
        ["train/0.json", "test/0.json"],
    ],
)
def test_split_is_file_name_or_folder(tmp_path: Path, names: list[str]) -> None:
    """The split of a file in a directory is its name without shard number, or its folder."""
    shards = [name for name in names if "train" in name]
    size = len(ROWS) // len(shards)
    for number, name in enumerate(shards):
        write(tmp_path / name, ROWS[size * number :] if number == len(shards) - 1 else ROWS[:size])
    write(tmp_path / next(name for name in names if "test" in name), ROWS[:1])
    assert read(tmp_path, split="train") == ROWS
    assert read(tmp_path, split="test") == ROWS[:1]
    with pytest.raises(DataError, match=r"\b2 splits; .*`split`.* test, train$"):
        read(tmp_path)
    with pytest.raises(DataError, match=r'"validation"; .* test, train$'):
        read(tmp_path, split="validation")


def test_data_dir_and_data_files_narrow_directory(tmp_path: Path) -> None:
    """`data_dir` and `data_files` select files of a directory; hidden files and metadata are ignored."""
    write(tmp_path / "harmless" / "train.jsonl")
    write(tmp_path / "helpful" / "train.jsonl", ROWS[:1])
    write(tmp_path / "helpful" / "notes.txt")
    write(tmp_path / "dataset_infos.json", [])
    write(tmp_path / ".cache" / "old.jsonl")
    write(tmp_path / "more" / "extra.jsonl", ROWS[:1])
    assert read(tmp_path, data_dir="harmless") == ROWS
    assert read(tmp_path, data_files="helpful/*.jsonl") == ROWS[:1]
    assert read(tmp_path, data_files=["helpful/train.jsonl", "harmless/train.jsonl"]) == [*ROWS, ROWS[0]]
    assert read(tmp_path, split="train") == [*ROWS, ROWS[0]]
    assert read(tmp_path, data_files=["more/*", "helpful/*"]) == [ROWS[0], ROWS[0]], "named files are one split"
    with pytest.raises(DataError, match=r"\*\.csv$"):
        read(tmp_path, data_files="*.csv")
    with pytest.raises(DataError, match=r"/harmful does not exist"):
        read(tmp_path, data_dir="harmful")


def test_save_to_disk_directories_are_read(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:2])).save_to_disk(str(tmp_path / "two"))
    assert read(tmp_path / "one") == ROWS
    assert read(tmp_path / "two", split="test") == ROWS[:2]
    with pytest.raises(DataError, match=r"\b2 splits; .*`split`.* train, test$"):
        read(tmp_path / "two")
    with pytest.raises(DataError, match=r'"dev"; .* train, test$'):
        read(tmp_path / "two", split="dev")
    with pytest.raises(DataError, match=r'/one: no split "test"; '):
        read(tmp_path / "one", split="test")


@pytest.mark.parametrize(
    ("path", "keys", "error", "problem"),
    [
        ("./missing.jsonl", {}, DataError, r"^\./missing\.jsonl does not exist in /"),
        ("missing.parquet", {}, DataError, r"^missing\.parquet does not exist in /"),
        ("a/b/c", {}, DataError, r"^a/b/c does not exist in /"),
        ("rows.jsonl", {"streaming": True, "limit": 2}, RecipeError, r"^rows\.jsonl: `streaming` "),
        ("rows.jsonl", {"name": "x"}, RecipeError, r"^rows\.jsonl: `name` .*; remove"),
        ("rows.jsonl", {"revision": "main"}, RecipeError, r"^rows\.jsonl: `revision` .*; remove"),
        ("rows.jsonl", {"data_files": "x"}, RecipeError, r"^rows\.jsonl: `data_files` .*; remove"),
        ("rows.jsonl", {"split": "test"}, DataError, r'^rows\.jsonl: .*"test"; .*`split`'),
        ("rows.txt", {}, DataError, r"^rows\.txt: not .* \.json, \.jsonl, "),
        ("*.jsonl", {}, DataError, r'^\*\.jsonl: .*path: \. and data_files: "\*\.jsonl"$'),
        ("in/part-[0-9].jsonl", {}, DataError, r'^in/part-\[0-9\]\.jsonl: .*path: in and data_files: "part-\[0-9\]\.jsonl"$'),
        ("/*.jsonl", {}, DataError, r'path: / and data_files: "\*\.jsonl"$'),
        ("~/a/**/x?.csv", {}, DataError, r'path: ~/a and data_files: "\*\*/x\?\.csv"$'),
    ],
)
def test_missing_paths_and_wrong_keys_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, keys: dict[str, Any], error: type[Exception], problem: str
) -> None:
    """A missing path, or a key that does not apply to a local file, is an error in one line that names it."""
    write(tmp_path / "rows.jsonl")
    (tmp_path / "rows.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=problem) as raised:
        read(path, **keys)
    assert "\n" not in str(raised.value)
    assert str(raised.value).partition("; set ")[0].count(path) == 1, "the place once"


def test_unreachable_hub_id_is_refused() -> None:
    with pytest.raises(DataError, match=r"^set: .*Couldn't reach .*nobody/set") as error:
        read("nobody/set")
    assert "\n" not in str(error.value)
    assert str(error.value).count("nobody/set") == 1


@pytest.fixture
def cached_on_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Hub dataset, as `datasets` leaves it in its cache for later use without network; returns its version."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split, rows in {"train": ROWS, "test": ROWS[:2]}.items():
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    builder = load_dataset_builder("json", data_files=files)
    builder.download_and_prepare()
    target = tmp_path / "cache" / "owner___pairs" / "default" / "0.0.0" / builder.hash
    shutil.copytree(builder.cache_dir, target)
    for file in target.glob("*.arrow"):
        file.rename(file.with_name(file.name.replace("json-", "pairs-")))
    return str(builder.hash)


def test_cached_hub_dataset_is_read_offline(cached_on_hub: str) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert read("owner/pairs", split="train") == ROWS
    assert read("owner/pairs", split="test", revision=cached_on_hub) == ROWS[:2]
    with pytest.raises(DataError, match=r"owner/pairs: 2 splits; .*`split`.* train, test$"):
        read("owner/pairs")
    with pytest.raises(DataError, match=r'"dev".*train.*test'):
        read("owner/pairs", split="dev")
    with pytest.raises(DataError, match=r"for config 'harmless'"):
        read("owner/pairs", name="harmless", split="train")
    fingerprints = {fingerprint(PairSource(path="owner/pairs", split=split)) for split in ("train", "test", "train")}
    assert len(fingerprints) == 2


def test_pinned_revision_is_not_replaced_offline(cached_on_hub: str) -> None:
    """Offline, another revision than the cached one is an error that names the cached one."""
    with pytest.raises(DataError, match=rf"^owner/pairs: .*\bv1\.0; .*{cached_on_hub}$"):
        read("owner/pairs", split="train", revision="v1.0")


def test_fingerprint_depends_on_bytes_only(tmp_path: Path) -> None:
    """Neither the location nor the time of a file changes its fingerprint; one changed byte does."""
    file = write(tmp_path / "rows.jsonl")
    before, times = fingerprint(PairSource(path=str(file))), file.stat()
    copy = write(tmp_path / "elsewhere" / "rows.jsonl")
    assert fingerprint(PairSource(path=str(copy))) == before
    file.write_bytes(file.read_bytes().replace(b"0 plus", b"O plus"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_size == times.st_size
    assert fingerprint(PairSource(path=str(file))) != before


def test_fingerprint_depends_on_the_reader(tmp_path: Path) -> None:
    """The same bytes are other rows under another name."""
    files = [write(tmp_path / name, ROWS) for name in ("rows.json", "rows.jsonl")]
    for name in ("rows.csv", "rows.tsv", "rows.csv.gz"):
        files.append(tmp_path / name)
        files[-1].write_bytes(files[0].read_bytes())
    assert len({fingerprint(PairSource(path=str(file))) for file in files}) == len(files)


RENAMED = {"by": "value", "column": "winner", "values": {"model_a": "a", "model_b": "b"}}


@pytest.mark.parametrize("stored", ["parquet", "saved"])
@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (RENAMED, ["model_a", "model_b", None, "tie"]),
        (RENAMED | {"values": {0: "a", 1: "b"}}, [0, 1, -1, 2]),
        ({"by": "index", "column": "winner"}, [0, 1, -1, 2]),
        (RENAMED | {"values": {"left": "a", "right": "b"}}, [0, 1, -1, 2]),
    ],
    ids=["names", "numbers", "index", "unknown"],
)
def test_class_labels_are_numbers_or_names(tmp_path: Path, stored: str, label: dict[str, Any], shown: list[Any]) -> None:
    """A ClassLabel is stored as a number; it becomes its name where the recipe names its values, also in `filter`."""
    features = datasets.Features(
        {"winner": datasets.ClassLabel(names=["model_a", "model_b", "tie"]), "x": datasets.Value("string")}
    )
    dataset = Dataset.from_dict({"winner": [0, 1, -1, 2], "x": list("abcd")}, features=features)
    path = tmp_path / f"rows.{stored}"
    dataset.to_parquet(str(path)) if stored == "parquet" else dataset.save_to_disk(str(path))
    source = AbSource(path=str(path), format="ab", a="x", b="y", label=label)
    assert [parse(row)["winner"] for _, row in read_rows(source)] == shown  # type: ignore[index]
    filtered = PairSource(path=str(path), filter=[{"column": "winner", "is_not": "tie"}])
    assert [parse(row)["winner"] for _, row in read_rows(filtered)] == ["model_a", "model_b", None, "tie"]  # type: ignore[index]


@pytest.mark.parametrize("metadata", [b"{", b"[]", b"null", b'{"info": {"features": {"x": 1}}}', b"[" * 100_000])
def test_foreign_parquet_metadata_is_ignored(tmp_path: Path, metadata: bytes) -> None:
    table = pa.Table.from_pylist(ROWS).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet") == ROWS


def grow(file: Path) -> None:
    with file.open("a") as stream:
        stream.write("\n")


def grow_and_shrink(file: Path) -> None:
    content = file.read_bytes()
    time.sleep(0.02)  # file systems count time in steps of milliseconds
    grow(file)
    file.write_bytes(content)


def replace_file(file: Path) -> None:
    copy = file.with_name("copy")
    copy.write_bytes(file.read_bytes())
    copy.rename(file)


@pytest.mark.parametrize("change", [grow, grow_and_shrink, replace_file, Path.unlink])
def test_change_while_read_is_try_again(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Even where the bytes are the same again, others may have been read; an error of a file that is being written is this one."""
    sources = [PairSource(path=str(write(tmp_path / name))) for name in ("one.jsonl", "two.jsonl")]
    with Snapshot(sources).unchanged():
        read(tmp_path / "two.jsonl")
    with pytest.raises(TryAgain, match=rf"^{tmp_path}/two\.jsonl: "), Snapshot(sources).unchanged():
        change(tmp_path / "two.jsonl")
    write(tmp_path / "two.jsonl")
    snapshot = Snapshot(sources)
    with pytest.raises(DataError, match="no column"), snapshot.unchanged():
        raise DataError("no column")
    change(tmp_path / "two.jsonl")
    with pytest.raises(TryAgain), snapshot.unchanged():
        raise DataError("no column")


def test_fingerprint_of_directory_covers_read_files(tmp_path: Path) -> None:
    """Only the files that are read count."""
    write(tmp_path / "train.jsonl")
    write(tmp_path / "test.jsonl", ROWS[:2])
    source = PairSource(path=str(tmp_path), split="train")
    before = fingerprint(source)
    write(tmp_path / "test.jsonl", ROWS[:3])
    assert fingerprint(source) == before
    write(tmp_path / "train-1.jsonl", ROWS[:3])
    assert fingerprint(source) != before
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    Dataset.from_list(ROWS[:3]).save_to_disk(str(tmp_path / "other"))
    assert fingerprint(PairSource(path=str(tmp_path / "saved"))) != fingerprint(PairSource(path=str(tmp_path / "other")))


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("owner/pairs", "pairs"),
        ("in/hh.jsonl.gz", "hh"),
        ("in/rows.v2.csv", "rows.v2"),
        ("folder/", "folder"),
        (".", "."),
        (".jsonl", ".jsonl"),
    ],
)
def test_source_title_is_last_path_part(path: str, label: str) -> None:
    source = PairSource(path=path)
    assert source.title == label
    assert source.model_copy(update={"tag": "mine"}).title == "mine"


def test_source_identity_is_content_and_settings(tmp_path: Path) -> None:
    """The location of a file does not count, its bytes and the settings of the source do."""
    (tmp_path / "other").mkdir()
    here, there = (write_jsonl(folder / "rows.jsonl", pairs(3)) for folder in (tmp_path, tmp_path / "other"))
    base = source_identity(PairSource(path=str(here)))
    assert source_identity(PairSource(path=str(there))) == base
    assert source_identity(PairSource(path=str(there), tag="rows")) == base
    for change in ({"tag": "mine"}, {"limit": 2}, {"holdout": 0.1}, {"chosen": "rejected"}, {"messages": {"transcript": "hh"}}):
        assert source_identity(PairSource(path=str(here), **change)) != base, change


def test_trap_14_tokenizer_fingerprint_changes() -> None:
    """One character of the chat template, another special token or another pre-tokenizer changes the fingerprint; calls do not."""
    tokenizer = llama_like(pad_token="<unk>")
    before = tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(llama_like(pad_token="<unk>")) == before
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=1)
    assert tokenizer_fingerprint(tokenizer) == before, "calls leave it alone"
    tokenizer.chat_template += " "
    assert tokenizer_fingerprint(tokenizer) != before
    assert tokenizer_fingerprint(llama_like(pad_token="<s>")) != before
    text = byte_bpe().backend_tokenizer.to_str()
    changed = byte_bpe()
    changed._tokenizer = Tokenizer.from_str(text.replace('"use_regex":true', '"use_regex":false', 1))
    assert tokenizer_fingerprint(changed) != tokenizer_fingerprint(byte_bpe())


def test_digest_ignores_key_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert len(digest({})) == 64
