"""Benchmarks by name: the command line reads them from the Hub (a server of this test) as they are published there."""

import io
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from rmtrain.command_line.model_options import EvalOptions
from rmtrain.commands.evaluate import run_eval
from rmtrain.evaluation.benchmarks.m_rewardbench import LANGUAGES
from rmtrain.evaluation.benchmarks.measure import named
from rmtrain.evaluation.benchmarks.ppe import DATASETS
from rmtrain.evaluation.benchmarks.published import read_items
from tests.exports import tiny_export
from tests.helpers import SENTENCES, write_jsonl
from tests.hub_faults import Fault, status
from tests.hub_server import HubServer, hub_server
from tests.runs import environment_of_process, rmtrain

NAMES = ("rewardbench", "rewardbench2", "rm_bench", "judgebench", "ppe_preference")
QUIET = Console(quiet=True)
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
VOTES = [
    {
        "question_id": f"vote {number}",
        "prompt": SENTENCES[number],
        "response_1": f"one {number}",
        "response_2": f"two {number}",
        "winner": winner,
        "language": language,
        "hard_prompt": number == 0,
    }
    for number, (winner, language) in enumerate([("model_a", "English"), ("model_b", "Polish"), ("model_a", "English")])
]
OFFICIAL = {
    "rewardbench": [*PAIRS, TOO_LONG],
    "rewardbench2": [*BEST_OF_FOUR, *TIES],
    "rm_bench": STYLED,
    "judgebench": JUDGED,
    "ppe_preference": VOTES,
}


def as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), stream)
    return stream.getvalue()


def splits(**rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Make the files of a dataset of several splits, each a Parquet file."""
    listed = "".join(f"  - {{split: {name}, path: data/{name}-*}}\n" for name in rows)
    readme = f"---\nconfigs:\n- config_name: default\n  data_files:\n{listed}---\n"
    files = {f"data/{name}-00000-of-00001.parquet": as_parquet(of_split) for name, of_split in rows.items()}
    return {"README.md": readme.encode()} | files


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    """Serve a Hub with five benchmarks. Splits that are not the benchmark hold rows that would be refused, or change the numbers."""
    with hub_server() as hub:
        of_others = [pair | {"subset": "shp"} for pair in PAIRS]
        hub.add("dataset", "allenai/reward-bench", splits(raw=of_others, filtered=OFFICIAL["rewardbench"]))
        hub.add("dataset", "allenai/reward-bench-2", splits(test=OFFICIAL["rewardbench2"]))
        hub.add("dataset", "THU-KEG/RM-Bench", {"total_dataset.json": json.dumps(STYLED).encode()})
        hub.add("dataset", "ScalerLab/JudgeBench", splits(claude=[*JUDGED, *JUDGED], gpt=JUDGED))
        hub.add("dataset", "lmarena-ai/PPE-Human-Preference-V1", splits(test=VOTES))
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a model, and the same rows as files."""
    path = tmp_path_factory.mktemp("hub")
    tiny_export(path / "model")
    for name, rows in OFFICIAL.items():
        (path / "files" / name).mkdir(parents=True)
        write_jsonl(path / "files" / name / "total_dataset.jsonl", rows)
    return path


def without_paths(document: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of each benchmark, without the path of its scores."""
    return {
        name: {key: value for key, value in numbers.items() if key != "scores"}
        for name, numbers in document["benchmarks"].items()
    }


def test_hub_rows_are_those_of_the_files(hub: HubServer, folder: Path) -> None:
    """All five benchmarks read from the Hub, and again offline, give the rows that their files give."""
    script = (
        "import pickle, sys\n"
        "from rmtrain.evaluation.benchmarks.published import read_items\n"
        "from rmtrain.evaluation.benchmarks.measure import named\n"
        "pickle.dump([read_items(benchmark, None) for benchmark in named(sys.argv[1])], open(sys.argv[2], 'wb'))\n"
    )
    from_files = [read_items(benchmark, folder / "files") for benchmark in named(",".join(NAMES))]
    assert [len(items) for items in from_files] == [len(OFFICIAL[name]) for name in NAMES]
    online = hub.environment(folder)
    for name, environment in (("online", online), ("offline", online | {"HF_HUB_OFFLINE": "1"})):
        before = len(hub.requests)
        command = [sys.executable, "-c", script, ",".join(NAMES), str(folder / name)]
        result = subprocess.run(command, env=environment_of_process(**environment), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert pickle.loads((folder / name).read_bytes()) == from_files
        assert (len(hub.requests) > before) == (name == "online")
    assert hub.sent() > 0, "guard: rows were downloaded"


def test_cli_scores_a_benchmark_from_the_hub(hub: HubServer, folder: Path) -> None:
    """`--benchmark rewardbench` alone gives the numbers of its files."""
    options = EvalOptions(
        target=str(folder / "model"), benchmark=",".join(NAMES), data_dir=folder / "files", output=folder / "from_files"
    )
    from_files = without_paths(run_eval(options, QUIET).document)
    assert {name: numbers["rows"] for name, numbers in from_files.items()} == {name: len(OFFICIAL[name]) for name in NAMES}
    assert from_files["rewardbench"]["settings"]["rows_cut"] == 1, "guard: one row is too long"
    arguments = ("eval", folder / "model", "--benchmark", "rewardbench", "--json", "--output", folder / "from_hub")
    result = rmtrain(*arguments, **hub.environment(folder))
    assert result.returncode == 0, result.stderr
    from_hub = without_paths(json.loads(result.stdout))
    assert from_hub == {"rewardbench": json.loads(json.dumps(from_files["rewardbench"]))}


@pytest.mark.parametrize(("fault", "code"), [(None, 3), (status(429, Retry_After="999999999"), 75)])
def test_missing_hub_dataset_is_one_line(fault: Fault | None, code: int, folder: Path, tmp_path: Path) -> None:
    """And so is one that the Hub does not give now."""
    with hub_server() as empty:
        empty.misbehave = fault
        result = rmtrain("eval", folder / "model", "--benchmark", "rm_bench", **empty.environment(tmp_path))
    assert result.returncode == code, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "THU-KEG/RM-Bench" in errors[0]
    assert "Traceback" not in result.stderr


def answers(dataset: str) -> list[dict[str, Any]]:
    responses = {f"response_{place + 1}": f"{dataset} answer {place}" for place in range(4)}
    row = {"question_id": dataset, "model_name": "m", "prompt": dataset, **responses}
    return [row | {"scores": [True, False, False, True], "sampled_conflict_pairs": [[0, 1], [2, 3]]}]


def of_language(language: str) -> list[dict[str, Any]]:
    return [
        {"id": 1, "prompt": language, "chosen": f"yes {language}", "rejected": "no", "language": language, "source": "hep-go"}
    ]


@pytest.mark.long
def test_benchmarks_of_many_datasets(tmp_path: Path) -> None:
    """The five datasets of PPE, and the configurations of 23 languages, give the rows of their files, online and offline."""
    script = (
        "import pickle, sys\n"
        "from rmtrain.evaluation.benchmarks.published import read_items\n"
        "from rmtrain.evaluation.benchmarks.measure import named\n"
        "pickle.dump([read_items(benchmark, None) for benchmark in named(sys.argv[1])], open(sys.argv[2], 'wb'))\n"
    )
    with hub_server() as hub:
        for dataset in DATASETS:
            name = f"PPE-{dataset}-Best-of-K"
            hub.add("dataset", f"lmarena-ai/{name}", splits(train=answers(dataset)))
            (tmp_path / "ppe_correctness" / name).mkdir(parents=True)
            write_jsonl(tmp_path / "ppe_correctness" / name / "train.jsonl", answers(dataset))
        listed = "".join(f"- config_name: {one}\n  data_files: [{{split: test, path: {one}/test-*}}]\n" for one in LANGUAGES)
        files = {f"{one}/test-00000-of-00001.parquet": as_parquet(of_language(one)) for one in LANGUAGES}
        readme = {"README.md": f"---\nconfigs:\n{listed}---\n".encode()}
        hub.add("dataset", "CohereLabsCommunity/multilingual-reward-bench", readme | files)
        for one in LANGUAGES:
            (tmp_path / "m_rewardbench" / one).mkdir(parents=True)
            write_jsonl(tmp_path / "m_rewardbench" / one / "test.jsonl", of_language(one))
        names = "ppe_correctness,m_rewardbench"
        from_files = [sorted(read_items(benchmark, tmp_path), key=str) for benchmark in named(names)]
        for environment in (hub.environment(tmp_path), hub.environment(tmp_path) | {"HF_HUB_OFFLINE": "1"}):
            command = [sys.executable, "-c", script, names, str(tmp_path / "items")]
            result = subprocess.run(command, env=environment_of_process(**environment), capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            assert [sorted(items, key=str) for items in pickle.loads((tmp_path / "items").read_bytes())] == from_files
    assert [len(items) for items in from_files] == [5, 23], "guard"
