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

ROOT = Path(__file__).resolve().parents[2]
READ = """
import json, sys
from rmtrain.data.json_reader import Line, parse
from rmtrain.data.meter import Meter
from rmtrain.data.sources import fingerprint, read_rows
from rmtrain.errors import RmtrainError
from rmtrain.recipe.schema import PairSource

source, meter = PairSource(**json.loads(sys.argv[1])), Meter()
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


def read(hub: HubServer, home: Path, token: str | None = None, offline: bool = False, **keys: Any) -> dict[str, Any]:
    """Read a source in a process whose Hub is the test's."""
    environment = {**os.environ, **hub.environment(home, token), "PYTHONPATH": str(ROOT)} | (
        {"HF_HUB_OFFLINE": "1"} if offline else {}
    )
    command = [sys.executable, "-c", READ, json.dumps({"path": "owner/pairs", **keys})]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


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


def test_a_dataset_is_downloaded_and_then_found_without_network(hub: HubServer, tmp_path: Path) -> None:
    hub.add("dataset", "owner/pairs", {"train.jsonl": lines(pairs(6)), "test.jsonl": lines(pairs(2)), "README.md": b"# pairs\n"})
    found = read(hub, tmp_path, split="train")
    assert found["rows"] == pairs(6)
    assert found["share"] == 1.0
    assert read(hub, tmp_path, split="test")["rows"] == pairs(2)
    assert read(hub, tmp_path, offline=True, split="train")["rows"] == pairs(6)
    assert "has 2 splits; set `split` to one of: " in read(hub, tmp_path)["error"]


def test_streaming_reads_no_more_than_the_limit_asks_for(hub: HubServer, tmp_path: Path) -> None:
    rows = large(20_000)
    content = {f"data/train-{number:05d}-of-00002.parquet": parquet(rows[10_000 * number :][:10_000], 500) for number in range(2)}
    size = sum(map(len, content.values()))
    hub.add("dataset", "owner/pairs", content)
    found = read(hub, tmp_path, streaming=True, limit=700)
    assert found["rows"] == rows[:700]
    assert 0 < hub.sent() < size / 5, f"{hub.sent()} of {size} bytes were downloaded"
    on_disk = sum(file.stat().st_size for file in (tmp_path / "hf").rglob("*") if file.is_file())
    assert on_disk < size / 5
    assert read(hub, tmp_path, streaming=True, limit=700, split="train")["key"] != found["key"], "guard: the split is part of it"


def test_streamed_and_downloaded_rows_are_the_same(hub: HubServer, tmp_path: Path) -> None:
    rows = [{**row, "meta": {"n": number} if number % 2 else {"m": "x"}} for number, row in enumerate(pairs(30))]
    hub.add("dataset", "owner/pairs", {"train.jsonl": lines(rows)})
    whole, streamed = (read(hub, tmp_path, split="train", limit=20, streaming=streaming) for streaming in (False, True))
    assert streamed["rows"] == whole["rows"] == rows[:20]
    assert streamed["key"] == whole["key"]
    assert read(hub, tmp_path, streaming=True, limit=99)["rows"] == rows, "the only split needs no name"
    assert "Bad split: dev" in read(hub, tmp_path, streaming=True, limit=5, split="dev")["error"]


def test_any_revision_is_read_and_known_by_its_commit(hub: HubServer, tmp_path: Path) -> None:
    hub.add("dataset", "owner/pairs", {"train.jsonl": lines(pairs(3))})
    hub.add("dataset", "owner/pairs", {"train.jsonl": lines(pairs(4))}, revision="v1.0")
    converted = {"default/train/0000.parquet": parquet(pairs(5), 5), "default/test/0000.parquet": parquet(pairs(2), 5)}
    repository = hub.add("dataset", "owner/pairs", converted, revision="refs/convert/parquet")
    plain = read(hub, tmp_path)
    assert len(plain["rows"]) == 3
    assert len(read(hub, tmp_path, revision="v1.0")["rows"]) == 4
    assert len(read(hub, tmp_path, revision=repository.commit("v1.0"))["rows"]) == 4
    for streaming in (False, True):
        keys = {"split": "train", "limit": 9, "streaming": streaming, "revision": "refs/convert/parquet"}
        assert read(hub, tmp_path, **keys)["rows"] == pairs(5)
        assert read(hub, tmp_path, **keys, data_dir="default")["rows"] == pairs(5)
    assert "v2.0" in read(hub, tmp_path, revision="v2.0")["error"]
    hub.add("dataset", "owner/pairs", {"train.jsonl": lines(pairs(3)[::-1])})
    changed = read(hub, tmp_path)
    assert changed["rows"] == pairs(3)[::-1]
    assert changed["key"] != plain["key"], "a new commit is new data"


def test_a_private_dataset_needs_a_token_and_an_unknown_one_is_told_in_one_line(hub: HubServer, tmp_path: Path) -> None:
    hub.add("dataset", "owner/pairs", {"train.jsonl": lines(pairs(3))}, private=True)
    assert read(hub, tmp_path, token=TOKEN)["rows"] == pairs(3)
    for keys in ({"path": "owner/pairs"}, {"path": "owner/absent"}, {"path": "owner/absent", "streaming": True, "limit": 3}):
        refused = read(hub, tmp_path / "other", **keys)
        assert refused["code"] == 3
        assert refused["error"].startswith(
            f"{keys['path'].partition('/')[2]}: {keys['path']} is no local file, and the Hub did not"
        )
        assert "\n" not in refused["error"]
        assert TOKEN not in refused["error"]


def test_a_stream_that_breaks_is_an_error_of_the_data(hub: HubServer, tmp_path: Path) -> None:
    hub.add("dataset", "owner/pairs", {"train.parquet": parquet(large(4000), 200)})
    hub.fail_after = 4 * 2**20
    broken = read(hub, tmp_path, streaming=True, limit=4000)
    assert broken["code"] == 3
    assert broken["error"].startswith("pairs: owner/pairs is no local file, and the Hub did not give it: ")
    assert "\n" not in broken["error"]


def test_a_local_file_is_streamed_anyway(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(pairs(3)))
    refused = read(hub, tmp_path, path=str(tmp_path / "rows.jsonl"), streaming=True, limit=2)
    assert refused == {
        "error": f"rows: `streaming` is for Hub datasets; the local {tmp_path}/rows.jsonl is streamed anyway, so leave it out",
        "code": 2,
    }
