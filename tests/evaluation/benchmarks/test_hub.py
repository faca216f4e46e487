"""Benchmarks by their names alone: the command line reads them from the Hub, a server of this test, as they are published there."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.exports import tiny_export
from tests.helpers import SENTENCES, write_jsonl
from tests.hub_server import HubServer, hub_server
from tests.runs import rmtrain

NAMES = ("rewardbench", "rewardbench2", "rm_bench", "judgebench")
LONG = "far too long for the model, word by word, " * 10

PAIRS = [
    {"id": 7 + number, "prompt": SENTENCES[number], "chosen": f"good {number}", "rejected": f"bad {number}", "subset": subset}
    for number, subset in enumerate(["alpacaeval-easy", "mt-bench-hard", "donotanswer", "math-prm"])
]
TOO_LONG = {"id": 99, "prompt": "p", "chosen": f"{LONG} x", "rejected": "same", "subset": "hep-go"}
BEST_OF_FOUR = [
    {
        "id": str(number),
        "prompt": SENTENCES[number],
        "chosen": [f"yes {number}"],
        "rejected": ["no", "nay", "never"],
        "subset": "Math",
    }
    for number in range(3)
]
TIES = [
    {"id": "tied:1", "prompt": "name a colour", "chosen": ["red", "blue"], "rejected": ["seven", "ten"], "subset": "Ties"},
    {"id": "ref:1", "prompt": "the colour of grass", "chosen": ["green"], "rejected": ["red", "seven"], "subset": "Ties"},
]
STYLED = [
    {
        "id": f"row {number}",
        "domain": domain,
        "prompt": SENTENCES[number],
        "chosen": [f"yes {number} {'fine ' * style}" for style in range(3)],
        "rejected": [f"no {number} {'bad ' * style}" for style in range(3)],
    }
    for number, domain in enumerate(["chat", "math", "code", "safety-refuse", "safety-response"])
]
JUDGED = [
    {
        "pair_id": f"pair {number}",
        "source": source,
        "question": SENTENCES[number],
        "response_model": "gpt-4o-2024-05-13",
        "response_A": f"it is {number}",
        "response_B": f"it is not {number}",
        "label": label,
    }
    for number, (source, label) in enumerate([("mmlu-pro-law", "A>B"), ("livebench-math", "B>A"), ("livecodebench", "B>A")])
]
OFFICIAL = {"rewardbench": [*PAIRS, TOO_LONG], "rewardbench2": [*BEST_OF_FOUR, *TIES], "rm_bench": STYLED, "judgebench": JUDGED}


def as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), stream)
    return stream.getvalue()


def splits(**rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The files of a dataset of several splits, each a Parquet file."""
    listed = "".join(f"  - {{split: {name}, path: data/{name}-*}}\n" for name in rows)
    readme = f"---\nconfigs:\n- config_name: default\n  data_files:\n{listed}---\n"
    files = {f"data/{name}-00000-of-00001.parquet": as_parquet(of_split) for name, of_split in rows.items()}
    return {"README.md": readme.encode()} | files


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    """A Hub with four benchmarks. Splits that are not the benchmark hold rows that would be refused, or change the numbers."""
    with hub_server() as hub:
        of_others = [pair | {"subset": "shp"} for pair in PAIRS]
        hub.add("dataset", "allenai/reward-bench", splits(raw=of_others, filtered=OFFICIAL["rewardbench"]))
        hub.add("dataset", "allenai/reward-bench-2", splits(test=OFFICIAL["rewardbench2"]))
        hub.add("dataset", "THU-KEG/RM-Bench", {"total_dataset.json": json.dumps(STYLED).encode()})
        hub.add("dataset", "ScalerLab/JudgeBench", splits(claude=[*JUDGED, *JUDGED], gpt=JUDGED))
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and the same rows as files."""
    path = tmp_path_factory.mktemp("hub")
    tiny_export(path / "model")
    for name, rows in OFFICIAL.items():
        (path / "files" / name).mkdir(parents=True)
        write_jsonl(path / "files" / name / "total_dataset.jsonl", rows)
    return path


def evaluated(folder: Path, output: str, *options: str | Path, **environment: str) -> dict[str, Any]:
    names = ("--benchmark", ",".join(NAMES), "--json")
    result = rmtrain("eval", folder / "model", *names, "--output", folder / output, *options, **environment)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)["benchmarks"]
    return {name: {key: value for key, value in numbers.items() if key != "scores"} for name, numbers in found.items()}


def test_four_benchmarks_from_the_hub_by_name_score_as_their_files_do_and_again_offline(hub: HubServer, folder: Path) -> None:
    from_files = evaluated(folder, "from_files", "--data-dir", folder / "files")
    online = hub.environment(folder)
    assert evaluated(folder, "from_hub", **online) == from_files
    asked = len(hub.requests)
    assert evaluated(folder, "offline", **online | {"HF_HUB_OFFLINE": "1"}) == from_files
    assert len(hub.requests) == asked > 0
    assert {name: numbers["rows"] for name, numbers in from_files.items()} == {name: len(OFFICIAL[name]) for name in NAMES}
    assert from_files["rewardbench"]["settings"]["rows_cut"] == 1, "guard: one row is too long"
    assert hub.sent() > 0, "guard: rows were downloaded"


def test_a_benchmark_that_the_hub_does_not_give_is_told_in_a_line(folder: Path, tmp_path: Path) -> None:
    with hub_server() as empty:
        result = rmtrain("eval", folder / "model", "--benchmark", "rm_bench", **empty.environment(tmp_path))
    assert result.returncode == 3, result.stderr
    assert "THU-KEG/RM-Bench is no local file, and the Hub did not give it" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
