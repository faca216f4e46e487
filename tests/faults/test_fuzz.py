"""Damaged and hostile files: whatever a file holds, a command ends soon, in bounded memory, with an exit code and no traceback.

Set FUZZ_SEED to repeat what was reported, and FUZZ_ONLY to the number of one input.
"""

import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from rmtrain.errors import LONGEST_PROBLEM
from tests.faults.damage import damage, make_originals
from tests.faults.limited import MEMORY, SECONDS
from tests.forks import ForkServer

CODES = {0, 1, 2, 3, 4, 5, 75}
LONGEST_LINE = LONGEST_PROBLEM + 100
BATCH = 36
INPUTS, PARTS = 2000, 4
SEED = os.environ.get("FUZZ_SEED") or str(random.SystemRandom().randrange(10**9))

PREPROCESS = "preprocess fuzz.yaml data.train.0.path="
BENCHMARKS = ("rewardbench", "rewardbench2", "rm_bench", "llmbar", "judgebench", "rmb")
KINDS = {
    "rows": [f"{PREPROCESS}{name}" for name in ("rows.jsonl", "array.json", "rows.jsonl.gz")],
    "tables": [f"{PREPROCESS}rows.{kind}" for kind in ("csv", "tsv", "csv.gz", "parquet", "parquet")],
    "saved": [f"{PREPROCESS}{name}" for name in ("saved", "several")],
    "score": ["score MODEL input.jsonl -o out.jsonl", "score MODEL input.jsonl.gz -o out.jsonl --skip-bad"],
    "resumed": ["score MODEL input.jsonl -o half.jsonl"],
    "scores": ["eval --scores scores.jsonl", "eval --compare scores.jsonl other.jsonl"],
    "published": [
        "eval --scores columns.json --benchmark rewardbench",
        "eval --scores accuracies.json --benchmark rewardbench",
        "eval --scores ties.jsonl",
        "eval --scores styles.json --benchmark rm_bench",
        "eval --compare judged.jsonl judged.jsonl --benchmark judgebench",
    ],
    "benchmarks": [f"eval MODEL --benchmark {name} --data-dir theirs/{name} --output made" for name in BENCHMARKS],
    "model": ["score exported input.jsonl -o out.jsonl", "eval exported --data rows.jsonl --output made"],
}
"""Commands in a folder of valid files, whose files are damaged before them; MODEL is one that is not."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, server: ForkServer) -> Path:
    """A folder of valid files."""
    folder = tmp_path_factory.mktemp("fuzz") / "originals"
    folder.mkdir()
    make_originals(folder)
    ended = server.run("score", folder / "exported", "input.jsonl", "-o", "half.jsonl", cwd=folder)
    assert ended.code == 0, ended.stderr
    return folder


def files_of(command: str, folder: Path) -> list[Path]:
    """The files that a command reads, relative to the folder; for scores also their settings."""
    words = [Path(word) for word in re.split("[ =]", command) if word != "fuzz.yaml"]
    files = [file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file()]
    return [
        file for file in files if any(file.is_relative_to(word) or file.name == f"{word.stem}.settings.json" for word in words)
    ]


class Input(NamedTuple):
    """A damaged input: its number, kind, folder and command, and what was done to it."""

    number: int
    kind: str
    folder: Path
    command: str
    damage: str


def make_input(number: int, originals: Path, seed: str) -> Input:
    """Make a copy of the valid files, and damage one or two of those that a command reads."""
    rng, kind = random.Random(f"{seed} {number}"), list(KINDS)[number % len(KINDS)]
    folder = originals.parent / str(number)
    shutil.copytree(originals, folder)
    command = rng.choice(KINDS[kind])
    files = files_of(command, originals)
    chosen = rng.sample(files, min(len(files), rng.choice([1, 1, 1, 2])))
    done = [damage(folder / file, [originals / other for other in files], rng) for file in chosen]
    if (folder / "half.jsonl").is_fifo():  # an output that waits for its reader, as it should
        (folder / "half.jsonl").unlink()
    return Input(number, kind, folder, command.replace("MODEL", str(originals / "exported")), "; ".join(done))


def run_all(inputs: Sequence[Input], server: ForkServer) -> None:
    """Run the commands of inputs in one process, and in another one those after a command that ends it."""
    left = list(inputs)
    while left:
        jobs = left[0].folder / "jobs"
        jobs.write_text(json.dumps([(str(one.folder), one.command.split()) for one in left]))
        server.run(jobs, program="tests.faults.limited")
        ended = [one for one in left if (one.folder / "ended").exists()]
        left = left[len(ended) + 1 :]


def problems_of(one: Input) -> tuple[int | None, list[str]]:
    """The exit code of a command, None where it did not end, and what is wrong with how it ended."""
    stderr = (one.folder / "stderr").read_text(errors="replace")
    if not (one.folder / "ended").exists():
        return None, [f"killed, or longer than {SECONDS} seconds"]
    code, peak = map(int, (one.folder / "ended").read_text().split())
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    problems = {
        f"exit code {code}": code not in CODES,
        "traceback": "Traceback" in stderr,
        f"{peak:,} bytes of memory": peak > MEMORY,
        "a long line": any(len(line) > LONGEST_LINE for line in lines),
        "no reason": code != 0 and not lines,
    }
    return code, [problem for problem, is_so in problems.items() if is_so]


def fuzz(numbers: Sequence[int], originals: Path, server: ForkServer, seed: str) -> None:
    """Try inputs of all kinds in turn."""
    print(f"FUZZ_SEED={seed}")
    outcomes, failed = Counter[str](), []
    for begin in range(0, len(numbers), BATCH):
        inputs = [make_input(number, originals, seed) for number in numbers[begin : begin + BATCH]]
        run_all(inputs, server)
        for one in inputs:
            code, problems = problems_of(one)
            outcomes[f"{one.kind} {code}"] += 1
            if problems:
                end = (one.folder / "stderr").read_text(errors="replace")[-1000:]
                place = f"FUZZ_SEED={seed} FUZZ_ONLY={one.number}"
                failed.append(f"{place}: {', '.join(problems)}: {one.command}  [{one.damage}] -> {end}")
            if len(numbers) > 1:
                shutil.rmtree(one.folder)
    print(dict(sorted(outcomes.items())))
    assert not failed, "\n".join([f"{len(failed)} of {len(numbers)}", *failed])
    codes = {outcome.split()[1] for outcome in outcomes}
    assert codes >= {"0", "3", "4"} or len(numbers) <= 1, "guard: some are refused, and some damage does no harm"


def test_sampled_damage_never_breaks_a_command(originals: Path, server: ForkServer) -> None:
    fuzz(range(36), originals, server, "sample")


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_two_thousand_damaged_inputs_break_nothing(part: int, originals: Path, server: ForkServer) -> None:
    """Other inputs each time."""
    only, size = os.environ.get("FUZZ_ONLY"), INPUTS // PARTS
    fuzz([number for number in range(part * size, (part + 1) * size) if only in (None, str(number))], originals, server, SEED)
