"""Datasets of a Hub: downloaded whole, streamed, at any revision, private, and when the network fails. The Hub is a server of this test."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers import pairs
from tests.hub_server import TOKEN, HubServer, hub_server
from tests.runs import ROOT

READ = """
import json, sys
from rmtrain.data.rows.readers import ReadMeter
from rmtrain.data.rows.dataset import read_rows
from rmtrain.data.rows.fingerprint import fingerprint
from rmtrain.errors import RmtrainError
from rmtrain.recipe.schema import PairSource

for line in sys.stdin:
    source, meter = PairSource(**json.loads(line)), ReadMeter()
    try:
        key = fingerprint(source)
        rows = [row for number, row in read_rows(source, meter)]
        print(json.dumps({"key": key, "rows": rows, "share": meter.share}), flush=True)
    except RmtrainError as error:
        print(json.dumps({"error": str(error), "code": error.exit_code}), flush=True)
"""


class Reader:
    """A process whose Hub is the test's and that reads one source after the other: to import `datasets` takes seconds."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log

    def __call__(self, path: str, **keys: Any) -> dict[str, Any]:
        """Read a source; return its key, rows and share, or the error and its exit code."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"path": path, **keys}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        result: dict[str, Any] = json.loads(line)
        return result


@contextmanager
def reader_of(hub: HubServer, home: Path, token: str | None = None, offline: bool = False) -> Iterator[Reader]:
    environment = {**os.environ, **hub.environment(home, token), "PYTHONPATH": str(ROOT)}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    home.mkdir(exist_ok=True)
    log = home / "stderr.log"
    with (
        log.open("a") as errors,
        subprocess.Popen(
            [sys.executable, "-c", READ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        ) as process,
    ):
        try:
            yield Reader(process, log)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with hub_server() as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def read(hub: HubServer, home: Path) -> Iterator[Reader]:
    with reader_of(hub, home) as reader:
        yield reader


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]], group: int) -> bytes:
    stream = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream, row_group_size=group, compression="none")
    return stream.getvalue()


def shards(rows: list[dict[str, str]]) -> dict[str, bytes]:
    """Four Parquet files of a dataset."""
    quarter = len(rows) // 4
    return {f"data/train-{n:05d}-of-00004.parquet": parquet(rows[quarter * n :][:quarter], 20) for n in range(4)}


def large(count: int) -> list[dict[str, str]]:
    """Rows of five kilobytes that do not compress."""
    rng = random.Random(3)
    return [{**row, "chosen": row["chosen"] + rng.randbytes(2500).hex()} for row in pairs(count)]


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_download_then_offline(hub: HubServer, home: Path, read: Reader) -> None:
    """A dataset that was downloaded is read without network, also with `streaming`."""
    hub.add("dataset", "owner/pairs", {"train.jsonl": lines(pairs(6)), "test.jsonl": lines(pairs(2)), "README.md": b"# pairs\n"})
    train = read("owner/pairs", split="train")
    assert (train["rows"], train["share"]) == (pairs(6), 1.0)
    assert read("owner/pairs", split="test")["rows"] == pairs(2)
    assert "2 splits; set `split`" in read("owner/pairs")["error"]
    with reader_of(hub, home, offline=True) as read_offline:
        assert read_offline("owner/pairs", split="train")["rows"] == pairs(6)
        streamed = read_offline("owner/pairs", split="train", streaming=True, limit=4)
        assert streamed["rows"] == pairs(4), "what is on the disk needs no stream"


def test_streaming_downloads_only_the_limit(hub: HubServer, home: Path, read: Reader) -> None:
    """A stream downloads the shards that its limit needs, and stores nothing of them."""
    rows = large(400)
    content = shards(rows)
    size, sent, stored = sum(map(len, content.values())), hub.sent(), size_of(home)
    hub.add("dataset", "owner/shards", content)
    assert read("owner/shards", streaming=True, limit=60)["rows"] == rows[:60]
    assert 0 < hub.sent() - sent < 0.6 * size, f"{hub.sent() - sent} of {size} bytes were downloaded"
    assert not [request for request in hub.requests if request.method == "GET" and "/data/train-00001" in request.path]
    assert size_of(home) - stored < 0.1 * size
    assert read("owner/shards", streaming=True, limit=140)["rows"] == rows[:140], "guard: and as much as it asks for"


def test_streamed_rows_equal_downloaded_rows(hub: HubServer, read: Reader) -> None:
    rows = [{**row, "meta": {"n": number} if number % 2 else {"m": "x"}} for number, row in enumerate(pairs(30))]
    hub.add("dataset", "owner/mixed", {"train.jsonl": lines(rows)})
    whole = read("owner/mixed", limit=20, split="train")
    streamed = read("owner/mixed", limit=20, split="train", streaming=True)
    assert streamed["rows"] == whole["rows"] == rows[:20]
    all_of_it = read("owner/mixed", limit=99, streaming=True)
    assert streamed["key"] == whole["key"] != all_of_it["key"], "guard: the split is part of it"
    assert all_of_it["rows"] == rows, "the only split needs no name"
    assert "dev" in read("owner/mixed", limit=20, split="dev", streaming=True)["error"]


def test_revisions_are_read_by_commit(hub: HubServer, home: Path, read: Reader) -> None:
    """A tag, a commit or a ref such as `refs/convert/parquet` is read, and a new commit is new data."""
    hub.add("dataset", "owner/versions", {"train.jsonl": lines(pairs(3))})
    hub.add("dataset", "owner/versions", {"train.jsonl": lines(pairs(4))}, revision="v1.0")
    converted = {"default/train/0000.parquet": parquet(pairs(5), 5), "default/test/0000.parquet": parquet(pairs(2), 5)}
    repository = hub.add("dataset", "owner/versions", converted, revision="refs/convert/parquet")
    plain = read("owner/versions")
    tag, commit = (read("owner/versions", revision=name) for name in ("v1.0", repository.commit("v1.0")))
    assert [len(result["rows"]) for result in (plain, tag, commit)] == [3, 4, 4]
    for keys in ({}, {"streaming": True}, {"data_dir": "default"}, {"streaming": True, "data_dir": "default"}):
        exported = read("owner/versions", split="train", limit=9, revision="refs/convert/parquet", **keys)
        assert exported["rows"] == pairs(5)
    assert "v2.0" in read("owner/versions", revision="v2.0")["error"]
    hub.add("dataset", "owner/versions", {"train.jsonl": lines(pairs(3)[::-1])})
    with reader_of(hub, home) as read_again:
        changed = read_again("owner/versions")
    assert changed["rows"] == pairs(3)[::-1]
    assert changed["key"] != plain["key"], "a new commit is new data"


def test_private_and_unknown_datasets_are_refused(hub: HubServer, tmp_path: Path, read: Reader) -> None:
    """A private dataset needs a token; without, it is refused in one line, like one that does not exist."""
    hub.add("dataset", "owner/private", {"train.jsonl": lines(pairs(3))}, private=True)
    with reader_of(hub, tmp_path, token=TOKEN) as read_with_token:
        assert read_with_token("owner/private")["rows"] == pairs(3)
    for refused in (read("owner/private"), read("owner/absent"), read("owner/absent", streaming=True, limit=3)):
        assert refused["code"] == 3
        assert refused["error"].startswith(("private: ", "absent: ", "owner/private: ", "owner/absent: "))
        assert "\n" not in refused["error"]
        assert TOKEN not in refused["error"]


def test_broken_stream_is_a_data_error(hub: HubServer, read: Reader) -> None:
    content = shards(large(120))
    hub.add("dataset", "owner/broken", content)
    hub.fail_after = hub.sent() + int(1.5 * len(content["data/train-00000-of-00004.parquet"]))
    try:
        broken = read("owner/broken", streaming=True, limit=120)
    finally:
        hub.fail_after = None
    assert broken["code"] == 3
    assert broken["error"].startswith(("broken: ", "owner/broken: "))
    assert "\n" not in broken["error"]
