"""Equal responses of one prompt have equal rewards, to the last bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rmtrain import RewardScorer
from tests.forks import fork_server


@pytest.fixture
def folder(case: Callable[[str], Path]) -> Path:
    folder = case("identical_responses")
    shutil.copytree(case("empty_completion") / "m", folder / "m")
    return folder


def test_benchmark_of_equal_responses_scores_zero(folder: Path) -> None:
    """Each of the 360 decisions is a tie, which the strict rule of RM-Bench counts as wrong."""
    ended = fork_server().run("eval", "m", "--benchmark", "rm_bench", "--data-dir", "b", "--json", "--output", "out", cwd=folder)
    numbers = json.loads(ended.stdout)["benchmarks"]["rm_bench"]
    assert (numbers["score"], numbers["ties"], numbers["decisions"]) == (0.0, 360, 360)
    rows = [json.loads(line)["rewards"] for line in (folder / "out/rm_bench/scores.jsonl").read_text().splitlines()]
    assert {len(set(rewards)) for rewards in rows} == {1}
    assert len({rewards[0] for rewards in rows}) > 30, "guard: prompts differ"


def test_equal_responses_tie_when_scored(folder: Path) -> None:
    """In the command line, where the first of the best is taken, and in Python."""
    lines = [json.loads(line) for line in (folder / "in.jsonl").read_text().splitlines()]
    assert fork_server().run("score", "m", "in.jsonl", "-o", "out.jsonl", cwd=folder).code == 0
    assert fork_server().run("score", "m", "in.jsonl", "-o", "best.jsonl", "--best-of", cwd=folder).code == 0
    scored, best = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()] for name in ("out.jsonl", "best.jsonl")
    )
    scorer = RewardScorer(str(folder / "m"), device="cpu")
    for line, row, first in zip(lines, scored, best, strict=True):
        responses = line["responses"]
        rewards = scorer([line["prompt"]] * len(responses), responses)
        for found in (row["rewards"], rewards):
            assert len(set(found)) == len(set(responses)), "equal responses, and no others, tie"
        assert first["best"] == responses.index(first["response"])
    assert any(len(set(line["responses"])) < len(line["responses"]) for line in lines), "guard"
