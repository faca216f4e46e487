"""`rmtrain eval` and `score` on several processes: numbers and bytes of one process, each row counted once, each file written once."""

import ast
import gzip
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from rich.console import Console

from rmtrain.commands.score import CHUNK, ScoreOptions, score
from rmtrain.engine.distributed import SHARDING
from rmtrain.evaluation.scores_file import read_scores
from tests.commands.ranks import SIZES
from tests.commands.test_evaluate import reward_bench_rows, rm_bench_rows
from tests.commands.test_score import rows
from tests.exports import tiny_export
from tests.forks import fork_server, rmtrain
from tests.helpers import pairs, write_jsonl
from tests.runs import ROOT, environment_of_process

RMTRAIN = (sys.executable, "-m", "rmtrain")
COLLECTIVES = {
    "gather",
    "gather_object",
    "gather_for_metrics",
    "reduce",
    "broadcast_object_list",
    "wait_for_everyone",
    "run_on_main",
    "any_rank",
}
RANK_CHECKS = {"is_main_process", "is_local_main_process", "process_index"}
MANY = 4 * CHUNK + 40
BAD = (CHUNK + 2, 3 * CHUNK + 1)
"""Numbers of the lines of the long input that cannot be scored."""
SECONDS = 20.0
"""All ranks end within this time after a signal or an error; on an idle machine it takes one or two seconds."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make models, pairs, lines and benchmarks."""
    path = tmp_path_factory.mktemp("ranks")
    tiny_export(path / "model")
    tiny_export(path / "other", seed=2)
    for size in SIZES:
        write_jsonl(path / f"pairs{size}.jsonl", pairs(size))
        write_jsonl(path / f"lines{size}.jsonl", rows(size))
    lines = [json.dumps(row) for row in rows(MANY)]
    lines[BAD[0] - 1], lines[BAD[1] - 1] = "{oops", json.dumps({"prompt": "p", "response": "long " * 400})
    with gzip.open(path / "many.jsonl.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    (path / "data/rm_bench").mkdir(parents=True)
    (path / "large").mkdir()
    long = rm_bench_rows(60)
    generator = random.Random(0)
    for row in long:
        for side in ("chosen", "rejected"):
            row[side] = [f"{text} {' '.join(generator.choice('abcdefgh') for _ in range(80))}" for text in row[side]]
    (path / "data/rm_bench/total_dataset.json").write_text(json.dumps(long))
    (path / "large/total_dataset.json").write_text(
        json.dumps([{**row, "id": f"{turn} {row['id']}"} for turn in range(5) for row in long])
    )
    (path / "data/rewardbench").mkdir()
    write_jsonl(path / "data/rewardbench/filtered.jsonl", reward_bench_rows())
    return path


@dataclass(frozen=True)
class RanksResult:
    """Documents of each rank, files and output of the cases of `tests.commands.ranks`."""

    folder: Path
    ranks: list[dict[str, Any]]
    stdout: str
    stderr: str

    @property
    def files(self) -> dict[str, bytes]:
        """Return the bytes of each file by its name."""
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}


def run_cases(inputs: Path, folder: Path, world: int) -> RanksResult:
    folder.mkdir()
    result = fork_server().run(inputs, program="tests.commands.ranks", processes=world, cwd=folder, COLUMNS="100")
    assert result.code == 0, result.stderr
    ranks = [json.loads((inputs / f"rank-{rank}-of-{world}.json").read_text()) for rank in range(world)]
    return RanksResult(folder, ranks, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> RanksResult:
    return run_cases(inputs, tmp_path_factory.mktemp("alone") / "out", 1)


def test_trap_05_processes_give_one_processes_bytes(inputs: Path, alone: RanksResult, tmp_path: Path) -> None:
    """Documents and files are those of one process to the byte; each row counts once, and only the main process writes."""
    world = 2
    together = run_cases(inputs, tmp_path / "out", world)
    documents = alone.ranks[0]["documents"]
    assert all(rank["documents"] == documents for rank in together.ranks), "each rank has all of the numbers"
    assert together.files.keys() == alone.files.keys()
    assert not [name for name, content in together.files.items() if content != alone.files[name]], "each file to the byte"
    for size in SIZES:
        scored = read_scores(together.folder / f"a{size}/scores.jsonl")
        assert len({row.id for row in scored}) == len(scored) == documents[f"a{size}"]["n"] == size
        assert documents[f"score{size}"]["rows"] == size
    assert (documents["many"]["rows"], documents["many"]["skipped"]) == (MANY - len(BAD), len(BAD))
    numbers = [json.loads(line)["input_line"] for line in (together.folder / "made/many.jsonl").read_text().splitlines()]
    assert numbers == [number for number in range(1, MANY + 1) if number not in BAD]
    main, *others = map(made, together.ranks)
    assert main == made(alone.ranks[0]), "the main process writes the files of one alone"
    assert not any(others), "and no other writes any"
    assert documents_in(together.stdout) == list(documents.values()), "each document once"
    for shown in ("RM-Bench", "many.jsonl.gz:"):
        assert together.stderr.count(shown) == alone.stderr.count(shown) > 0, "progress is printed once"
    for rank, found in enumerate(together.ranks):
        assert len(found["own"]) == rank + 1, "a scorer of Python waits for nobody"
        assert found["own"][:1] == pytest.approx(alone.ranks[0]["own"], abs=1e-5)
    assert documents["compare"]["difference"] != 0, "guard: the models differ"
    assert {"open a9/report.html", "os.mkdir a9"} <= {line.replace(".PID.tmp", "").replace("/.", "/") for line in main}, (
        "guard: what is written was seen"
    )
    assert len(alone.files) > 35, "guard: there is much to compare"


def made(rank: dict[str, Any]) -> set[str]:
    """Return what a rank opened for writing and made, without the folders that show whether a place is writable."""
    return {line for line in rank["made"] if ".new-" not in line}


def documents_in(text: str) -> list[Any]:
    """Parse a text that is JSON documents, one after the other, and nothing else."""
    decoder, place, documents = json.JSONDecoder(), 0, []
    while rest := text[place:].lstrip():
        place = len(text) - len(rest)
        document, place = decoder.raw_decode(text, place)
        documents.append(document)
    return documents


def test_standard_streams_of_several_processes(inputs: Path, tmp_path: Path) -> None:
    source = inputs / "lines9.jsonl"
    score(ScoreOptions(str(inputs / "model"), str(source), str(tmp_path / "out.jsonl")), Console(quiet=True))
    command = [*RMTRAIN, "score", str(inputs / "model"), "-", "-o", "-", "--processes", "2"]
    result = subprocess.run(command, input=source.read_bytes(), capture_output=True, env=environment_of_process())
    assert result.returncode == 0, result.stderr
    assert result.stdout == (tmp_path / "out.jsonl").read_bytes()
    assert len(re.findall(rb"^scored +9 ", result.stderr, re.MULTILINE)) == 1


def test_resume_with_another_number_of_processes(inputs: Path, tmp_path: Path) -> None:
    """A bad line of the second rank ends all with its place; the output is then resumed by three processes."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [json.dumps(row) for row in rows(2 * CHUNK + 9)]
    source.write_text("\n".join([*lines[: CHUNK + 1], "{oops", *lines[CHUNK + 2 :]]) + "\n")
    refused = rmtrain("score", inputs / "model", source, "-o", out, "--processes", "2")
    assert refused.returncode == 3
    errors = [line for line in refused.stderr.splitlines() if "error" in line]
    assert len(errors) == 1
    assert f"in.jsonl:{CHUNK + 2}:2: " in errors[0], "the second rank's share, printed once"
    assert len(out.read_text().splitlines()) == CHUNK, "the chunk before is written"
    source.write_text("\n".join(lines) + "\n")
    score(ScoreOptions(str(inputs / "model"), str(source), str(tmp_path / "whole.jsonl")), Console(quiet=True))
    again = rmtrain("score", inputs / "model", source, "-o", out, "--processes", "3", "--json")
    assert again.returncode == 0, again.stderr
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert json.loads(again.stdout)["rows"] == len(lines)


def test_trap_46_unwritable_output_ends_all_ranks(inputs: Path, tmp_path: Path) -> None:
    """The main process cannot write: one line, one exit code, and no rank waits for it."""
    (tmp_path / "file").write_text("")
    pairs_of = ["--data", inputs / "pairs9.jsonl", f"data.cache_dir={tmp_path / 'cache'}"]
    start = time.monotonic()
    to_eval, to_score = (
        ["eval", inputs / "model", *pairs_of, "--output"],
        ["score", inputs / "model", inputs / "lines9.jsonl", "-o"],
    )
    for verb, code in ((to_eval, 2), (to_score, 2)):
        result = rmtrain(*verb, tmp_path / "file/out", "--processes", "2")
        assert (result.returncode, result.stdout) == (code, "")
        assert result.stderr.splitlines()[-1].startswith("error: ")
        assert str(tmp_path / "file") in result.stderr.splitlines()[-1]
        assert result.stderr.count("error") == 1
    assert time.monotonic() - start < 6 * SECONDS, "none waits for the others"


def test_trap_46_no_collective_behind_a_rank_check() -> None:
    called = {name for file in (ROOT / "rmtrain").rglob("*.py") for name in behind_rank_checks(ast.parse(file.read_text()))}
    assert not called & COLLECTIVES
    assert called, "guard: there are rank checks"


def behind_rank_checks(tree: ast.AST) -> Iterator[str]:
    """Yield the names of functions that are called where only some ranks come."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp) and any(
            isinstance(part, ast.Attribute) and part.attr in RANK_CHECKS for part in ast.walk(node.test)
        ):
            for part in ast.walk(ast.Module([*node.body, *node.orelse], []) if isinstance(node, ast.If) else node):
                if isinstance(part, ast.Call):
                    yield part.func.attr if isinstance(part.func, ast.Attribute) else getattr(part.func, "id", "")


def test_missed_gate_is_printed_once(inputs: Path, tmp_path: Path) -> None:
    options = ["--data", inputs / "pairs8.jsonl", "--output", tmp_path, f"data.cache_dir={tmp_path / 'cache'}"]
    gate = ["--fail-under", "accuracy=1.1", "--json", "--processes", "2"]
    missed = rmtrain("eval", inputs / "model", *options, *gate)
    assert missed.returncode == 6, missed.stderr
    assert missed.stderr.count("error: gate accuracy: ") == 1
    assert json.loads(missed.stdout)["n"] == 8


@pytest.mark.parametrize("work", ["a silent standard input", "a benchmark"])
def test_sigterm_ends_all_within_seconds(inputs: Path, tmp_path: Path, work: str) -> None:
    """While standard input is silent, and in the middle of a benchmark; what was written is whole and can be resumed."""
    benchmark = ["eval", inputs / "model", "--benchmark", "rm_bench", "--data-dir", inputs / "large", "--output", tmp_path]
    verb = ["score", inputs / "model", "-", "-o", tmp_path / "out.jsonl"] if work != "a benchmark" else benchmark
    command = [*RMTRAIN, *map(str, verb), "--processes", "2"]
    lines = "".join(json.dumps(row) + "\n" for row in rows(3 * CHUNK))
    process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, env=environment_of_process())
    assert process.stdin is not None
    assert process.stderr is not None
    if work == "a benchmark":
        while "RM-Bench" not in process.stderr.readline():
            assert process.poll() is None
    else:
        process.stdin.write(lines)
        process.stdin.flush()
        while not (tmp_path / "out.jsonl").exists() or not (tmp_path / "out.jsonl").stat().st_size:
            assert process.poll() is None
            time.sleep(0.05)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=4 * SECONDS)
    seconds = time.monotonic() - start
    print(f"{work}: ended after {seconds:.1f} s")
    assert process.returncode == 143, stderr
    assert seconds < SECONDS
    assert stderr.count("SIGTERM") == 1
    if work == "a benchmark":
        assert not (tmp_path / "rm_bench").exists(), "guard: it was stopped before it was done"
        return
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2 * CHUNK, "a chunk of each process, whole"
    (tmp_path / "in.jsonl").write_text(lines)
    for name in ("whole", "out"):
        score(
            ScoreOptions(str(inputs / "model"), str(tmp_path / "in.jsonl"), str(tmp_path / f"{name}.jsonl")), Console(quiet=True)
        )
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(("strategy", "variable"), SHARDING.items())
def test_sharding_strategy_is_refused(inputs: Path, tmp_path: Path, strategy: str, variable: str) -> None:
    refused = rmtrain("score", inputs / "model", inputs / "lines9.jsonl", "-o", tmp_path / "out.jsonl", **{variable: "true"})
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: ")
    assert strategy in line
    assert not list(tmp_path.iterdir())
