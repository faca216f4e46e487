"""Datasets of a Hub: downloaded whole, streamed, at any revision, private, and when the network fails. The Hub is a server of this test."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers import pairs
from tests.hub_server import TOKEN, HubServer, hub_server

ROOT = Path(__file__).resolve().parents[3]
READ = """
import json, sys
from rmtrain.data.rows.readers import Line, parse
from rmtrain.data.rows.readers import ReadMeter
from rmtrain.data.rows.dataset import fingerprint, read_rows
from rmtrain.errors import RmtrainError
from rmtrain.recipe.schema import PairSource

for keys in json.loads(sys.argv[1]):
    source, meter = PairSource(**keys), ReadMeter()
    try:
        key = fingerprint(source)
        rows = [row for number, row in read_rows(source, meter)]
        print(json.dumps({"key": key, "rows": rows, "share": meter.share}))
    except RmtrainError as error:
        print(json.dumps({"error": str(error), "code": error.exit_code}))
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as server:
        yield server


def read(
    hub: HubServer, home: Path, *sources: dict[str, Any], token: str | None = None, offline: bool = False
) -> list[dict[str, Any]]:
    """Read sources, one after the other, in a process whose Hub is the test's."""
    environment = {**os.environ, **hub.environment(home, token), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", READ, json.dumps([{"path": "owner/pairs", **keys} for keys in sources])]
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]], group: int) -> bytes:
    stream = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream, row_group_size=group, compression="none")
    return stream.getvalue()


def large(count: int) -> list[dict[str, str]]:
    """Rows of five kilobytes that do not compress."""
    rng = random.Random(3)
    return [{**row, "chosen": row["chosen"] + rng.randbytes(2500).hex()} for row in pairs(count)]


def test_download_then_offline(hub: HubServer, tmp_path: Path) -> None:
    hub.add("dataset", "owner/pairs", {"train.jsonl": lines(pairs(6)), "test.jsonl": lines(pairs(2)), "README.md": b"# pairs\n"})
    train, test, unsaid = read(hub, tmp_path, {"split": "train"}, {"split": "test"}, {})
    assert train["rows"] == pairs(6)
    assert train["share"] == 1.0
    assert test["rows"] == pairs(2)
    assert "has 2 splits; set `split` to one of: " in unsaid["error"]
    again, streamed = read(hub, tmp_path, {"split": "train"}, {"split": "train", "streaming": True, "limit": 4}, offline=True)
    assert again["rows"] == pairs(6)
    assert streamed["rows"] == pairs(4), "what lies on the disk needs no stream"


def shards(rows: list[dict[str, str]]) -> dict[str, bytes]:
    """Four Parquet files of a dataset."""
    quarter = len(rows) // 4
    return {f"data/train-{n:05d}-of-00004.parquet": parquet(rows[quarter * n :][:quarter], 100) for n in range(4)}


def test_streaming_downloads_only_the_limit(hub: HubServer, tmp_path: Path) -> None:
    rows = large(2000)
    content = shards(rows)
    size = sum(map(len, content.values()))
    hub.add("dataset", "owner/pairs", content)
    (found,) = read(hub, tmp_path, {"streaming": True, "limit": 300})
    assert found["rows"] == rows[:300]
    assert 0 < hub.sent() < 0.6 * size, f"{hub.sent()} of {size} bytes were downloaded"
    assert not [request for request in hub.requests if request.method == "GET" and "/data/train-00001" in request.path]
    assert sum(file.stat().st_size for file in (tmp_path / "hf").rglob("*") if file.is_file()) < 0.1 * size
    (more,) = read(hub, tmp_path, {"streaming": True, "limit": 700})
    assert more["rows"] == rows[:700], "guard: and as much as it asks for"


def test_streamed_rows_equal_downloaded_rows(hub: HubServer, tmp_path: Path) -> None:
    rows = [{**row, "meta": {"n": number} if number % 2 else {"m": "x"}} for number, row in enumerate(pairs(30))]
    hub.add("dataset", "owner/pairs", {"train.jsonl": lines(rows)})
    stream = {"streaming": True, "limit": 20}
    whole, streamed, all_of_it, absent = read(
        hub,
        tmp_path,
        {"limit": 20, "split": "train"},
        {**stream, "split": "train"},
        {**stream, "limit": 99},
        {**stream, "split": "dev"},
    )
    assert streamed["rows"] == whole["rows"] == rows[:20]
    assert streamed["key"] == whole["key"] != all_of_it["key"], "guard: the split is part of it"
    assert all_of_it["rows"] == rows, "the only split needs no name"
    assert "Bad split: dev" in absent["error"]


def test_revisions_are_read_by_commit(hub: HubServer, tmp_path: Path) -> None:
    hub.add("dataset", "owner/pairs", {"train.jsonl": lines(pairs(3))})
    hub.add("dataset", "owner/pairs", {"train.jsonl": lines(pairs(4))}, revision="v1.0")
    converted = {"default/train/0000.parquet": parquet(pairs(5), 5), "default/test/0000.parquet": parquet(pairs(2), 5)}
    repository = hub.add("dataset", "owner/pairs", converted, revision="refs/convert/parquet")
    keys = {"split": "train", "limit": 9, "revision": "refs/convert/parquet"}
    plain, tag, commit, absent, *exported = read(
        hub, tmp_path, {}, {"revision": "v1.0"}, {"revision": repository.commit("v1.0")}, {"revision": "v2.0"},
        keys, {**keys, "streaming": True}, {**keys, "data_dir": "default"}, {**keys, "streaming": True, "data_dir": "default"},
    )  # fmt: skip
    assert [len(found["rows"]) for found in (plain, tag, commit)] == [3, 4, 4]
    assert [found["rows"] for found in exported] == [pairs(5)] * 4
    assert "v2.0" in absent["error"]
    hub.add("dataset", "owner/pairs", {"train.jsonl": lines(pairs(3)[::-1])})
    (changed,) = read(hub, tmp_path, {})
    assert changed["rows"] == pairs(3)[::-1]
    assert changed["key"] != plain["key"], "a new commit is new data"


def test_private_and_unknown_datasets_are_refused(hub: HubServer, tmp_path: Path) -> None:
    hub.add("dataset", "owner/pairs", {"train.jsonl": lines(pairs(3))}, private=True)
    (found,) = read(hub, tmp_path, {}, token=TOKEN)
    assert found["rows"] == pairs(3)
    sources = ({"path": "owner/pairs"}, {"path": "owner/absent"}, {"path": "owner/absent", "streaming": True, "limit": 3})
    for keys, refused in zip(sources, read(hub, tmp_path / "other", *sources), strict=True):
        assert refused["code"] == 3
        assert refused["error"].startswith(
            f"{keys['path'].partition('/')[2]}: {keys['path']} is no local file, and the Hub did not"
        )
        assert "\n" not in refused["error"]
        assert TOKEN not in refused["error"]


def test_broken_stream_is_a_data_error(hub: HubServer, tmp_path: Path) -> None:
    content = shards(large(400))
    hub.add("dataset", "owner/pairs", content)
    hub.fail_after = int(1.5 * len(content["data/train-00000-of-00004.parquet"]))
    (broken,) = read(hub, tmp_path, {"streaming": True, "limit": 400})
    assert broken["code"] == 3
    assert broken["error"].startswith("pairs: owner/pairs is no local file, and the Hub did not give it: ")
    assert "\n" not in broken["error"]


def test_streaming_a_local_file_is_refused(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(pairs(3)))
    (refused,) = read(hub, tmp_path, {"path": str(tmp_path / "rows.jsonl"), "streaming": True, "limit": 2})
    assert refused == {
        "error": f"rows: `streaming` is for Hub datasets; the local {tmp_path}/rows.jsonl is streamed anyway, so leave it out",
        "code": 2,
    }
